"""What may go wrong with a run from outside: kills, a second run, damaged files, no memory, odd clocks, places and languages. `docs/reliability.md` lists it."""

import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from hashlib import sha256

import pytest
import torch
from named_tests import ROOT, absent, named_in
from safetensors.torch import load_file, save_file

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import MANIFEST, read_manifest, write_manifest
from seodang.infer.engine.core import Engine
from seodang.infer.kernels.device import is_out_of_memory
from seodang.recipes import generate, rlhf, sft
from seodang.recipes.run.one_writer import only_writer, refuse_busy_folder
from seodang.train.run.callbacks import RunLog
from seodang.train.run.checkpoints import complete_checkpoints, find_resume
from seodang.train.stages import build
from seodang.train.stages.sft import SftTrainer

QUICK = "--learning_rate 1e-2 --disable_tqdm true --report_to none --dtype float32 --device cpu --save_steps 2 --per_device_train_batch_size 2".split()


@pytest.fixture
def data(tmp_path):
    """Eight records."""
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {letter}", "completion": letter * 3}) + "\n" for letter in "abcdefgh"), encoding="utf-8")
    return path


@pytest.fixture
def run(base, data):
    """`run(folder, *words)`: train the tiny model for four steps, with a checkpoint at each second; the exit code."""
    return lambda folder, *words: sft.main(["--model", str(base), "--data", str(data), "--output_dir", str(folder), "--max_steps", "4", *QUICK, *words])


