"""The paper's learning rate: by its formula, and as the schedule of transformers that it is."""

import math

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from seodang.train.maths.noam import noam


def test_rises_in_a_line_to_its_peak_and_falls_with_the_root_of_the_step():
    # d_model 16, warmup 4: 1 / 4 of min(step^-0.5, step / 8)
    assert [noam(step, 16, 4) for step in (1, 2, 4)] == pytest.approx([1 / 32, 2 / 32, 4 / 32])
    assert [noam(step, 16, 4) for step in (9, 16, 100)] == pytest.approx([1 / 12, 1 / 16, 1 / 40])
    assert noam(4000, 512, 4000) == pytest.approx(1 / math.sqrt(512 * 4000)) == pytest.approx(6.99e-4, rel=1e-3)  # the paper's base model
    with pytest.raises(ValueError, match="at least 1, got 0 and 4"):
        noam(0, 16, 4)


@pytest.mark.parametrize("warmup", [1, 7, 40])
def test_is_inverse_sqrt_of_transformers_at_its_peak_counted_from_the_second_update(warmup, tmp_path):
    args = TrainingArguments(tmp_path, lr_scheduler_type="inverse_sqrt", warmup_steps=warmup, learning_rate=noam(warmup, 24, warmup), use_cpu=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps=args.get_warmup_steps(200), num_training_steps=200)
    assert optimizer.param_groups[0]["lr"] == 0
    for step in range(1, 200):
        optimizer.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(noam(step, 24, warmup), rel=1e-12)
