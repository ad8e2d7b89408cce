import math

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from seodang.train.maths.ranking_loss import centring, ranking_loss

LN3 = math.log(3)


def test_the_ranking_loss_by_hand():
    better, worse = torch.tensor([LN3, 2.0, 0.0]), torch.tensor([0.0, 2.0, LN3])
    expected = [math.log(4 / 3), math.log(2), math.log(4)]  # the judgement had probability 3/4, 1/2, 1/4
    assert ranking_loss(better, worse).tolist() == pytest.approx(expected)


def test_a_margin_is_asked_on_top():
    loss = ranking_loss(torch.tensor([LN3 + 2.0, LN3]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]))
    assert loss.tolist() == pytest.approx([math.log(4 / 3)] * 2)


def test_the_gradient_is_the_doubt():
    better, worse = torch.tensor([LN3], requires_grad=True), torch.zeros(1, requires_grad=True)
    ranking_loss(better, worse).sum().backward()
    assert better.grad.item() == pytest.approx(-1 / 4) and worse.grad.item() == pytest.approx(1 / 4)


@settings(max_examples=50, deadline=None)
@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20))
def test_only_the_difference_of_scores_counts(better, worse, level):
    at = torch.tensor([better, better + level], dtype=torch.float64), torch.tensor([worse, worse + level], dtype=torch.float64)
    here, there = ranking_loss(*at).tolist()
    assert here == pytest.approx(there, abs=1e-9)
    probability = 1 / (1 + math.exp(worse - better))
    assert math.exp(-here) == pytest.approx(probability)


def test_all_pairs_of_a_ranking_push_each_answer_by_its_rank():
    scores = torch.zeros(3, requires_grad=True)  # best first, all still equal
    ranking_loss(scores[[0, 0, 1]], scores[[1, 2, 2]]).mean().backward()
    assert scores.grad.tolist() == pytest.approx([-1 / 3, 0.0, 1 / 3])


def test_far_apart_scores_stay_finite():
    better = torch.tensor([-1e5, 1e5], requires_grad=True)
    loss = ranking_loss(better, -better.detach())
    assert loss.tolist() == [2e5, 0.0]
    loss.sum().backward()
    assert better.grad.tolist() == [-1.0, 0.0]


def test_centring_draws_the_middle_of_a_pair_to_zero():
    better, worse = torch.tensor([3.0, 2.0, -1.0]), torch.tensor([-1.0, -2.0, -1.0])
    assert centring(better, worse).tolist() == [4.0, 0.0, 4.0]


@pytest.mark.parametrize("loss", [ranking_loss, centring])
def test_shapes_that_would_compare_every_two_are_refused(loss):
    with pytest.raises(ValueError, match=r"must all be \[pairs\]"):
        loss(torch.zeros(3, 1), torch.zeros(3))


def test_the_losses_are_those_of_trls_reward_trainer(tmp_path, fresh_tiny, tiny_tokenizer):
    config = fresh_tiny("llama").config
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    rows = [
        {"prompt": "Say hi", "chosen": "Hi!", "rejected": "I would rather not.", "margin": 0.5},
        {"prompt": "Which way?", "chosen": "Left.", "rejected": "Away", "margin": 2.0},
    ]
    args = RewardConfig(
        str(tmp_path), per_device_train_batch_size=2, use_cpu=True, bf16=False, activation_checkpointing=False, report_to=[],
        dataloader_pin_memory=False, center_rewards_coefficient=0.3,
    )  # fmt: skip
    trainer = RewardTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    better, worse = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(1).chunk(2)
    assert not torch.allclose(better, worse, atol=0.1)
    ours = ranking_loss(better, worse, batch["margin"]).mean() + 0.3 * centring(better, worse).mean()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(ours.item(), rel=1e-5)