def hashes(folder):
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(folder):
    return sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_each_line_of_the_page_names_tests_that_are_there():
    lines = [line for line in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    told = [line for line in lines if not line.startswith(("| what happens |", "| --- |"))]
    assert len(told) > 20
    for line in told:
        assert named_in(line) and not absent(line), f"{line[:60]}: {absent(line)}"


# Kills


class Killed(BaseException):
    """What nothing catches, as nothing does a SIGKILL."""


def test_killed_while_it_resumes_the_checkpoint_is_as_it_was_and_the_next_run_ends_as_if_nothing_had_been(run, tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(whole) == 0
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoint-4")
    before = hashes(stopped / "checkpoint-2")

    def kill(*args, **kwargs):
        raise Killed

    for moment in ("_load_from_checkpoint", "_load_optimizer_and_scheduler", "training_step", "_save_checkpoint"):
        with monkeypatch.context() as patch:
            patch.setattr(SftTrainer, moment, kill)
            with pytest.raises(Killed):
                run(stopped)
        assert hashes(stopped / "checkpoint-2") == before and complete_checkpoints(stopped) == [stopped / "checkpoint-2"], moment
    assert run(stopped) == 0
    assert weights(stopped) == weights(whole) and weights(stopped / "checkpoint-4") == weights(whole / "checkpoint-4")


# Two runs


def test_a_second_run_in_the_folder_of_one_that_is_going_on_is_refused_before_a_weight_is_loaded(run, tmp_path, capsys, monkeypatch):
    out, held = tmp_path / "out", []

    class Asks(RunLog):
        def on_step_end(self, args, state, control, **kwargs):
            with pytest.raises(UserError, match="is being written by another process"):
                refuse_busy_folder(out, "wait")
            held.append(state.global_step)

    with monkeypatch.context() as patch:
        patch.setattr(build, "RunLog", Asks)
        assert run(out) == 0 and held == [1, 2, 3, 4]
    with only_writer(out, "wait"), monkeypatch.context() as patch:
        assert run(out, "--dry_run") == 0
        patch.setattr(sft, "load", lambda *_, **__: pytest.fail("loaded the model"))
        assert run(out) == 2
    assert f"error: {out} is being written by another process: wait for its end, or name another --output_dir" in capsys.readouterr().err


def test_a_run_that_was_killed_holds_its_folder_no_more(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    holds = f"import fcntl, os, time; fcntl.flock(os.open({str(out)!r}, os.O_RDONLY), fcntl.LOCK_EX); print(flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        assert run(out) == 2
        other.kill()
    assert run(out, "--max_steps", "1") == 0


def test_rounds_of_rlhf_hold_their_folder_too(base, tmp_path, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {letter}"}) + "\n" for letter in "abcdefgh"), encoding="utf-8")
    words = ["--model", base, "--data", prompts, "--ranker", "rule:length:5", "--heldout_prompts", 2, "--output_dir", tmp_path / "out", "--device", "cpu"]
    with only_writer(tmp_path / "out", "wait"):
        assert rlhf.main([*map(str, words)]) == 2
    assert "is being written by another process" in capsys.readouterr().err


# Damaged files


@pytest.fixture
def sharded(fresh_tiny, tiny_tokenizer, tmp_path):
    """A sealed folder whose weights lie in several files."""
    folder = tmp_path / "checkpoint-3"
    fresh_tiny("llama").save_pretrained(folder, max_shard_size="20KB")
    tiny_tokenizer.save_pretrained(folder)
    write_manifest(folder, step=3)
    assert len([*folder.glob("model-*.safetensors")]) > 2
    return folder


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_shard_is_named_where_the_model_is_loaded_and_where_a_run_goes_on(sharded, damage):
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 0xFF
    shard.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    if damage == "missing":
        shard.unlink()
    told = f"{shard.name} is {'missing' if damage == 'missing' else 'damaged'}"
    with pytest.raises(UserError, match=told):
        load(sharded, device="cpu", dtype="float32")
    with pytest.raises(UserError, match=f"{told}.*--resume never starts anew"):
        find_resume(sharded.parent, "auto")


@pytest.mark.parametrize("damage", ["cut", "missing", "another tensor"])
def test_a_damaged_shard_of_a_folder_without_a_manifest_is_told_all_the_same(sharded, damage):
    (sharded / MANIFEST).unlink()
    shard = sorted(sharded.glob("model-*.safetensors"))[1]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "missing":
        shard.unlink()
    else:
        save_file({"strange": next(iter(load_file(shard).values()))}, shard, {"format": "pt"})
    with pytest.raises(UserError, match=r"checkpoint-3") as refused:
        load(sharded, device="cpu", dtype="float32")
    assert len(str(refused.value)) < 500


# The chat template


def test_a_template_that_the_model_was_not_trained_by_is_warned_of_by_its_fingerprint(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(out, "--max_steps", "1") == 0
    trained = read_manifest(out)["template"]
    ask = [str(out), "say a", "--max_new_tokens", "2", "--device", "cpu", "--dtype", "float32"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert generate.main(ask) == 0
    assert not [each for each in caught if "template" in str(each.message)]
    with pytest.warns(UserWarning, match=f"trained by another chat template than the one in use .fingerprints {trained} and [0-9a-f]{{16}}"):
        assert generate.main([*ask, "--chat_template", "alpaca"]) == 0
    (out / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    with pytest.warns(UserWarning, match=f"fingerprints {trained} and"):
        load(out, device="cpu", dtype="float32")


# Memory


def no_memory():
    """The error of this machine's own allocator."""
    try:
        torch.empty(2**62, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError("there was room")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), no_memory(), MemoryError("no memory for a pass")])
def test_without_memory_training_and_generation_name_the_batch_size(run, base, data, tmp_path, monkeypatch, capsys, error):
    assert is_out_of_memory(error) and not is_out_of_memory(RuntimeError("shape mismatch"))

    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SftTrainer, "compute_loss", full)
        assert run(tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert "error: out of memory at step 1 with per_device_train_batch_size 2: lower it and raise --gradient_accumulation_steps" in told
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", full)
        assert generate.main([str(base), str(prompts), "--batch_size", "7", "--max_new_tokens", "2", "--device", "cpu", "--dtype", "float32"]) == 2
    assert "out of memory with --batch_size 7: lower it" in capsys.readouterr().err


# Clocks


def test_a_clock_that_goes_backwards_changes_nothing_that_is_learned_or_kept(run, tmp_path, monkeypatch):
    assert run(tmp_path / "straight") == 0
    now = [time.time()]

    def backwards():
        now[0] -= 3600
        return now[0]

    monkeypatch.setattr(time, "time", backwards)
    assert run(tmp_path / "back", "--max_steps", "2", "--lr_scheduler_type", "constant") == 0
    assert run(tmp_path / "back", "--lr_scheduler_type", "constant") == 0
    monkeypatch.undo()
    assert run(tmp_path / "constant", "--lr_scheduler_type", "constant") == 0
    assert weights(tmp_path / "back") == weights(tmp_path / "constant") != weights(tmp_path / "straight")


def test_the_newest_checkpoint_is_that_of_the_highest_step_whatever_the_clock_said(tmp_path):
    for step, stamp in ((9, 2_000_000_000), (10, 86_400), (100, 0)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        write_manifest(folder, step=step)
        os.utime(folder, (stamp, stamp))
        os.utime(folder / MANIFEST, (stamp, stamp))
    assert find_resume(tmp_path, "auto") == tmp_path / "checkpoint-100"


# Places and languages


def test_a_path_with_spaces_and_hangul_and_a_home_that_cannot_be_written_are_no_matter(base, data, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file" / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    folder = tmp_path / "서당 공책" / "첫 번째 #1 'a'"
    folder.mkdir(parents=True)
    shutil.copytree(base, folder / "모델")
    shutil.copy(data, folder / "자료 하나.jsonl")
    words = ["--model", folder / "모델", "--data", folder / "자료 하나.jsonl", "--output_dir", folder / "배움", *QUICK]
    assert sft.main([*map(str, words), "--max_steps", "2", "--lr_scheduler_type", "constant"]) == 0
    assert sft.main([*map(str, words), "--max_steps", "3", "--lr_scheduler_type", "constant"]) == 0
    assert f"resume          from {folder / '배움' / 'checkpoint-2'}" in capsys.readouterr().out
    ask = [folder / "배움", "가나다", "--max_new_tokens", "2", "--device", "cpu", "--dtype", "float32", "--output", folder / "답.jsonl"]
    assert generate.main([*map(str, ask)]) == 0
    [line] = (folder / "답.jsonl").read_text(encoding="utf-8").splitlines()[-1:]
    assert json.loads(line)["prompt"][0]["content"] == "가나다"


LOCALES = {
    "C": {"LC_ALL": "C"},
    "C without UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "Turkish": {"LC_ALL": "tr_TR.UTF-8"},
    "Korean in EUC-KR": {"LC_ALL": "ko_KR.EUC-KR"},
    "one that is not installed": {"LC_ALL": "xx_XX.UTF-8"},
}
SPOKEN = """
import sys
from seodang.__main__ import main
sys.argv[1:] = ["sft", "--model", "base", "--data", "data.jsonl", "--output_dir", "out", "--max_steps", "1", *{quick}]
assert main() == 0
sys.argv[1:] = ["generate", "out", "--prompts", "prompts.txt", "--max_new_tokens", "2", "--device", "cpu", "--dtype", "float32"]
sys.exit(main())
"""


@pytest.mark.full
@pytest.mark.parametrize("name", LOCALES)
def test_whatever_the_locale_a_run_learns_the_same_and_says_what_it_can(name, base, data, run, tmp_path):
    environment = {**os.environ, **LOCALES[name], "HF_HUB_OFFLINE": "1", "HOME": "/dev/null/none", "XDG_CACHE_HOME": ""}
    environment |= {} if name == "C" else {"SEODANG_NATIVE": "0"}  # which would be compiled each time: there is no cache
    if name in ("Turkish", "Korean in EUC-KR"):
        language, _, charset = LOCALES[name]["LC_ALL"].partition(".")
        made = [shutil.which("localedef") or "false", "-i", language, "-f", charset, str(tmp_path / LOCALES[name]["LC_ALL"])]
        if subprocess.run(made, capture_output=True).returncode:
            pytest.skip("this machine has no sources of locales (Debian's package locales)")
        environment["LOCPATH"] = str(tmp_path)
    (tmp_path / "prompts.txt").write_text("가나다 İıŞ €\n아리랑 🎈\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", SPOKEN.format(quick=QUICK)], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    encoding = {"Korean in EUC-KR": "euc_kr", "C without UTF-8 mode": "ascii"}.get(name, "utf-8")
    printed = done.stdout.decode(encoding)
    assert ("가나다" in printed) == (encoding != "ascii") and ("🎈" in printed) == (encoding == "utf-8")
    assert encoding == "utf-8" or "\\U0001f388" in printed
    assert run(tmp_path / "here", "--max_steps", "1") == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "here")
