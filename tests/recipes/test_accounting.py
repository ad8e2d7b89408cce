"""What a stage prints of its records adds up, and --unusable error refuses what it would drop, as a user sees it."""

import json
import re

import pytest

from seodang.recipes import dpo, grpo, kto, ppo, reward, rlhf, sft


def pair(chosen, rejected, **more):
    return {"prompt": "say a", "chosen": chosen, "rejected": rejected, **more}


def talk(*texts):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, texts, strict=False)]


GOOD = [{**pair(letter.upper(), letter), "prompt": f"say {letter}"} for letter in "abcdefgh"]
PAIRS = [*GOOD, pair("A", "A"), pair("", "a"), pair("A", "a" * 99), {"chosen": talk("Q", "A", "R", "B"), "rejected": talk("Q", "C", "R", "D")}]
LOST = {
    "identical answers": 1, "empty answer": 1, "answer longer than max_length": 1, "chosen and rejected differ before their last answers": 1,
}  # fmt: skip
TAUGHT = [*({"prompt": "Q", "completion": letter} for letter in "abcdefgh"), {"prompt": "Q", "completion": ""}, {"prompt": "Q", "completion": "a" * 99}]
ASKED = [*({"prompt": letter} for letter in "abcdefgh"), {"prompt": "a" * 99}]
TOO_LONG = {"prompt longer than max_prompt_length": 1}

ANSWERS = ["--max_length", "64", "--output_dir", "OUT", "--dry_run", "--device", "cpu", "--dtype", "float32"]
PROMPTS = ["--max_prompt_length", "64", "--output_dir", "OUT", "--dry_run", "--device", "cpu", "--dtype", "float32"]
RULE = ["--reward", "length:3"]


@pytest.mark.parametrize(
    ("verb", "records", "lost", "words", "refusing"),
    [
        (sft, TAUGHT, {"empty answer": 1, "answer longer than max_length": 1}, [*ANSWERS, "--empty_answers", "drop"], "--unusable"),
        (reward, PAIRS, LOST, ANSWERS, "--unusable"),
        (dpo, PAIRS, LOST, ANSWERS, "--unusable"),
        (kto, PAIRS, LOST, ANSWERS, "--unusable"),
        (ppo, ASKED, TOO_LONG, [*PROMPTS, *RULE, "--too_long", "drop", "--rollouts", "16", "--minibatches", "1"], "--too_long"),
        (grpo, ASKED, TOO_LONG, [*PROMPTS, *RULE, "--too_long", "drop", "--max_completion_length", "8"], "--too_long"),
        (rlhf, ASKED, TOO_LONG, [*PROMPTS, "--ranker", "rule:length:3", "--heldout_prompts", "2", "--too_long", "drop"], "--too_long"),
    ],
    ids=lambda value: value.__name__.rpartition(".")[2] if hasattr(value, "main") else None,
)
def test_records_read_are_kept_or_dropped_by_name_and_refused_where_that_is_asked_for(
    verb, records, lost, words, refusing, fresh_tiny, tiny_tokenizer, tmp_path, capsys
):
    base, data = tmp_path / "base", tmp_path / "data.jsonl"
    fresh_tiny("llama").save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    data.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    argv = ["--model", str(base), "--data", str(data), *(str(tmp_path / "runs" / "out") if word == "OUT" else word for word in words)]
    assert verb.main(argv) == 0
    assert not (tmp_path / "runs").exists()  # a dry run leaves nothing behind
    told = capsys.readouterr().out
    read, kept = map(int, re.search(r"records +(\d+) read, (\d+) kept", told).groups())
    assert read == len(records) and kept == 8
    assert {reason: int(count) for count, reason in re.findall(r"^dropped +(\d+) x (.*)$", told, re.MULTILINE)} == lost
    assert verb.main([*argv, refusing, "error"]) == 2
    assert re.search(rf"data.jsonl line {kept + 1}: .*{refusing} drop", capsys.readouterr().err)


def test_what_is_dropped_of_held_out_records_is_told(fresh_tiny, tiny_tokenizer, tmp_path, capsys):
    base, data, held = tmp_path / "base", tmp_path / "data.jsonl", tmp_path / "held.jsonl"
    fresh_tiny("llama").save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    for path, records in ((data, GOOD), (held, PAIRS)):
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    argv = ["--model", str(base), "--data", str(data), "--eval_data", str(held), *(str(tmp_path / "out") if word == "OUT" else word for word in ANSWERS)]
    assert kto.main(argv) == 0
    assert "dropped         1 x identical answers, of 12 records held out" in capsys.readouterr().out
