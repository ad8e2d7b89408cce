"""`seodang init` writes a recipe whose commands run, from options or from a person's answers, and writes nothing over."""

import csv
import json
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from seldom import full_but

from seodang.__main__ import main as seodang
from seodang.data.form_pairs import form_preferences
from seodang.data.json_text import read_json_lines
from seodang.data.sample_data import sample_path
from seodang.infer.checkpoint.manifest import verify
from seodang.recipes.starting.checking import spread
from seodang.recipes.starting.folder import FILES
from seodang.recipes.starting.tasks import TASKS

COUNT = 44  # records of each kind; from 40 on some are held out
QUESTIONS = [{"질문": f"{number}번 학생의 이름은 무엇입니까?", "답변": f"김민수 {number}입니다."} for number in range(COUNT)]
SAID = [("영화가 정말 좋아요", "긍정"), ("영화가 정말 싫어요", "부정")]
REVIEWS = [{"번호": str(number), "문장": SAID[number % 2][0], "라벨": SAID[number % 2][1]} for number in range(COUNT)]


def written(path, records, encoding="utf-8"):
    """Records in a file of the kind that its name says."""
    if path.suffix == ".csv":
        with path.open("w", encoding=encoding, newline="") as file:
            table = csv.DictWriter(file, list(records[0]))
            table.writeheader()
            table.writerows(records)
    else:
        path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding=encoding)
    return path


@pytest.fixture
def data(tmp_path):
    """`data(task)`: a file of 44 records for a task, and the options by which it is read."""
    triplets = read_json_lines(sample_path("plain"))[:COUNT] or []
    pairs = form_preferences(read_json_lines(sample_path("geography")))[:COUNT]

    def make(task):
        if task == "chat":
            return written(tmp_path / "qa.csv", QUESTIONS, "cp949"), ["--encoding", "cp949"]
        if task == "classifier":
            return written(tmp_path / "reviews.csv", REVIEWS, "cp949"), ["--encoding", "cp949", "--text_column", "문장", "--label_column", "라벨"]
        records = {
            "triplets": triplets, "diffusion": triplets, "preferences": pairs, "text": [{"text": each["output"]} for each in triplets],
            "judged": [{"물음": each["prompt"], "completion": each["chosen"], "label": number % 2 == 0} for number, each in enumerate(pairs)],
        }  # fmt: skip
        return written(tmp_path / f"{task}.jsonl", records[task]), ["--columns", "prompt=물음"] if task == "judged" else []

    return make


