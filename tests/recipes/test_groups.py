"""seodang grpo, rloo and kto, run as a user runs them."""

import json

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from seodang.infer.checkpoint.manifest import verify
from seodang.recipes import grpo, kto, rloo
from seodang.train.run.callbacks import read_log

QUICK = ["--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]
SMALL = ["--num_generations", "4", "--per_device_train_batch_size", "8", "--max_completion_length", "8", "--learning_rate", "1e-2",
         "--lr_scheduler_type", "constant", "--temperature", "1.0"]  # fmt: skip
RECIPES = {"grpo": grpo, "rloo": rloo}


@pytest.fixture
def base(fresh_tiny, tiny_tokenizer, tmp_path):
    folder = tmp_path / "base"
    fresh_tiny("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def questions(tmp_path):
    return written(tmp_path / "questions.jsonl", [{"question": f"say {letter}", "answer": letter} for letter in "abcdefgh"])


@pytest.fixture
def share(tmp_path):
    """A user's own reward: the share of a given letter, the letter from nowhere but the file."""
    path = tmp_path / "mine.py"
    path.write_text("def share(completions, answer, prompts):\n    return [text.count('a') / 8 for text in completions]\n")
    return f"{path}:share"


@pytest.mark.parametrize("verb", ["grpo", pytest.param("rloo", marks=pytest.mark.full)])
def test_a_users_reward_rises_and_the_checkpoint_answers_in_plain_transformers(verb, base, questions, share, tmp_path, capsys):
    out = tmp_path / "out"
    code = RECIPES[verb].main(
        ["--model", base, "--data", questions, "--output_dir", str(out), "--reward", share, "--max_steps", "40", "--eval_fraction", "0.25",
         "--eval_samples", "1", "--save_strategy", "steps", "--save_steps", "20", "--beta", "0.001", *SMALL, *QUICK]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert code == 0
    assert "6 prompts, 2 at a time with 4 answers each, in 40 steps" in printed and "1 x share" in printed and "held out        2 prompts" in printed
    before, after = (float(words[-2]) for words in (part.split() for part in printed.split("held-out reward ")[1].splitlines()[0].split(",")))
    assert after > before + 0.2 and "  after" in printed
    verify(out)
    log = [entry for entry in read_log(out / "log.jsonl") if "rewards/share/mean" in entry]
    rewards = [entry["rewards/share/mean"] for entry in log]
    assert len(rewards) == 40 and sum(rewards[-5:]) > 4 * sum(rewards[:5]) + 0.5
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    ids = torch.tensor([tokenizer("<|im_start|>user\nsay q<|im_end|>\n<|im_start|>assistant\n")["input_ids"]])
    said = model.generate(ids, max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))[0, ids.shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True).count("a") >= 4


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(base, questions, tmp_path, capsys):
    arguments = ["--model", base, "--data", questions, "--reward", "length:6:characters", "--save_strategy", "steps", "--save_steps", "2",
                 "--beta", "0.01", *SMALL, *QUICK]  # fmt: skip
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert grpo.main([*arguments, "--output_dir", str(once), "--max_steps", "4"]) == 0
    assert grpo.main([*arguments, "--output_dir", str(twice), "--max_steps", "2"]) == 0
    assert grpo.main([*arguments, "--output_dir", str(twice), "--max_steps", "4"]) == 0
    assert "resume          from" in capsys.readouterr().out
    whole, parts = ([e for e in read_log(folder / "log.jsonl") if "reward" in e] for folder in (once, twice))
    assert [e["step"] for e in parts] == [1, 2, 3, 4]
    for name in ("reward", "kl", "grad_norm"):
        assert [e[name] for e in whole] == pytest.approx([e[name] for e in parts], abs=1e-5), name
    assert whole[3]["kl"] > 0.01
    assert grpo.main([*arguments, "--output_dir", str(twice), "--max_steps", "6", "--reward", "length:4"]) == 2
    assert 'was trained with --reward ["length:6:characters"], now ["length:6:characters", "length:4"]' in capsys.readouterr().err


def test_several_rewards_a_reward_model_and_lora_go_together(base, questions, tiny_tokenizer, fresh_tiny, tmp_path, capsys):
    judge = tmp_path / "judge"
    config = AutoConfig.from_pretrained(base, num_labels=1, pad_token_id=0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(judge)
    tiny_tokenizer.save_pretrained(judge)
    out = tmp_path / "out"
    code = grpo.main(
        ["--model", base, "--data", questions, "--output_dir", str(out), "--reward", "length:2", "contains:a", "--reward", "exact_answer",
         "--reward_model", str(judge), "--reward_weights", "1", "0.5", "2", "0.1", "--max_steps", "2", "--lora_r", "4", "--beta", "0.1",
         "--gradient_accumulation_steps", "2", "--save_strategy", "no", *SMALL, *QUICK]
    )  # fmt: skip
    assert code == 0
    assert "1 x length + 0.5 x contains + 2 x exact_answer + 0.1 x reward_model" in capsys.readouterr().out
    entry = next(e for e in read_log(out / "log.jsonl") if "reward" in e)
    parts = [entry[f"rewards/{name}/mean"] for name in ("length", "contains", "exact_answer", "reward_model")]
    assert entry["reward"] == pytest.approx(parts[0] + 0.5 * parts[1] + 2 * parts[2] + 0.1 * parts[3], abs=1e-5)
    assert (out / "adapter_model.safetensors").is_file()


def test_rewards_in_a_file_give_way_to_those_on_the_command_line(base, questions, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({"model": base, "data": [questions], "reward": ["length:2", "contains:a"]}))
    arguments = ["--config", str(config), "--dry_run", "true", "--output_dir", str(tmp_path / "out"), *SMALL, *QUICK]
    assert grpo.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "1 x length + 1 x contains" in printed and "in 4 steps" in printed  # 8 prompts, 2 a step
    assert grpo.main([*arguments, "--reward", "exact_answer"]) == 0
    assert "reward          1 x exact_answer\n" in capsys.readouterr().out
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "give --reward or --reward_model"),
        (["--reward", "lenght:3"], "did you mean length"),
        (["--reward", "length:3", "--num_generations", "3"], "must be divisible by num_generations (3)"),
        (["--reward", "length:3", "--max_prompt_length", "4"], "more than max_prompt_length 4"),
        (["--reward", "length:3", "--eval_fraction", "0.2", "--per_device_eval_batch_size", "6"], "set it to a multiple of 4"),
        (["--reward", "length:3", "--reward_weights", "1", "2"], "2 reward_weights for 1 rewards"),
        (["--reward", "length:3", "--max_completion_length", "250"], "more than the model's context of 256"),
        (["--reward", "length:3", "--reword", "x"], "did you mean reward"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(base, questions, tmp_path, capsys, more, message):
    assert grpo.main(["--model", base, "--data", questions, "--output_dir", str(tmp_path / "out"), *SMALL, *QUICK, *more]) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0], error
    assert "Traceback" not in error


def test_a_reward_of_no_number_stops_the_command(base, questions, tmp_path, capsys):
    (tmp_path / "bad.py").write_text("def bad(prompts, completions):\n    return [float('nan')] * len(completions)\n")
    arguments = ["--model", base, "--data", questions, "--output_dir", str(tmp_path / "out"), *SMALL, *QUICK]
    assert rloo.main([*arguments, "--reward", f"{tmp_path / 'bad.py'}:bad"]) == 2
    assert "reward bad returned nan for the completion" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("verb", ["grpo", "rloo"])
def test_two_processes_share_groups_and_prompts(verb, base, questions, share, tmp_path, on_two):
    """Four answers a prompt, two on each process."""
    out = tmp_path / "out"
    on_two(verb, "--model", base, "--data", questions, "--reward", share, "--output_dir", out, "--max_steps", 2, "--save_strategy", "no",
           *SMALL, *QUICK, "--per_device_train_batch_size", 2, "--beta", 0.1, "--use_cpu", "true")  # fmt: skip
    verify(out)
    assert [e["step"] for e in read_log(out / "log.jsonl") if "reward" in e] == [1, 2]


# KTO


@pytest.fixture
def judged(tmp_path):
    records = [{"prompt": f"say {a}", "completion": said, "label": said == "yes!"} for a in "abcdefgh" for said in ("yes!", "no.")]
    return written(tmp_path / "judged.jsonl", records)


def test_kto_moves_held_out_accuracy_and_prints_answers_before_and_after(base, judged, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--model", base, "--data", judged, "--output_dir", str(out), "--eval_fraction", "0.25", "--learning_rate", "3e-3",
                 "--per_device_train_batch_size", "4", "--eval_samples", "2", "--save_strategy", "steps", "--save_steps", "15", *QUICK]  # fmt: skip
    assert kto.main([*arguments, "--num_train_epochs", "10"]) == 0
    printed = capsys.readouterr().out
    assert "6 good and 6 bad answers in 30 steps" in printed and "held out        4 answers" in printed
    assert "of pairs to one prompt 100.0%" in printed and printed.count("  before") == printed.count("  after") == 2
    verify(out)
    assert [e["step"] for e in read_log(out / "log.jsonl") if "rewards/margins" in e][-1] == 30
    assert kto.main([*arguments, "--num_train_epochs", "11"]) == 2
    assert "--num_train_epochs 10.0, now 11.0: " in capsys.readouterr().err
    assert kto.main([*arguments, "--num_train_epochs", "11", "--allow_changes", "num_train_epochs"]) == 0
    assert "resume          from" in capsys.readouterr().out and [e["step"] for e in read_log(out / "log.jsonl") if "loss" in e] == list(range(1, 34))


@pytest.mark.full
def test_kto_on_two_processes_equals_one_with_twice_the_batch(base, judged, tmp_path, on_two):
    """With a loss that does not estimate the KL divergence from the batch's own neighbours, which are others in half a batch."""
    common = ["--model", base, "--data", judged, "--loss_type", "apo_zero_unpaired", "--eval_fraction", "0.25", "--learning_rate", "1e-3", "--max_steps", "3",
              "--eval_strategy", "steps", "--eval_steps", "3", "--save_strategy", "no", *QUICK]  # fmt: skip
    on_two("kto", *common, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2)
    assert kto.main([*common, "--output_dir", str(tmp_path / "one"), "--per_device_train_batch_size", "4"]) == 0
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    for name in ("loss", "rewards/margins", "eval_accuracy", "eval_pair_accuracy"):
        first, second = ([entry[name] for entry in log if name in entry] for log in (one, two))
        assert first and first == pytest.approx(second, rel=1e-4, abs=1e-6), name
    verify(tmp_path / "two")


def test_kto_takes_pairs_and_rankings_apart(base, tmp_path, capsys):
    records = [{"prompt": f"say {a}", "responses": [a * 2, a.upper(), a * 3], "ranks": [1, 0, 2]} for a in "abcd"]
    arguments = ["--model", base, "--output_dir", str(tmp_path / "out"), "--dry_run", "true", *QUICK]
    assert kto.main([*arguments, "--data", written(tmp_path / "ranked.jsonl", records)]) == 0
    assert "4 good and 4 bad answers in 1 steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("label", "more", "message"),
    [
        (True, [], "judged good"),
        (None, ["--per_device_train_batch_size", "1"], "2 or more"),
        (None, ["--max_length", "4"], "max_length"),
    ],
)
def test_what_kto_cannot_learn_from_is_refused(base, tmp_path, capsys, label, more, message):
    records = [{"prompt": f"say {i}", "completion": "no" * i, "label": i % 2 == 0 if label is None else label} for i in range(1, 7)]
    path = written(tmp_path / "data.jsonl", records)
    assert kto.main(["--model", base, "--data", path, "--output_dir", str(tmp_path / "out"), *QUICK, *more]) == 2
    assert message in capsys.readouterr().err
