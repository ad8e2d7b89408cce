import json
from collections import Counter

import pytest

from seodang.data.files.sources import read
from seodang.data.formats import SHAPES, Dialogue
from seodang.data.prepared.rows import flaw
from seodang.data.prepared.shard import Maker
from seodang.infer.checkpoint.load import load_tokenizer
from seodang.infer.checkpoint.manifest import read_manifest
from seodang.recipes import diffusion, prepare, sft
from seodang.recipes.options.training import DataOptions, hold_out
from seodang.recipes.preparing import rows as on_disk
from seodang.train.run.callbacks import read_log

QUICK = ["--learning_rate", "1e-2", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu",
         "--per_device_train_batch_size", "2", "--max_length", "64", "--num_proc", "1"]  # fmt: skip


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    records = [{"instruction": f"나무 {n}", "input": "", "output": "길" * (n % 4 + 1)} for n in range(12)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def made(monkeypatch):
    numbers, make = [], Maker.make
    monkeypatch.setattr(Maker, "make", lambda self, number, *rest: numbers.append(number) or make(self, number, *rest))
    return numbers


def losses(folder):
    return [(entry.get("loss"), entry.get("eval_loss")) for entry in read_log(folder / "log.jsonl") if "loss" in entry or "eval_loss" in entry]


@pytest.mark.parametrize("more", [["--packing", "true"], ["--eval_fraction", "0.25", "--eval_strategy", "steps", "--eval_steps", "2"]])
def test_rows_on_disk_train_as_those_in_memory_and_are_used_again(more, base, data, tmp_path, capsys, made):
    told = {}
    for name, cache in (("memory", "never"), ("disk", tmp_path / "rows"), ("again", tmp_path / "rows")):
        argv = ["--model", base, "--data", data, "--output_dir", tmp_path / name, "--max_steps", 3, "--save_strategy", "no", "--row_cache", cache, *more]
        assert sft.main([*map(str, argv), *QUICK]) == 0
        told[name] = capsys.readouterr().out.splitlines()
    assert losses(tmp_path / "memory") == losses(tmp_path / "disk") == losses(tmp_path / "again") != []
    assert made == [0]
    counted = [[line for line in lines if line.startswith(("records", "tokens", "held"))] for lines in told.values()]
    assert counted[0] == counted[1] == counted[2]
    prepared = [[line for line in lines if line.startswith("prepared")] for lines in told.values()]
    assert prepared[0] == [] and "a second" in prepared[1][0] and "as an earlier run left it" in prepared[2][0]
    assert len({json.dumps(read_manifest(tmp_path / name)["options"]["rows"]) for name in told}) == 1
    cards = {(tmp_path / name / "README.md").read_text(encoding="utf-8").partition("## Data")[2].partition("## transformers")[0] for name in told}
    assert len(cards) == 1 and "\nrecords         " in cards.pop()  # where rows lie, and how long they took, is of this machine


@pytest.mark.full
def test_a_run_begun_in_memory_goes_on_from_disk(base, data, tmp_path, capsys):
    argv = ["--model", base, "--data", data, "--packing", "--lr_scheduler_type", "constant", "--save_steps", 2, *QUICK]
    for name, cache in (("one", ["never", "never"]), ("two", ["never", tmp_path / "rows"])):
        for steps, where in zip((2, 4), cache, strict=True):
            assert sft.main([*map(str, [*argv, "--output_dir", tmp_path / name, "--max_steps", steps, "--row_cache", where])]) == 0
    assert losses(tmp_path / "one") == losses(tmp_path / "two") and len(losses(tmp_path / "two")) == 4


def test_prepared_before_they_are_there_when_training_comes(base, data, tmp_path, capsys, made, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert prepare.main(["--data", data, "--model", str(base), "--max_length", "64", "--packing", "--num_proc", "1"]) == 0
    printed = capsys.readouterr().out
    assert "12 read, 12 kept in 12 rows" in printed and "packed          " in printed and "prepared        " in printed
    argv = ["--model", base, "--data", data, "--output_dir", tmp_path / "out", "--max_steps", 1, "--save_strategy", "no", "--packing", *QUICK]
    monkeypatch.setattr(on_disk, "LARGE", 10)  # bytes: the file is a large one now
    assert sft.main([*map(str, argv)]) == 0
    assert made == [0] and "as an earlier run left it" in capsys.readouterr().out
    monkeypatch.setattr(on_disk, "LARGE", 1 << 30)
    assert sft.main([*map(str, argv), "--output_dir", str(tmp_path / "small")]) == 0
    assert "prepared        " not in capsys.readouterr().out


@pytest.mark.full
def test_diffusion_makes_its_canvases_of_the_same_rows(base, data, tmp_path, capsys):
    for name, cache in (("memory", "never"), ("disk", tmp_path / "rows")):
        argv = ["--model", base, "--data", data, "--output_dir", tmp_path / name, "--max_steps", 2, "--save_strategy", "no", "--mask_token", "<|m|>",
                "--canvas", 8, "--packing", "--row_cache", cache]  # fmt: skip
        assert diffusion.main([*map(str, argv), *QUICK]) == 0
    assert losses(tmp_path / "memory") == losses(tmp_path / "disk") != []


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_the_same_records_are_held_out_as_of_a_list(fraction, data, tmp_path):
    examples = [*read([data, data]), *(Dialogue([], where=f"trees line 1, example {n}") for n in range(5)), Dialogue([], where="trees line 2")]
    kept, held = hold_out(examples, fraction, seed=5)
    is_held = on_disk.held_out_of(examples, fraction, seed=5)
    assert [example for number, example in enumerate(examples) if is_held(number, example)] == held
    assert list(on_disk.Without(examples, is_held)) == kept and 0 < len(held) < len(examples)


def test_a_second_reading_counts_records_of_several_tasks_once(base, tmp_path):
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps({"input": f"i{n}", "tasks": [{"instruction": "a", "output": "b"}] * 2}) + "\n" for n in range(4)))
    options = DataOptions(data=[str(path)], tasks="apart", row_cache=str(tmp_path / "rows"), num_proc=1, max_length=64, eval_fraction=0.25)
    made = on_disk.rows_on_disk(options, load_tokenizer(str(base)), options.shapes(SHAPES), packing=False, eval_fraction=0.25)
    assert made.rows.counts.told == ["tasks           apart, 8 dialogues of 4 records"] and len(made.rows) == 6 and len(made.held) == 2


