"""What the options of the training recipes mean."""

import pytest

from seodang.data.errors import UserError
from seodang.recipes.options.training import ModelOptions, hold_out


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
