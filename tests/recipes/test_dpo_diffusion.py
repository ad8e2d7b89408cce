"""seodang dpo on a diffusion checkpoint."""

import json
import re

import pytest

from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.infer.runners.paradigm import Diffusion, diffusion_of
from seodang.recipes import dpo, kto
from seodang.train.diffusion.dpo import diffusion_dpo_trainer
from seodang.train.run.callbacks import read_log


@pytest.fixture
def checkpoint(declared):
    """A tiny diffusion checkpoint's folder."""
    return declared(shift=1)


@pytest.fixture
def data(tmp_path):
    """Capital letters beat small ones, whatever the prompt."""
    path = tmp_path / "pairs.jsonl"
    words = ("ab", "ba", "aab", "aba", "baa", "bba", "bab", "abb", "abba", "baab")
    path.write_text("".join(json.dumps({"prompt": f"say {word}", "chosen": word.upper(), "rejected": word}) + "\n" for word in words), encoding="utf-8")
    return path


def run(*words):
    return dpo.main([str(word) for word in (*words, "--device", "cpu", "--dtype", "float32", "--report_to", "none")])


def test_pairs_are_learned_told_and_saved_and_the_run_goes_on(checkpoint, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--model", checkpoint, "--data", data, "--eval_fraction", 0.2, "--output_dir", out, "--learning_rate", 2e-3, "--draws", 4,
             "--lr_scheduler_type", "constant")  # fmt: skip
    assert run(*words, "--num_train_epochs", 20) == 0
    told = capsys.readouterr().out
    assert "8 prompts, 16 answers, 8 pairs in 20 steps, loss sigmoid" in told
    accuracy, margin = (float(re.search(rf"{name} .*before, ([-\d.]+)", told)[1]) for name in ("accuracy  ", "margin  "))
    assert "accuracy        0.0% of held-out pairs before, " in told and accuracy == 100 and margin > 0.5, (accuracy, margin)
    assert "diffusion       bidirectional, shift 1, 4 masks an answer and step, the reference's the same" in told
    assert told.count("  before") == told.count("  after") == 2
    verify(out)
    assert read_manifest(out)["paradigm"] == "diffusion" and diffusion_of(load(out, device="cpu")[0].config) == Diffusion(127, 1)
    assert run(*words, "--num_train_epochs", 21) == 0
    assert "resume          from" in capsys.readouterr().out and read_manifest(out)["step"] == 21
    assert run(*words, "--num_train_epochs", 21, "--draws", 5) == 2
    assert "--draws 4, now 5" in capsys.readouterr().err


def test_an_adapter_on_a_canvas(checkpoint, data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(dpo, "diffusion_dpo_trainer", lambda *args, **how: (seen.append((args[2], how["draws"])), diffusion_dpo_trainer(*args, **how))[1])
    out = tmp_path / "out"
    words = ("--model", checkpoint, "--data", data, "--output_dir", out, "--lora_r", 4, "--loss", "ipo", "--max_steps", 2, "--canvas", 4)
    assert run(*words) == 0
    [(rows, draws)] = seen
    assert draws == 8 and rows[0]["branches"] == [[*ids, *[2] * (-len(ids) % 4)] for ids in ([36, 37, 2], [68, 69, 2])]  # "AB" and "ab", each with its end
    assert (out / "adapter_model.safetensors").is_file() and diffusion_of(load(out, device="cpu")[0].config) == Diffusion(127, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--draws", "0"], "draws must be a whole number of at least 1, got 0"),
        (["--canvas", "0"], "canvas must be at least 1, got 0"),
        (["--loss", "sigmoyd"], "did you mean sigmoid"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(checkpoint, data, tmp_path, capsys, words, message):
    assert run("--model", checkpoint, "--data", data, "--output_dir", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_is_of_one_way_to_speak_is_refused_for_the_other(base, declared, data, tmp_path, capsys):
    assert run("--model", base, "--data", data, "--output_dir", tmp_path / "out", "--draws", 4) == 2
    assert "--draws 4 is of masked diffusion, but this llama speaks from left to right, and its likelihoods are exact" in capsys.readouterr().err
    declared(shift=1)
    assert kto.main(["--model", str(base), "--data", str(data), "--output_dir", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "kto teaches text from left to right, but this model is one of masked diffusion" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("time", ["step", "before"])
def test_two_processes_equal_one_with_twice_the_batch(checkpoint, data, tmp_path, on_two, time):
    common = ["--model", checkpoint, "--data", data, "--max_steps", 4, "--logging_steps", 1, "--draws", 3, "--learning_rate", 1e-3, "--reference_time", time]
    quick = ["--device", "cpu", "--dtype", "float32", "--report_to", "none"]
    on_two("dpo", *common, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2, *quick)
    assert run(*common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 4) == 0
    one, two = (read_log(tmp_path / folder / "log.jsonl") for folder in ("one", "two"))
    for name in ("loss", "rewards/margins"):
        first, second = ([entry[name] for entry in log if name in entry] for log in (one, two))
        assert len(first) == 4 and first[:2] == pytest.approx(second[:2], rel=1e-4, abs=1e-5), name  # two whole batches of the ten rows