def test_a_file_that_is_written_while_it_is_read_is_not_kept(base, data, tmp_path, monkeypatch, capsys):
    reading = on_disk.read

    def growing(sources, **how):
        examples = reading(sources, **how)
        return [*examples, open(data, "a").write("\n") and None][:-1]

    monkeypatch.setattr(on_disk, "read", growing)
    before = on_disk.state_of([data])
    monkeypatch.setattr(on_disk, "state_of", lambda sources, calls=Counter(): before if not calls.update("x") and calls["x"] == 1 else {})
    assert prepare.main(["--data", data, "--model", str(base), "--max_length", "64", "--row_cache", str(tmp_path / "rows"), "--num_proc", "1"]) == 2
    assert "data.jsonl: changed while it was read: begin again once it is written" in capsys.readouterr().err
    assert not list((tmp_path / "rows").glob("*/prepared.json"))


@pytest.mark.parametrize("argv, told", [
    (["--num_proc", "0"], "num_proc must be at least 1, got 0"),
    (["--streaming", "--max_steps", "1", "--row_cache", "folder"], "row_cache folder: a stream is read while training"),
    (["--row_cache", ""], "row_cache must be auto, never or a folder, got ''"),
    (["--row_cache", "False"], "row_cache must be auto, never or a folder, got 'False'"),
    (["--row_cache", "Never"], "row_cache must be auto, never or a folder, got 'Never'"),
])  # fmt: skip
def test_what_cannot_be_is_refused(argv, told, base, data, tmp_path, capsys):
    assert sft.main(["--model", str(base), "--data", data, "--output_dir", str(tmp_path / "out"), *argv]) == 2
    assert told in capsys.readouterr().err
    assert prepare.main(["--data", data, "--output", str(tmp_path / "x.jsonl")]) == 2
    assert "data is prepared in the cache folder, or --row_cache" in capsys.readouterr().err
    assert prepare.main(["--data", data, "--row_cache", "never"]) == 2
    assert "row_cache never keeps no rows, and --data prepares them on disk" in capsys.readouterr().err


@pytest.mark.full
def test_two_processes_of_a_group_train_on_rows_that_one_prepared(on_two, base, data, tmp_path):
    argv = ["--model", base, "--data", data, "--max_steps", 3, "--save_strategy", "no", *QUICK]
    on_two("sft", *argv, "--output_dir", tmp_path / "two", "--row_cache", tmp_path / "rows")
    [folder] = [path for path in (tmp_path / "rows").iterdir() if path.is_dir()]
    assert not flaw(folder)
    one = [*argv, "--output_dir", tmp_path / "one", "--row_cache", "never", "--per_device_train_batch_size", 4]
    assert sft.main([*map(str, one)]) == 0
    both = [[loss for loss, _ in losses(tmp_path / name)] for name in ("one", "two")]
    assert both[1] == pytest.approx(both[0], abs=1e-5) and len(both[0]) == 3
