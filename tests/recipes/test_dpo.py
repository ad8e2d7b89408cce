import json
from pathlib import Path

import pytest
import yaml

from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import dpo
from seodang.train.run.callbacks import read_log


@pytest.fixture
def data(tmp_path):
    """Capital letters beat small ones, whatever the prompt."""
    path = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"say {word}", "chosen": word.upper(), "rejected": word} for word in ("ab", "bcd", "cd", "defg", "ef", "fgh", "gh", "hij", "kl", "lm")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*words):
    return dpo.main([str(word) for word in (*words, "--device", "cpu", "--dtype", "float32", "--report_to", "none")])


def test_pairs_are_learned_told_and_saved(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    code = run("--model", base, "--data", data, "--eval_fraction", 0.2, "--output_dir", out, "--num_train_epochs", 20, "--learning_rate", 1e-3, "--logging_steps", 1)
    told = capsys.readouterr().out
    assert code == 0, told
    assert "8 prompts, 16 answers, 8 pairs in 20 steps, loss sigmoid" in told and "accuracy        0.0% of held-out pairs before, 100.0% after" in told
    assert told.count("  before") == told.count("  after") == 2  # both held-out prompts, as they were answered
    verify(out)
    assert read_manifest(out)["step"] == 20
    assert read_log(out / "log.jsonl")[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_an_adapter_alone_is_saved_and_a_run_goes_on_where_it_stopped(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--model", base, "--data", data, "--output_dir", out, "--lora_r", 4, "--save_steps", 2, "--loss", "simpo", "--beta", 2,
             "--lr_scheduler_type", "constant")  # fmt: skip
    assert run(*words, "--max_steps", 2) == 0
    assert (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()
    assert run(*words, "--max_steps", 4) == 0
    assert "resume          from" in capsys.readouterr().out
    assert read_manifest(out)["step"] == 4


def test_a_run_without_a_log_names_no_picture(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--model", base, "--data", data, "--output_dir", out, "--max_steps", 1, "--logging_strategy", "no") == 0
    told = capsys.readouterr().out
    assert "loss curve" not in told and told.rstrip().endswith(f"checkpoint      {out}") and not (out / "loss.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "sigmoyd"], "did you mean sigmoid"),
        (["--loss", "robust"], "needs a label_smoothing above 0"),
        (["--beta", "0"], "beta must be a number above 0"),
        (["--reference_time", "later"], "reference_time must be one of step, before"),
        (["--betta", "1"], "did you mean beta?"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(base, data, tmp_path, capsys, words, message):
    assert run("--model", base, "--data", data, "--output_dir", tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err


def test_a_record_without_a_rejected_side_is_refused_by_its_line(base, tmp_path, capsys):
    path = tmp_path / "half.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a", "chosen": "b"}\n')
    assert run("--model", base, "--data", path, "--output_dir", tmp_path / "out") == 2
    assert "half.jsonl line 2: the rejected side is missing" in capsys.readouterr().err


def test_the_yaml_file_names_options_that_there_are(base, data, tmp_path):
    words = [str(word) for key, value in yaml.safe_load((Path(dpo.__file__).parent / "dpo.yaml").read_text()).items() if key != "model" for word in (f"--{key}", value)]
    assert run("--model", base, "--data", data, *words, "--output_dir", tmp_path / "out", "--dry_run") == 0


@pytest.mark.full
def test_two_processes_equal_one_with_twice_the_batch(base, data, tmp_path, on_two):
    common = ["--model", base, "--data", data, "--max_steps", 2, "--save_steps", 1, "--logging_steps", 1]  # two whole batches of the ten rows
    quick = ["--device", "cpu", "--dtype", "float32", "--report_to", "none"]
    on_two("dpo", *common, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2, *quick)
    assert run(*common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 4) == 0
    one, two = (read_log(tmp_path / folder / "log.jsonl") for folder in ("one", "two"))
    for name in ("loss", "rewards/margins", "rewards/accuracies"):
        first, second = ([entry[name] for entry in log if name in entry] for log in (one, two))
        assert first and first == pytest.approx(second, rel=1e-4, abs=1e-5), name
    verify(tmp_path / "two")
