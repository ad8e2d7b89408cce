"""What becomes of several processes where one of them is not as the others."""

import json

import pytest

from seodang.infer.checkpoint.manifest import verify

QUICK = ["--learning_rate", "1e-2", "--logging_steps", 1, "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu",
         "--lr_scheduler_type", "constant"]  # fmt: skip
ODD = """
import os, signal, sys
from seodang.recipes import sft
from seodang.train.run import checkpoints, crash_safe, ranks
from seodang.train.run.callbacks import RunLog

case, odd, argv = sys.argv[1], os.environ["RANK"] == sys.argv[2], sys.argv[3:]

def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

def full(needed, run):
    raise crash_safe.UserError(f"the disk is full: a checkpoint needs {needed:,} bytes")

if odd and case == "missing":
    argv[argv.index("--data") + 1] += ".gone"
if odd and case == "short":
    argv[argv.index("--data") + 1] = argv[argv.index("--data") + 1].replace("texts", "texts-held-out")
if odd and case == "versions":
    found = ranks.versions()
    ranks.versions = lambda: {**found, "the version of torch": "2.12.0"}
if odd and case == "killed":
    RunLog.on_step_end = on_step_end
if odd and case == "full":
    crash_safe.require_space = full
if odd and case == "alone":
    sys.exit(0)
sys.exit(sft.main(argv))
"""


@pytest.fixture
def with_an_odd_one(base, tmp_path, run_script):
    """`with_an_odd_one(case, rank, codes)`: what two processes say, one of which is not as the other; the harness gives them 40 seconds after the first has ended."""
    script = tmp_path / "odd.py"
    script.write_text(ODD)
    for name, letters in (("texts", "abcdefghijklmnop"), ("texts-held-out", "qrstu")):
        records = [{"prompt": f"say {letter}", "completion": letter * (1 + i % 5)} for i, letter in enumerate(letters)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")

    def run(case: str, rank: int, codes: list[int]) -> str:
        words = ["--model", base, "--data", tmp_path / "texts.jsonl", *QUICK, "--max_steps", 3, "--save_steps", 1, "--per_device_train_batch_size", 2, "--output_dir", tmp_path / "out"]
        return run_script(script, case, rank, *words, processes=2, codes=codes, patience=40, environment={"SEODANG_START_SECONDS": "5"})

    return run


def test_a_process_that_finds_no_data_ends_all_and_a_killed_one_is_named(with_an_odd_one, tmp_path):
    told = with_an_odd_one("missing", 1, [2, 2])
    assert "error: there is no file or folder" in told and "error: rank 1 (" in told and ") of 2 has ended: there is no file or folder" in told
    assert not (tmp_path / "out" / "log.jsonl").exists()
    told = with_an_odd_one("killed", 1, [2, -9])
    assert told.count("error: rank 1 (") == 2 and told.count(" of 2 is gone: it was killed, or its machine is") == 1
    verify(tmp_path / "out" / "checkpoint-1")


@pytest.mark.full
@pytest.mark.parametrize(
    ("case", "rank", "codes", "told"),
    [
        ("killed", 0, [-9, 2], ["error: rank 0 (", "is gone: it was killed, or its machine is"]),
        ("missing", 0, [2, 2], ["error: rank 0 (", "has ended: there is no file or folder"]),
        ("short", 1, [2, 2], ["the processes do not agree on the records themselves: rank 1 has"]),
        ("versions", 1, [2, 2], ['the processes do not agree on the version of torch: rank 1 has "2.12.0", rank 0 has "2.']),
        ("full", 1, [2, 2], ["the disk is full: a checkpoint needs", "rank 1 of 2 could not save, see what they say; the last checkpoint is intact"]),
        ("alone", 1, [2, 0], ["error: rank 0 of 2 has waited for the others at 127.0.0.1:", "for 5 seconds: one of them has not come"]),
    ],
)
def test_all_end_by_an_error_that_names_the_odd_one(case, rank, codes, told, with_an_odd_one):
    said = with_an_odd_one(case, rank, codes)
    assert all(words in said for words in told), said
