"""What is said before the libraries are imported is what the commands' own parsers would say."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from seodang.__main__ import VERBS, main
from seodang.data.errors import UserError
from seodang.recipes.options import known
from seodang.recipes.options.known import FIRST, refuse, short_help


@pytest.fixture
def versions_of_the_file(monkeypatch):
    monkeypatch.setattr(known, "_versions", lambda: known.known()["versions"])


def test_the_file_is_what_the_parsers_say(versions_of_the_file):
    assert known.known() == known.written(), "run python -m seodang.recipes.options.known"


def test_every_verb_says_what_comes_first():
    assert set(FIRST) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_short_help_fits_a_screen_and_has_what_comes_first_under_its_headings(verb):
    lines = short_help(verb, 100).splitlines()
    assert len(lines) <= 45
    place = 0
    for heading, names in FIRST[verb].items():
        place = lines.index(heading, place)
        for name in names.split():
            place = next(i for i in range(place, len(lines)) if lines[i].split()[:1] == [f"--{name}"])


def test_no_help_imports_what_takes_long():
    code = f"""
import sys, time, seodang.__main__ as m
for verb in {[*VERBS]}:
    assert m.main([verb, "--help"]) == 0
print(time.process_time(), *sorted(name for name in sys.modules if name in ("torch", "transformers", "trl", "numpy", "datasets")))
"""
    *_, last = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    seconds, *heavy = last.split()
    assert not heavy and float(seconds) < 1  # all verbs together


@pytest.mark.parametrize("verb", VERBS)
def test_all_options_are_listed_on_demand(verb, capsys):
    assert main([verb, "--help", "all"]) == 0
    words = set(capsys.readouterr().out.replace(",", " ").replace("[", " ").split())
    names = known.known()[verb]["names"].split()
    assert not [name for name in names if f"--{name}" not in words]
    if verb in ("sft", "reward", "dpo", "kto", "ppo", "grpo", "rloo"):
        assert not {each.name for each in fields(TrainingArguments) if each.init} - set(names)


def test_help_for_programs_has_defaults(capsys):
    assert main(["sft", "-h", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["options"]["learning_rate"]["default"] == TrainingArguments.learning_rate
    assert told["options"]["output_dir"]["default"] == "runs/sft"


@pytest.mark.parametrize(
    ("verb", "argv", "message"),
    [
        ("generate", ["default", "hi", "--temprature", "1"], "unknown option 'temprature': did you mean temperature"),
        ("sft", ["--learning-rat=1"], "did you mean learning_rate"),
        ("sft", ["--output_dir", "FILE"], "--output_dir FILE: FILE is not a folder"),
        ("sft", ["--output-dir=FILE/x"], "FILE is not a folder"),
        ("sft", ["--config", "CONFIG"], "--output_dir FILE"),
        ("export", ["somewhere", "FILE"], "--output_dir FILE"),
        ("demo", ["--output_dir", "FILE"], "--output_dir FILE"),
        ("generate", ["default", "hi", "--output", "/nowhere/x"], "there is no folder /nowhere"),
        ("explain", ["default", "hi", "--html", "/nowhere/x"], "there is no folder /nowhere"),
        ("generate", ["default", "FOLDER/ask.txt", "--output=FOLDER/ask.txt"], "is what --prompts reads"),
        ("score", ["default", "--data", "FOLDER/ask.txt", "--output=/nowhere/my file"], "there is no folder /nowhere"),
        ("generate", ["a/b/c", "hi"], "model 'a/b/c' is not a folder"),
        ("ppo", ["--reward_model", "a/b/c"], "model 'a/b/c' is not a folder"),
        ("dpo", ["--data", "FILE.jsonl", "nowhere.jsonl", "--lora_r", "4"], "there is no file or folder FILE.jsonl"),
        ("sft", ["--data", "FOLDER/c.json", "nowhere.jsonl", "--config=CONFIG"], "--output_dir FILE"),
        ("preview", ["nowhere.csv"], "there is no file or folder nowhere.csv"),
        ("preview", ["FOLDER/k.csv"], "k.csv is not UTF-8 text (line 1, byte 1 of it): it looks like cp949"),
        ("sft", ["--data", "FOLDER/k.csv", "--encoding", "hangul"], "encoding 'hangul' is not known"),
        ("dpo", ["--data", "FOLDER/k.csv", "nowhere.csv", "--encoding", "cp949"], "there is no file or folder nowhere.csv"),
        ("score", ["default", "--data", "owner/name"], "dataset 'owner/name' is no file or folder"),
        ("sft", ["--config", "nowhere.yaml"], "--config nowhere.yaml: there is no such file"),
        ("pretrain", ["--data", "data/samples/plain.jsonl"], "data/samples/plain.jsonl: it comes with Seodang"),
        ("preview", ["data/samples/plain.jsonl"], "data/samples/plain.jsonl: it comes with Seodang, and `seodang setup --examples .`"),
        ("sft", ["--config", "recipes/sft.yaml"], "recipes/sft.yaml: there is no such file: it comes with Seodang, and `seodang setup"),
    ],
)
def test_mistakes_are_told_without_the_recipe(verb, argv, message, tmp_path, capsys, monkeypatch, versions_of_the_file):
    monkeypatch.setattr("importlib.import_module", lambda *_: pytest.fail("imported a recipe"))
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    (tmp_path / "ask.txt").write_text("", encoding="utf-8")
    (tmp_path / "k.csv").write_bytes("질문,답변".encode("cp949"))
    (tmp_path / "c.yaml").write_text(f"output_dir: {file}", encoding="utf-8")
    here = lambda text: text.replace("FILE", str(file)).replace("CONFIG", str(tmp_path / "c.yaml")).replace("FOLDER", str(tmp_path))
    assert main([verb, *map(here, argv)]) == 2
    assert here(message) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "argv"),
    [
        ("generate", ["default", "--no such option"]),  # a prompt
        ("generate", ["default", "--", "--nosuch"]),
        ("rlhf", ["--ppo.learning_rate", "1", "--reward.nosuch", "1"]),  # the sections know
        ("sft", ["--no_literal", "--lr_scheduler_type", "cosine", "--max_steps", "-1"]),
        ("score", ["default", "--shape", "-1"]),
        ("preview", ["--model", "default", "no/file/yet.jsonl"]),
        ("export", ["--model", "default", "new/folder"]),
    ],
)
def test_what_may_be_meant_is_left_to_the_recipe(verb, argv, tmp_path, monkeypatch, versions_of_the_file):
    monkeypatch.chdir(tmp_path)
    refuse(verb, argv)


def test_options_of_other_versions_are_left_to_the_recipe(monkeypatch, versions_of_the_file):
    with pytest.raises(UserError, match="nosuch"):
        refuse("sft", ["--nosuch", "1"])
    monkeypatch.setattr(known, "_versions", lambda: {"transformers": "5.23.9", "trl": "1.16.0"})
    refuse("sft", ["--nosuch", "1"])
