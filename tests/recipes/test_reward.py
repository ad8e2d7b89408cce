import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import read_manifest, verify
from seodang.recipes import export, reward
from seodang.recipes.options.preference import hold_out_dialogues
from seodang.train.rewards.scoring import score_answers
from seodang.train.run.callbacks import read_log

QUICK = ["--learning_rate", "1e-2", "--logging_steps", "1", "--disable_tqdm", "true", "--report_to", "none", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture
def base(fresh_tiny, tiny_tokenizer, tmp_path):
    """A tiny language model's folder that pads with what ends a turn, as SmolLM2 does."""
    folder = tmp_path / "base"
    fresh_tiny("llama", pad_token_id=2, tie_word_embeddings=True).save_pretrained(folder)
    tiny_tokenizer.pad_token = "<|im_end|>"
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def answers(number):
    """Two letters and an exclamation mark beat two letters and a full stop."""
    letters = "abcdefgh"[number % 8] + "hgfedcba"[number // 8 % 8]
    return f"{letters}!", f"{letters}."


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    records = [{"prompt": f"say {i}", **dict(zip(("chosen", "rejected"), answers(i), strict=True))} for i in range(60)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(*argv):
    return reward.main([*map(str, argv), *QUICK])


def test_a_rule_is_learned_from_pairs_and_the_plain_folder_knows_it(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    code = run("--model", base, "--data", data, "--output_dir", out, "--eval_fraction", 0.2, "--num_train_epochs", 6, "--save_strategy", "epoch")
    printed = capsys.readouterr().out
    assert code == 0
    assert "training        48 prompts, 96 answers, 48 pairs in 36 steps" in printed and "held out        12 prompts, 24 answers, 12 pairs" in printed
    assert "pair accuracy   100.0% of 12 held-out pairs" in printed and "by length       50.0% of them" in printed and printed.rstrip().endswith(str(out))
    verify(out)
    assert read_manifest(out)["paradigm"] == "reward" and (out / "loss.png").is_file()
    evaluations = [entry["eval_accuracy"] for entry in read_log(out / "log.jsonl") if "eval_accuracy" in entry]
    assert len(evaluations) == 7 and evaluations[-1] == 1.0
    model, tokenizer = load(out, device="cpu", dtype="float32")
    prompts = [[{"role": "user", "content": "say x"}]] * 2
    better, worse = score_answers(model, tokenizer, prompts, ["fg!", "fg."])
    assert better > worse + 1
    plain, own = AutoModelForSequenceClassification.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    text = "<|im_start|>user\nsay x<|im_end|>\n<|im_start|>assistant\nfg{}<|im_end|>"
    with torch.no_grad():
        found = plain(**own([text.format("!"), text.format(".")], padding=True, return_tensors="pt")).logits[:, 0]
    assert found.tolist() == pytest.approx([better, worse], abs=1e-4)


def test_ranked_lists_are_learned_in_all_their_pairs(base, tmp_path, capsys):
    path, out = tmp_path / "ranked.jsonl", tmp_path / "out"
    records = [{"prompt": f"say {i}", "responses": [answers(i)[1], answers(i)[0], "what?"], "ranks": [1, 0, 2]} for i in range(20)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    code = run("--model", base, "--data", path, "--output_dir", out, "--eval_fraction", 0.2, "--num_train_epochs", 10, "--save_strategy", "no")
    printed = capsys.readouterr().out
    assert code == 0 and "16 prompts, 48 answers, 48 pairs" in printed
    assert "pair accuracy   100.0% of 12 held-out pairs, best answer first 100.0% of 4 prompts" in printed


def test_no_dialogue_lies_on_both_sides():
    """Records that ask the same, and all turns of a tree, are held out together."""
    say = lambda text: {"role": "user", "content": text}
    prompts = [[say(f"q{i // 3}"), {"role": "assistant", "content": "?"}, say(f"more {i}")][: 1 if i % 3 == 0 else 3] for i in range(30)]
    examples = [SimpleNamespace(prompt=[{"role": "system", "content": "s"}, *prompt], number=i) for i, prompt in enumerate(prompts)]
    taught, held = hold_out_dialogues(examples, 0.2, seed=3)
    assert len(held) == 6 and len(taught) == 24
    assert not {e.number // 3 for e in taught} & {e.number // 3 for e in held}
    again, other = ([e.number for e in hold_out_dialogues(examples, 0.2, seed)[1]] for seed in (3, 4))
    assert again == [e.number for e in held] != other


def test_dry_run_prints_counts_and_writes_nothing(base, data, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--model", base, "--data", data, "--output_dir", out, "--eval_fraction", 0.2, "--dry_run", "true", "--per_device_train_batch_size", 5) == 0
    assert "48 pairs in 10 steps" in capsys.readouterr().out
    assert not list(out.rglob("*.safetensors"))


def test_the_config_file_beside_the_recipe_is_whole(base, data, tmp_path, capsys):
    config = Path(reward.__file__).with_name("reward.yaml")
    assert run("--config", config, "--model", base, "--data", data, "--output_dir", tmp_path / "out", "--max_length", 256, "--dry_run", "true") == 0
    assert "held out        12 prompts" in capsys.readouterr().out


def test_an_adapter_is_trained_with_its_head_and_export_merges_them(base, data, tmp_path, capsys):
    out, merged = tmp_path / "out", tmp_path / "merged"
    options = ["--eval_fraction", 0.2, "--num_train_epochs", 10, "--save_strategy", "no", "--lora_r", 8]
    assert run("--model", base, "--data", data, "--output_dir", out, *options) == 0
    assert "pair accuracy   100.0%" in capsys.readouterr().out
    assert (out / "adapter_model.safetensors").is_file() and not (out / "model.safetensors").exists()
    assert export.main([str(out), str(merged)]) == 0
    prompts = [[{"role": "user", "content": "say x"}]] * 2
    adapted, whole = (score_answers(*load(folder, device="cpu", dtype="float32"), prompts, ["fg!", "fg."]) for folder in (out, merged))
    assert adapted == pytest.approx(whole, abs=1e-3) and adapted[0] > adapted[1]
    plain = AutoModelForSequenceClassification.from_pretrained(merged)
    assert plain.config.num_labels == 1 and plain.config.pad_token_id == 0


def test_a_run_cut_short_goes_on_and_refuses_other_data(base, data, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other.jsonl"
    other.write_text(Path(data).read_text())
    arguments = ["--model", base, "--output_dir", out, "--save_steps", 2, "--lr_scheduler_type", "constant"]
    assert run(*arguments, "--data", data, "--max_steps", 2) == 0
    assert run(*arguments, "--data", data, "--max_steps", 4) == 0
    assert [e["step"] for e in read_log(out / "log.jsonl") if "loss" in e] == [1, 2, 3, 4]
    assert run(*arguments, "--data", other, "--max_steps", 6) == 2
    assert f'was trained with --data ["{data}"], now ["{other}"]' in capsys.readouterr().err


def test_a_reward_model_can_be_trained_on(base, data, tmp_path, capsys):
    """Its head is kept: the second run begins where the first ended."""
    first = tmp_path / "first"
    common = ["--data", data, "--eval_fraction", 0.2, "--save_strategy", "no"]
    assert run("--model", base, *common, "--output_dir", first, "--num_train_epochs", 6) == 0
    assert run("--model", first, *common, "--output_dir", tmp_path / "second", "--max_steps", 1) == 0
    losses = [entry["loss"] for entry in read_log(tmp_path / "second" / "log.jsonl") if "loss" in entry]
    assert losses[0] < 0.1
    adapter = tmp_path / "adapter"
    assert run("--model", base, *common, "--output_dir", adapter, "--max_steps", 1, "--lora_r", 2) == 0
    capsys.readouterr()
    assert run("--model", adapter, *common, "--output_dir", tmp_path / "third") == 2
    assert "merge it first, `seodang export" in capsys.readouterr().err


@pytest.mark.full
def test_two_processes_equal_one_with_twice_the_batch(base, data, tmp_path, on_two):
    common = ["--model", base, "--data", data, "--eval_fraction", 0.15, "--max_steps", 3, "--save_strategy", "steps", "--save_steps", 2]
    on_two("reward", *common, "--output_dir", tmp_path / "two", "--per_device_train_batch_size", 2, *QUICK)
    assert run(*common, "--output_dir", tmp_path / "one", "--per_device_train_batch_size", 4) == 0
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    for name in ("loss", "accuracy", "min_reward", "mean_reward", "eval_loss", "eval_accuracy", "eval_margin"):
        first, second = ([entry[name] for entry in log if name in entry] for log in (one, two))
        assert first and first == pytest.approx(second, rel=1e-4, abs=1e-5), name  # mean_reward lies near 0
    verify(tmp_path / "two" / "checkpoint-2")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--lerning_rate", "1"], "did you mean learning_rate"),
        (["--eval_fraction", "2"], "eval_fraction must be in [0, 1), got 2.0"),
        (["--eval_fraction", "0.999"], "leaves nothing to train on of 60 examples"),
        (["--pair_weights", "answer"], "pair_weights must be prompt or pair, got 'answer'"),
        (["--early_stopping_patience", "2"], "give --eval_data or --eval_fraction"),
        (["--eval_samples", "3"], "a reward model writes no answers"),
        (["--chat_template_path", "x.jinja"], "chat_template_path='x.jinja' is not taken here"),
        (["--data", "nothing.jsonl"], "nothing.jsonl"),
        (["--resume", "/nowhere"], "no complete checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(base, data, tmp_path, capsys, more, message):
    capsys.readouterr()
    assert reward.main(["--model", base, "--data", data, "--output_dir", str(tmp_path / "out"), "--device", "cpu", *more]) == 2
    line = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
    assert len(line) == 1 and message in line[0]


def test_the_longer_answer_wins_the_pairs_whose_better_answer_has_more_tokens():
    """Ranked best first 3, 1 and 2 tokens: two of three pairs; tied answers make no pair, a pair of one length counts half."""
    rows = [{"branches": [[7] * 3, [7], [7] * 2], "ranks": [0, 1, 2]}, {"branches": [[7], [7] * 9], "ranks": [0, 0]}, {"branches": [[7], [8]], "ranks": [1, 0]}]
    assert reward.longer_is_better(rows[:2]) == 2 / 3
    assert reward.longer_is_better(rows) == 2.5 / 4
