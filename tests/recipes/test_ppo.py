import json
from pathlib import Path

import pytest
import yaml

from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import ppo
from seodang.train.run.callbacks import read_log

SMALL = ("--iterations", 2, "--rollouts", 8, "--minibatches", 2, "--epochs", 1, "--max_new_tokens", 6, "--per_device_train_batch_size", 4)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {i}", "answer": str(i)}) + "\n" for i in range(10)))
    return path


def run(*words):
    return ppo.main([str(word) for word in (*words, "--device", "cpu", "--dtype", "float32", "--report_to", "none")])


@pytest.mark.painted
def test_a_users_function_is_learned_from_with_the_records_columns(base, data, tmp_path, capsys):
    mine, out = tmp_path / "mine.py", tmp_path / "out"
    mine.write_text(
        "def low(prompts, completions, answer, **columns):\n"
        "    assert all(prompt[-1]['content'] == f'say {a}' for prompt, a in zip(prompts, answer, strict=True))\n"
        "    return [len(set(text) & set('abcdefgh')) / 8 for text in completions]\n"
    )
    code = run("--model", base, "--data", data, "--eval_fraction", 0.2, "--reward", f"{mine}:low", "--output_dir", out, *SMALL)
    told = capsys.readouterr().out
    assert code == 0, told
    assert "2 iterations of 8 answers to 8 prompts, 2 updates each" in told and "held-out reward" in told and "curves          " in told
    verify(out)
    log = [entry for entry in read_log(out / "log.jsonl") if "reward/mean" in entry]
    assert [entry["iteration"] for entry in log] == [1, 2] and (out / "curves.png").stat().st_size > 10_000


def test_a_run_goes_on_where_it_stopped(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--model", base, "--data", data, "--reward", "length:4:characters", "--output_dir", out, *SMALL[2:], "--save_steps", 1, "--lora_r", 4)
    assert run(*words, "--iterations", 1) == 0
    assert run(*words, "--iterations", 3, "--allow_changes", "iterations") == 0
    assert "resume          from" in capsys.readouterr().out
    assert read_manifest(out)["step"] == 6
    assert [entry["iteration"] for entry in read_log(out / "log.jsonl") if "reward/mean" in entry] == [1, 2, 3]


def test_a_run_without_a_log_names_no_picture(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = ("--model", base, "--data", data, "--reward", "length:4", "--output_dir", out, *SMALL[2:], "--iterations", 1)
    assert run(*words, "--logging_strategy", "no", "--save_strategy", "no") == 0
    told = capsys.readouterr().out
    assert "curves" not in told and "None" not in told and told.rstrip().endswith(f"checkpoint      {out}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "there is no reward to learn from: give --reward or --reward_model"),
        (["--eval_fraction", "0.5", "--metric_for_best_model", "loss"], "metric_for_best_model 'loss' is not measured: an evaluation gives reward, kl, length"),
        (["--reward", "lenght:4"], "did you mean length"),
        (["--reward", "exact_answer", "--kl_estimator", "k9"], "kl_estimator must be one of k1, k2, k3"),
        (["--reward", "exact_answer", "--rollouts", "9"], "rollouts 9 cannot be cut into 2"),
        (["--reward", "exact_answer", "--max_prompt_length", "5"], "more than max_prompt_length 5"),
        (["--reward", "MINE:near", "--model", "EMPTY"], "reward near needs the column solution, but the records have answer: add it"),
        (["--reward", "MINE:bare"], "reward bare takes prompts, but not completions"),
        (["--reward", "exact_answer", "--max_new_tokens", "250"], "more than the model's context of 256"),
        (["--reward", "exact_answer", "--lora_r", "4", "--lora_dropout", "0.1"], "lora_dropout 0.1 would make"),
    ],
)
def test_mistakes_are_told_before_anything_is_sampled(base, data, tmp_path, capsys, words, message):
    mine, empty = tmp_path / "mine.py", tmp_path / "empty"  # a tokenizer alone: loading the model would fail
    mine.write_text("def near(completions, solution):\n    return []\ndef bare(prompts):\n    return []\n")
    empty.mkdir()
    for path in [*base.glob("tokenizer*"), *base.glob("chat_template*"), base / "config.json"]:
        (empty / path.name).write_bytes(path.read_bytes())
    words = [word.replace("MINE", str(mine)).replace("EMPTY", str(empty)) for word in words]
    assert run("--model", base, "--data", data, "--output_dir", tmp_path / "out", *SMALL, *words) == 2
    assert message in capsys.readouterr().err


def test_the_yaml_file_names_options_that_there_are(base, data, tmp_path):
    values = yaml.safe_load((Path(ppo.__file__).parent / "ppo.yaml").read_text())
    words = [str(word) for key, value in values.items() if key != "model" for word in (f"--{key}", value)]
    assert run("--model", base, "--data", data, "--reward", "exact_answer", *words, "--output_dir", tmp_path / "out", "--dry_run") == 0


@pytest.mark.full
def test_two_processes_equal_one_with_twice_the_batch(base, data, tmp_path, on_two):
    common = ["--model", base, "--data", data, "--eval_data", data, "--reward", "length:4:characters", "--iterations", 2, "--rollouts", 8, "--minibatches", 1, "--epochs", 1,
              "--max_new_tokens", 6, "--save_steps", 1, "--whiten_rewards", "true"]  # fmt: skip
    quick = ["--device", "cpu", "--dtype", "float32", "--report_to", "none"]
    on_two("ppo", *common, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2, *quick)
    assert run(*common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 4) == 0
    one, two = (read_log(tmp_path / folder / "log.jsonl") for folder in ("one", "two"))
    for name in ("reward/mean", "kl", "entropy", "length/mean", "policy_loss", "value_loss", "eval_reward"):
        first, second = ([entry[name] for entry in log if name in entry] for log in (one, two))
        assert first and first == pytest.approx(second, rel=1e-4, abs=1e-5), name
    verify(tmp_path / "two")
