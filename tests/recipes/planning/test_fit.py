"""A real run that fits its step to a device's memory: what is left open is chosen before weights are loaded, and what is learned stays the same."""

import json

import pytest

from seodang.recipes import dpo, pretrain, sft
from seodang.recipes.planning import fit as fitting
from seodang.recipes.planning import options
from seodang.train.run.callbacks import read_log

QUICK = ["--device", "cpu", "--dtype", "float32", "--report_to", "none", "--max_steps", "2", "--logging_steps", "1", "--save_strategy", "no", "--learning_rate", "1e-3"]
RECORDS = {
    sft: [{"instruction": f"say {c}", "output": c * 20} for c in "abcdefgh"],
    dpo: [{"prompt": f"say {c}", "chosen": c * 30, "rejected": "z"} for c in "abcdefgh"],
    pretrain: [{"text": f"a text of some words, the {i}th of them " * 5} for i in range(20)],
}


@pytest.fixture
def run(base, tmp_path, capsys):
    """`run(verb, words)`: the exit code, what is printed, and the losses."""

    def train(verb, *words):
        data, out = tmp_path / "data.jsonl", tmp_path / "out"
        data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[verb]))
        code = verb.main([*map(str, ["--model", base, "--data", data, "--output_dir", out, "--resume", "never", *QUICK, *words])])
        losses = [entry["loss"] for entry in read_log(out / "log.jsonl") if "loss" in entry] if code == 0 else []
        return code, capsys.readouterr(), losses

    return train


def chosen_line(told):
    return next((line for line in told.out.splitlines() if line.startswith("chosen")), None)


@pytest.mark.parametrize("verb", [sft, *(pytest.param(verb, marks=pytest.mark.full) for verb in (dpo, pretrain))], ids=["sft", "dpo", "pretrain"])
def test_a_run_chooses_for_the_memory_given_and_learns_the_same(verb, run):
    code, told, plain = run(verb)
    assert code == 0 and chosen_line(told) is None
    code, told, tight = run(verb, "--device_memory", "400KiB")
    assert code == 0 and chosen_line(told).startswith("chosen          --activation_checkpointing true --loss_chunk 64: this takes least, 0.00 GiB, more than 0.00 GiB of --device_memory")
    assert len(tight) == 2 and tight == pytest.approx(plain, rel=1e-5)


def test_long_rows_look_at_what_is_free_and_what_is_given_is_kept(run, monkeypatch):
    monkeypatch.setattr(fitting, "LONG", 64)
    monkeypatch.setattr(fitting, "free_on", lambda device: 2**40)
    assert "--activation_checkpointing false --loss_chunk 512: this is quickest" in chosen_line(run(sft)[1])
    monkeypatch.setattr(fitting, "free_on", lambda device: 2**19)
    assert "--activation_checkpointing true --loss_chunk 64: this takes least" in chosen_line(run(sft)[1])
    told = run(sft, "--activation_checkpointing", "false", "--loss_chunk", "8")[1]
    assert chosen_line(told) is None  # nothing is left open
    assert "--activation_checkpointing false --loss_chunk 64 (the first as given)" in chosen_line(run(sft, "--activation_checkpointing", "false")[1])
    monkeypatch.setattr(fitting, "LONG", 10**6)
    assert chosen_line(run(sft)[1]) is None


def test_a_run_that_cannot_be_planned_goes_on_unless_it_was_asked_for(run, monkeypatch):
    monkeypatch.setattr(fitting, "LONG", 64)

    def unplanned(*args):
        raise fitting.UserError("it computes what hangs on values")

    monkeypatch.setattr(fitting, "fitted", unplanned)
    code, told, losses = run(sft)
    assert code == 0 and len(losses) == 2 and chosen_line(told) == "chosen          nothing, all as the options say: it computes what hangs on values"
    assert run(sft, "--device_memory", "1GiB")[0] == 2


def test_several_processes_choose_nothing_by_themselves(run, monkeypatch):
    monkeypatch.setattr(options, "several_processes", lambda: True)
    code, told, _ = run(sft, "--device_memory", "1GiB")
    assert code == 2 and "several processes choose nothing by themselves: ask --dry_run with --launch_file" in told.err


@pytest.mark.parametrize("name", ["CP_SIZE", "SP_SIZE"])
def test_rows_are_not_cut_among_processes(run, monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}", "2")
    code, told, _ = run(sft)
    assert code == 2 and f"parallelism_config_{name.lower()} 2: rows are not cut among processes here" in told.err and "FSDP2" in told.err