def commands(folder):
    return [line.strip() for line in (folder / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("    seodang ")]


OFTEN = ("triplets", "classifier")  # the others differ in what they train, which tests of their commands do


@pytest.mark.parametrize("task", full_but(OFTEN, [*TASKS]))
def test_the_commands_of_a_recipe_run_as_they_stand(task, data, small_defaults, quickly, tmp_path, monkeypatch, capsys):
    path, options = data(task)
    monkeypatch.chdir(tmp_path)
    assert seodang(["init", "my recipe", "--task", task, "--data", path.name, *options]) == 0
    folder, count = tmp_path / "my recipe", sum(1 for _ in path.open("rb")) - (path.suffix == ".csv")
    printed = capsys.readouterr().out
    assert f"{count} read, {count} kept" in printed and printed.splitlines()[0] in (folder / "README.md").read_text(encoding="utf-8")
    assert {each.name for each in folder.iterdir()} == {*FILES}
    settings = yaml.safe_load((folder / "train.yaml").read_text(encoding="utf-8"))
    assert settings["data"] == [str(path)] and settings["eval_fraction"] == (0.1 if count >= 40 else 0.0)
    sample = [json.loads(line) for line in (folder / "sample.jsonl").read_text(encoding="utf-8").splitlines()]
    if task in ("chat", "classifier"):
        assert sample == [{"chat": QUESTIONS, "classifier": REVIEWS}[task][number * COUNT // 16] for number in range(16)]
    assert len(sample) == 16
    monkeypatch.chdir(folder)
    assert len(commands(folder)) == 4
    for command in commands(folder):
        quickly(command)
    for trained in ("try", task):
        assert verify(folder / "runs" / trained) is not None
    answers = (folder / {"text": "scores.jsonl", "classifier": "predicted.jsonl"}.get(task, "answers.jsonl")).read_text(encoding="utf-8").splitlines()
    assert len(answers) == len(sample) + (task == "text")  # the totals


def test_a_sample_of_labelled_texts_has_two_labels_at_least():
    stored = [{"text": str(number), "label": "rare" if number == 5 else "often"} for number in range(20)]
    assert [each["text"] for each in spread(stored, 4, "label")] == ["0", "5", "10", "15"]
    stored[5], stored[6] = stored[6], stored[5]
    assert [each["label"] for each in spread(stored, 4, "label")] == ["often"] * 3 + ["rare"]
    assert [each["label"] for each in spread(stored, 4)] == ["often"] * 4 and spread(stored, 99) == stored


def test_the_script_trains_with_its_options_and_then_asks_the_model(data, small_defaults, tmp_path):
    path, options = data("classifier")
    assert seodang(["init", str(tmp_path / "recipe"), "--task", "classifier", "--data", str(path), *options]) == 0
    program = tmp_path / "bin" / "seodang"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$PWD" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    said = subprocess.check_output([tmp_path / "recipe" / "run.sh", "--max_steps", "3"], text=True, cwd="/", env=environment).splitlines()
    *_, training, after = commands(tmp_path / "recipe")
    place = tmp_path / "recipe"
    assert said == [training.replace("seodang", str(place), 1) + " --max_steps 3", after.replace("seodang", str(place), 1).replace("'문장'", "문장")]


@pytest.fixture
def typed(monkeypatch):
    """`typed(*answers)`: let a person at a terminal type them, a line each."""
    opened = []

    def type_in(*answers):
        own, theirs = pty.openpty()
        opened.append(own)
        os.write(own, "".join(f"{answer}\n" for answer in answers).encode() + b"\x04")
        monkeypatch.setattr("sys.stdin", os.fdopen(theirs, encoding="utf-8"))

    yield type_in
    for each in opened:
        os.close(each)


def test_a_persons_answers_give_what_options_give_and_wrong_ones_are_asked_for_again(data, typed, small_defaults, tmp_path, monkeypatch, capsys):
    path, options = data("classifier")
    monkeypatch.chdir(tmp_path)
    assert seodang(["init", "by options", "--task", "classifier", "--data", str(path), *options]) == 0
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "run.sh").touch()
    typed("", "asked", "no.csv", str(path), "utf-16", "", "poetry", "classifier", "", "종류", "라벨", "nobody/nothing-of-the-kind", "")
    capsys.readouterr()
    assert seodang(["init"]) == 0
    printed = capsys.readouterr().out
    for said in (
        "recipe/run.sh is there already", "there is no file or folder no.csv", "it looks like cp949", "Encoding [cp949]", "its columns: 번호, 문장, 라벨",
        "Task [classifier]", "task must be one of chat", "Column of the text [문장]", "there is no column '종류' among", "Model (a folder, a name on the hub) [default-encoder]",
        "nobody/nothing-of-the-kind",
    ):  # fmt: skip
        assert said in printed, said
    for name in FILES:
        own, theirs = ((tmp_path / folder / name).read_text(encoding="utf-8") for folder in ("by options", "asked"))
        assert own.replace("by options", "asked") == theirs, name


def test_columns_that_cannot_be_told_are_asked_for(typed, small_defaults, tmp_path, monkeypatch, capsys):
    path = written(tmp_path / "talk.csv", [{"학생": f"질문 {number}", "선생님": "그렇습니다."} for number in range(4)])
    monkeypatch.chdir(tmp_path)
    typed("", "prompt=선생 completion=선생님", "prompt=학생 completion=선생님")
    assert seodang(["init", "recipe", "--data", str(path), "--task", "chat", "--model", "default"]) == 0
    printed = capsys.readouterr().out
    assert "say which column is which" in printed and "this has no default" in printed and "there is no column '선생'" in printed
    assert yaml.safe_load((tmp_path / "recipe" / "train.yaml").read_text(encoding="utf-8"))["columns"] == ["prompt=학생", "completion=선생님"]
    assert " --columns prompt=학생 completion=선생님" in commands(tmp_path / "recipe")[-1].replace("'", "")


def test_no_answer_is_one_line_and_nothing_is_written(data, typed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    typed("recipe")
    assert seodang(["init"]) == 2
    assert "no more answers came at the question 'Data" in capsys.readouterr().err and not Path("recipe").exists()


PAIRS = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("records", "options", "error"),
    [
        (None, [], r"--data and --task missing, and there is no terminal to ask on: give --data FILE --task chat\|triplets\|"),
        (None, ["--yes"], "--data missing, and with --yes nothing is asked: give --data FILE$"),
        ([PAIRS], ["--task", "poetry"], "task must be one of chat, triplets, .*, got 'poetry'"),
        ([PAIRS], ["--task", "chat"], "data.jsonl line 1: this is a record of the shape preference, which --task chat does not read: give --task preferences"),
        ([{"instruction": "i", "output": "o"}], ["--task", "chat"], "the shape triplet, which --task chat does not read: give --task triplets"),
        ([PAIRS], ["--task", "preferences", "--label_column", "x"], "--label_column is of a classifier, and the task is preferences"),
        ([PAIRS], ["--task", "preferences", "--sample", "0"], "sample must be at least 1, got 0"),
        ([{"number": 1, "letter": "a"}], ["--yes"], "what the columns number, letter are for cannot be told: give --task"),
        ([{"number": "a", "label": "b"}], ["--task", "classifier"], "which of the columns number, label holds the text. Give --text_column COLUMN"),
        ([{"text": "a", "label": "b"}] * 3, ["--yes"], "all 3 records have the label 'b'"),
        ([{"prompt": "p", "completion": "c"}], ["--yes", "--model", "nobody/nothing-of-the-kind"], "nobody/nothing-of-the-kind"),
        ([{"prompt": "p", "chosen": "a", "rejected": "a"}], ["--yes"], "none of the 1 records can be used"),
        ([["a", "b"]], ["--yes"], "a record must be an object with named columns"),
    ],
)
def test_what_cannot_be_made_into_a_recipe_is_one_line_and_writes_nothing(records, options, error, small_defaults, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [] if records is None else ["--data", str(written(tmp_path / "data.jsonl", records))]
    assert seodang(["init", "recipe", *given, *options]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(error, said), said
    assert not Path("recipe").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_there_is_named_and_stays(name, data, small_defaults, tmp_path, monkeypatch, capsys):
    path, options = data("chat")
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / name).write_text("mine", encoding="utf-8")
    assert seodang(["init", str(tmp_path / "recipe"), "--task", "chat", "--data", str(path), *options]) == 2
    assert f"recipe/{name} is there already, and nothing is written over" in capsys.readouterr().err
    assert (tmp_path / "recipe" / name).read_text(encoding="utf-8") == "mine" and len([*(tmp_path / "recipe").iterdir()]) == 1
