"""What the options of the training recipes mean."""

import json
from collections import Counter

import pytest

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.formats import SHAPES
from seodang.data.tagging.records import tagged_texts
from seodang.data.tasks.layouts import Layout, TaskShapes
from seodang.recipes.grpo import GrpoArguments
from seodang.recipes.options.training import Arguments, ModelOptions, RunOptions, hold_out
from seodang.recipes.ppo import PpoArguments
from seodang.recipes.run.training import complete_arguments


def test_an_adapter_has_twice_its_rank_for_a_scale_unless_told_otherwise():
    assert ModelOptions().lora() is None
    plain, told = ModelOptions(lora_r=8).lora(), ModelOptions(lora_r=8, lora_alpha=4, lora_dropout=0.1, lora_targets=["q_proj", "v_proj"]).lora()
    assert (plain.r, plain.lora_alpha, plain.lora_dropout, plain.target_modules) == (8, 16, 0.0, "all-linear")
    assert (told.r, told.lora_alpha, told.lora_dropout, told.target_modules) == (8, 4, 0.1, {"q_proj", "v_proj"})


def test_no_record_is_both_held_out_and_trained_on():
    records = [f"record {i}" for i in range(20)]
    taught, held = hold_out(records, 0.25, seed=3)
    assert len(held) == 5 and sorted(taught + held) == sorted(records)  # each on one side, once
    assert hold_out(records, 0.25, seed=3) == (taught, held) != hold_out(records, 0.25, seed=4)
    assert len(hold_out(records, 0.001, seed=3)[1]) == 1
    with pytest.raises(UserError, match="eval_fraction 0.99 leaves nothing of 20 records"):
        hold_out(records, 0.99, seed=3)


TASKS = [{"instruction": "up", "output": "A"}, {"instruction": "down", "output": "a"}]


def test_records_of_files_of_one_name_are_held_out_one_by_one_and_the_dialogues_of_a_record_together(tmp_path):
    files = [tmp_path / part / "train.jsonl" for part in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text("".join(json.dumps({"input": f"{file.parent.name} {number}", "tasks": TASKS}) + "\n" for number in range(10)), encoding="utf-8")
    for weights in (None, [1, 1]):  # one file after the other, and their dialogues in turns
        examples = read([*map(str, files)], weights=weights, shapes=TaskShapes(Layout("apart"), SHAPES))
        taught, held = hold_out(examples, 0.25, seed=0)
        inputs = [Counter(example.messages[0]["content"].split("\n\n")[-1] for example in side) for side in (taught, held)]
        assert len(inputs[1]) == 5 and len(inputs[0]) == 15 and not inputs[0] & inputs[1]  # of 20 records; by line, pairs of them would be 10
        assert {*inputs[0].values(), *inputs[1].values()} == {2}  # both dialogues of each


def test_a_taggers_texts_of_files_of_one_name_are_held_out_one_by_one(tmp_path):
    files = [tmp_path / part / "train.conll" for part in "ab"]
    for file in files:
        file.parent.mkdir()
        file.write_text("".join(f"{file.parent.name}{number} B-NAME\n\n" for number in range(10)), encoding="utf-8")
    taught, held = hold_out(list(tagged_texts([*map(str, files)])), 0.25, seed=0)
    assert len(held) == 5 and len(taught) == 15 and len({each.text for each in (*taught, *held)}) == 20


def complete(arguments, tmp_path, evaluates=True, best="eval_loss", **given):
    return complete_arguments(arguments(output_dir=str(tmp_path), **given), ModelOptions(device="cpu"), RunOptions(), evaluates, best)


@pytest.mark.parametrize("arguments", [PpoArguments, GrpoArguments])
def test_the_best_of_a_stage_that_is_rewarded_is_told_by_its_reward(arguments, tmp_path):
    kept = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 10, "save_steps": 10}
    args = complete(arguments, tmp_path, best="eval_reward", **kept)
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_reward", True)  # transformers alone says "loss", and that less is better
    args = complete(arguments, tmp_path, best="eval_reward", metric_for_best_model="kl", greater_is_better=False, **kept)
    assert (args.metric_for_best_model, args.greater_is_better) == ("kl", False)
    assert complete(Arguments, tmp_path, **kept).metric_for_best_model == "eval_loss"
