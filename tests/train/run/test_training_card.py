"""The card of a checkpoint says of what, by which settings and how far it was trained, and how it is run; nothing of the clock."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForSequenceClassification

from seodang.__main__ import main as seodang
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.train.run.training_card import Trained, training_card

QUICK = "--device cpu --dtype float32 --report_to none --disable_tqdm true --per_device_train_batch_size 2 --logging_steps 1".split()


def parts(card):
    """The header, and the text under each heading."""
    _, header, body = card.split("---\n", 2)
    first, *sections = body.split("\n## ")
    return yaml.safe_load(header), first, {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}


def rows(table):
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| ")][2:]


def test_a_card_is_made_of_what_it_is_told_and_keeps_no_time(fresh_tiny, tiny_tokenizer):
    log = [{"loss": 2.0, "learning_rate": 1e-3, "step": 1}, {"loss": 0.12341, "epoch": 1.0, "step": 2}, {"eval_loss": 0.5, "eval_runtime": 3.0, "step": 2},
           {"eval_accuracy": float("nan"), "step": 2}, {"train_samples_per_second": 9.0, "total_flos": 1e9, "step": 2}]  # fmt: skip
    about = Trained(
        "first", "SftTrainer", "default", "causal", 2, 4, "0123456789abcdef", ["a.jsonl"], ["records         8 read"], {"seed": 7, "text": "a|`b`\nc", "more": [1]}, log
    )
    header, first, sections = parts(training_card(about, fresh_tiny("llama"), tiny_tokenizer))
    assert header == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "tags": ["seodang"],
    }  # fmt: skip
    assert "Trained from HuggingFaceTB/SmolLM2-135M-Instruct, by Seodang's SftTrainer, 2 of 4 steps (torch " in first
    assert "- a.jsonl" in sections["Data"] and "records         8 read" in sections["Data"] and "`0123456789abcdef`" in sections["Data"]
    settings = "Settings that differ from their defaults"
    assert rows(sections[settings])[:2] == [["more", "[1]"], ["seed", "7"]] and "| `text` | `a\\|'b' c` |" in sections[settings]
    assert rows(sections["Figures"]) == [["eval_loss", "0.5", "2"], ["loss", "0.1234", "2"]]
    assert "seodang generate . 'Name three colours.'" in sections["Seodang"]


@pytest.mark.parametrize(("paradigm", "task", "command"), [
    ("classification", "text-classification", "seodang classify --model . --data texts.txt --predict"),
    ("embedding", "sentence-similarity", "seodang embed --model . --data texts.txt"), ("masked", "fill-mask", "seodang fill-mask ."),
    ("diffusion_lm", None, "seodang diffusion-lm-sample --model ."),
])  # fmt: skip
def test_what_is_no_language_model_is_run_by_its_own_command(paradigm, task, command):
    header, first, sections = parts(training_card(Trained("m", "Trainer", "", paradigm, 1, 1), None, None))
    assert header.get("pipeline_tag") == task and command in sections["Seodang"] and "Trained from nothing" in first
    assert set(sections) == {"Seodang"}


def test_names_of_several_lines_are_in_one():
    _, first, sections = parts(training_card(Trained("a\n## b", "Trainer", "", "masked", 1, 1, data=["x\n## y.jsonl"]), None, None))
    assert first.lstrip().startswith("# a ## b\n") and "- x ## y.jsonl\n" in sections["Data"] and set(sections) == {"Data", "Seodang"}


def test_a_reward_models_lines_are_its_own(fresh_tiny, tiny_tokenizer):
    model = AutoModelForSequenceClassification.from_config(fresh_tiny("llama", num_labels=1).config)
    header, _, sections = parts(training_card(Trained("m", "RewardModelTrainer", "x", "reward", 1, 1), model, tiny_tokenizer))
    assert header["pipeline_tag"] == "text-classification" and "AutoModelForSequenceClassification" in sections["transformers"] and "vLLM" not in sections


@pytest.fixture
def trained(fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    """`trained(name, *words)`: an SFT run of two steps in a folder of that name."""
    monkeypatch.chdir(tmp_path)
    fresh_tiny("llama").save_pretrained("base")
    tiny_tokenizer.save_pretrained("base")
    Path("data.jsonl").write_text("".join(json.dumps({"prompt": f"say {letter}", "completion": letter * 3}) + "\n" for letter in "abcd"), encoding="utf-8")

    def run(name, *words):
        assert seodang(["sft", "--model", "base", "--data", "data.jsonl", "--output_dir", name, "--max_steps", "2", "--save_steps", "1", *QUICK, *words]) == 0
        return tmp_path / name

    return run


def test_each_checkpoint_that_is_published_has_its_card_and_the_same_run_has_the_same(trained, tmp_path, monkeypatch, capsys):
    folder = trained("one/run", "--learning_rate", "0.01", "--weight_decay", "0.0", "--eval_fraction", "0.25", "--seed", "5")
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    for place, step in ((folder / "checkpoint-1", 1), (folder / "checkpoint-2", 2), (folder, 2)):
        header, first, sections = parts((place / "README.md").read_text(encoding="utf-8"))
        assert "README.md" in verify(place)["files"] and f"# run\n\nTrained from base, by Seodang's SftTrainer, {step} of 2 steps" in first
        loss = [entry["loss"] for entry in log if "loss" in entry and entry["step"] <= step][-1]
        assert ["loss", f"{loss:.4g}", str(step)] in rows(sections["Figures"])
        assert f"`{read_manifest(place)['data']}`" in sections["Data"] and "- data.jsonl" in sections["Data"]
        told = dict(rows(sections["Settings that differ from their defaults"]))
        assert {name: told[name] for name in ("learning_rate", "seed", "max_steps", "eval_fraction")} == {
            "learning_rate": "0.01", "seed": "5", "max_steps": "2", "eval_fraction": "0.25",
        }  # fmt: skip
        assert not {"weight_decay", "output_dir", "save_steps"} & told.keys()  # the default's own value, and what teaches nothing
    assert "records         3 read, 3 kept in 3 rows" in sections["Data"]
    again = trained("two/run", "--learning_rate", "0.01", "--weight_decay", "0.0", "--eval_fraction", "0.25", "--seed", "5")
    assert (again / "README.md").read_bytes() == (folder / "README.md").read_bytes()
    monkeypatch.chdir(folder)
    capsys.readouterr()
    code = sections["transformers"].split("```python\n")[1].split("```")[0]
    exec(code, {})  # noqa: S102
    assert capsys.readouterr().out
    command = next(line for line in sections["Seodang"].splitlines() if line.startswith("seodang generate"))
    assert seodang([*shlex.split(command)[1:], "--max_new_tokens", "2", "--device", "cpu"]) == 0


def test_an_adapters_card_is_ours_and_says_how_to_merge_it(trained):
    folder = trained("adapter", "--lora_r", "2")
    header, first, sections = parts((folder / "README.md").read_text(encoding="utf-8"))
    assert header["library_name"] == "peft" and "An adapter of base" in first
    assert "seodang export . FOLDER" in sections["Seodang"] and "vLLM" not in sections and dict(rows(sections["Settings that differ from their defaults"]))["lora_r"] == "2"
