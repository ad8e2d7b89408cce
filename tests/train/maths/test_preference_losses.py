import dataclasses
import math

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from seodang.data.errors import UserError
from seodang.train.maths.preference_losses import LOSSES, PairScores, PreferenceSettings, implicit_rewards

NEEDED = {"robust": {"label_smoothing": 0.1}, "cdpo": {"label_smoothing": 0.1}}


def pair(chosen, rejected, ref_chosen=None, ref_rejected=None, lengths=(1, 1), dtype=torch.float64):
    one = lambda number: None if number is None else torch.tensor([number], dtype=dtype)  # noqa: E731
    return PairScores(one(chosen), one(rejected), one(ref_chosen), one(ref_rejected), torch.tensor([lengths[0]]), torch.tensor([lengths[1]]))


def loss_of(scores, name, **settings):
    return LOSSES[name](scores, PreferenceSettings(name, **{**NEEDED.get(name, {}), **settings}))


# the chosen answer gained 2 nats on the reference, the rejected lost 1: a lead of 3; with beta ln(3) / 3 the sigmoid of the margin is 3 / 4
LEADING = {"chosen": -8.0, "rejected": -5.0, "ref_chosen": -10.0, "ref_rejected": -4.0}
THREE_QUARTERS = math.log(3) / 3


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sigmoid", {}, math.log(4 / 3)),
        ("cdpo", {"label_smoothing": 0.25}, 0.75 * math.log(4 / 3) + 0.25 * math.log(4)),  # wrong labels see 1 / 4
        ("robust", {"label_smoothing": 0.25}, (0.75 * math.log(4 / 3) - 0.25 * math.log(4)) / 0.5),
        ("hinge", {"beta": 0.1}, 0.7),  # 1 - 0.1 * 3
        ("hinge", {"beta": 0.5}, 0.0),  # 1 - 1.5 is below 0
        ("ipo", {"beta": 0.1}, 4.0),  # (3 - 5)^2
    ],
)
def test_losses_against_a_reference_by_hand(name, settings, expected):
    assert loss_of(pair(**LEADING), name, **{"beta": THREE_QUARTERS, **settings}).tolist() == pytest.approx([expected])


def test_ipo_compares_the_mean_gain_of_a_token():
    scores = pair(**LEADING, lengths=(4, 2))  # gains of 2 / 4 and -1 / 2: a lead of 1
    assert loss_of(scores, "ipo", beta=0.25).tolist() == [1.0]  # (1 - 2)^2


def test_simpo_by_hand():
    scores = pair(-2.0, -9.0, lengths=(2, 3))  # means of -1 and -3
    sure = loss_of(scores, "simpo", beta=1.5, gamma=3 - math.log(3))
    assert sure.tolist() == pytest.approx([math.log(4 / 3)])  # 1.5 * 2 - gamma is ln 3
    assert loss_of(scores, "simpo", beta=0.25).tolist() == pytest.approx([math.log(2)])  # 0.25 * 2 - 0.5


def test_orpo_by_hand():
    chosen, rejected = 2 * math.log(0.75), 3 * math.log(0.5)  # mean tokens of 3 / 4 and 1 / 2: odds of 3 and 1
    scores = pair(chosen, rejected, lengths=(2, 3))
    assert loss_of(scores, "orpo", beta=0.5).tolist() == pytest.approx([0.5 * math.log(4 / 3)])


def test_implicit_rewards_are_the_weighted_log_ratios():
    policy, reference = torch.tensor([-8.0, -5.0]), torch.tensor([-10.0, -4.0])
    assert implicit_rewards(policy, reference, 0.5).tolist() == [1.0, -0.5]
    assert implicit_rewards(policy, None, 0.5).tolist() == [-4.0, -2.5]


@pytest.mark.parametrize("name", ["sigmoid", "cdpo", "simpo", "orpo"])
def test_equal_answers_cost_log_two(name):
    settings = {"gamma": 0.0} if name == "simpo" else {"beta": 1.0}
    assert loss_of(pair(-6.0, -6.0, -6.0, -6.0, (3, 3)), name, **settings).tolist() == pytest.approx([math.log(2)])


def test_robust_is_dpo_on_average_over_flipped_labels():
    right, wrong = pair(-8.0, -5.0, -10.0, -4.0), pair(-5.0, -8.0, -4.0, -10.0)
    seen = 0.8 * loss_of(right, "robust", label_smoothing=0.2) + 0.2 * loss_of(wrong, "robust", label_smoothing=0.2)
    assert seen.tolist() == pytest.approx(loss_of(right, "sigmoid").tolist())


def test_conservative_dpo_is_least_where_the_labels_are_believed_as_often_as_they_are_right():
    scores = dataclasses.replace(pair(math.log(9), 0.0, 0.0, 0.0), chosen=torch.tensor([math.log(9)], requires_grad=True))
    loss_of(scores, "cdpo", beta=1.0, label_smoothing=0.1).sum().backward()  # sigmoid(ln 9) is 0.9
    assert scores.chosen.grad.tolist() == pytest.approx([0.0], abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_a_step_downhill_favours_the_chosen_answer(name, beta):
    chosen, rejected = torch.tensor([-6.0], requires_grad=True), torch.tensor([-6.0], requires_grad=True)
    scores = PairScores(chosen, rejected, torch.tensor([-6.0]), torch.tensor([-6.0]), torch.tensor([3]), torch.tensor([3]))
    loss_of(scores, name, beta=beta).sum().backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()
    assert chosen.grad.item() == pytest.approx(-rejected.grad.item(), rel=1e-5)


def test_the_gradient_of_dpo_is_beta_times_the_doubt():
    scores = pair(**LEADING)
    scores.chosen.requires_grad_(True)
    loss_of(scores, "sigmoid", beta=THREE_QUARTERS).sum().backward()
    assert scores.chosen.grad.tolist() == pytest.approx([-THREE_QUARTERS / 4])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chosen", [-1e4, -1e-9, 0.0])
@pytest.mark.parametrize("rejected", [-1e4, -1e-9, 0.0])
def test_extreme_log_probabilities_stay_finite(name, chosen, rejected):
    scores = pair(chosen, rejected, -50.0, -50.0, (5, 7), torch.float32)
    scores.chosen.requires_grad_(True)
    scores.rejected.requires_grad_(True)
    loss = loss_of(scores, name)
    loss.sum().backward()
    assert all(number.isfinite().all() for number in (loss, scores.chosen.grad, scores.rejected.grad))


@pytest.mark.parametrize("logprob", [-1e-6, -1e-3, -0.5, math.log(0.5), -1.0, -20.0, -80.0])
def test_odds_keep_their_digits_at_both_ends(logprob):
    exact = logprob - math.log(-math.expm1(logprob))
    odds = LOSSES["orpo"](pair(logprob, -math.log(2), dtype=torch.float32), PreferenceSettings("orpo", beta=1.0))  # the other's odds are 1
    assert odds.item() == pytest.approx(math.log1p(math.exp(-exact)), rel=1e-5)


def test_every_pair_has_its_own_loss():
    first, second = pair(-8.0, -5.0, -10.0, -4.0, (4, 2)), pair(-3.0, -7.0, -2.0, -6.0, (1, 5))
    both = PairScores(*(torch.cat([getattr(first, f.name), getattr(second, f.name)]) for f in dataclasses.fields(PairScores)))
    for name in LOSSES:
        assert loss_of(both, name).tolist() == pytest.approx([*loss_of(first, name).tolist(), *loss_of(second, name).tolist()]), name


def test_the_table_says_what_a_loss_wants():
    assert {name for name, loss in LOSSES.items() if not loss.needs_reference} == {"simpo", "orpo"}
    assert {name for name, loss in LOSSES.items() if loss.adds_chosen_nll} == {"orpo"}
    assert {name for name, loss in LOSSES.items() if loss.smooths_labels} == {"robust", "cdpo"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "sigmod"}, "'sigmod': did you mean sigmoid"),
        ({"loss": "kto"}, "there are sigmoid, ipo"),
        ({"beta": 0.0}, "beta must be a number above 0, got 0.0"),
        ({"beta": math.nan}, "got nan"),
        ({"loss": "cdpo", "label_smoothing": 0.5}, r"must be in \[0, 0.5\), got 0.5"),
        ({"loss": "robust"}, "robust needs a label_smoothing above 0"),
        ({"loss": "sigmoid", "label_smoothing": 0.1}, "label_smoothing 0.1 would be ignored by the loss sigmoid: .* cdpo"),
        ({"loss": "sigmoid", "gamma": 0.5}, "gamma 0.5 would be ignored"),
        ({"loss": "simpo", "gamma": -1.0}, "at least 0, got -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        PreferenceSettings(**settings)


def test_scores_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="compares with a reference"):
        loss_of(pair(-1.0, -2.0), "sigmoid")
    with pytest.raises(ValueError, match="one answer of the pair alone"):
        pair(-1.0, -2.0, ref_chosen=-1.0)
    with pytest.raises(ValueError, match=r"must be \[pairs\]"):
        PairScores(torch.zeros(2), torch.zeros(1), None, None, torch.ones(2), torch.ones(2))


# what trl computes -----------------------------------------------------------------------------------------------------------------------

RECORDS = [
    {"prompt": "What is the sum?", "chosen": "It is four.", "rejected": "No."},
    {"prompt": "Say hi", "chosen": "Hi!", "rejected": "I would much rather not."},
    {"prompt": "Which way", "chosen": "Left, then right.", "rejected": "Away"},
]


def settings_of_trl(tmp_path, **changes):
    return {
        "output_dir": str(tmp_path), "per_device_train_batch_size": 3, "use_cpu": True, "bf16": False, "report_to": [], "beta": 0.3,
        "activation_checkpointing": False, "dataloader_pin_memory": False, "disable_tqdm": True, **changes,
    }  # fmt: skip


def sums(model, input_ids, attention_mask, answer_mask):
    """Plain log-probabilities of whole answers and their lengths, [rows] each."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
    logprobs = logits.log_softmax(dim=-1).gather(2, input_ids[:, 1:, None]).squeeze(2)
    answers = answer_mask[:, 1:].bool()
    return logprobs.masked_fill(~answers, 0).sum(dim=1), answers.sum(dim=1)


def scores_of(policy, reference, *batch):
    (chosen, rejected), (chosen_lengths, rejected_lengths) = (both.chunk(2) for both in sums(policy, *batch))
    ref_chosen, ref_rejected = (None, None) if reference is None else sums(reference, *batch)[0].detach().chunk(2)
    assert len(set(chosen_lengths.tolist())) > 1 and chosen_lengths.tolist() != rejected_lengths.tolist()
    return PairScores(chosen, rejected, ref_chosen, ref_rejected, chosen_lengths, rejected_lengths)


def assert_same_loss_and_gradients(model, ours, theirs):
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    parameters = list(model.parameters())
    mine, yours = (torch.autograd.grad(loss, parameters) for loss in (ours, theirs))
    scale = max(gradient.abs().max().item() for gradient in yours)
    assert max((a - b).abs().max().item() for a, b in zip(mine, yours, strict=True)) <= 1e-5 * scale


def near(model):
    """The same model a small step away."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("name", ["sigmoid", "ipo", "hinge", "robust", "cdpo"])
def test_loss_and_gradients_of_trls_dpo_trainer(fresh_tiny, tiny_tokenizer, tmp_path, name):
    smoothing = NEEDED.get(name, {})
    records = RECORDS[1:2] if name == "cdpo" else RECORDS
    # trl 1.16 smooths no labels under the name sigmoid; its "aot" does, and with one pair has nothing to sort
    args = DPOConfig(**settings_of_trl(tmp_path, loss_type=["aot" if name == "cdpo" else name], **smoothing))
    policy, reference = near(fresh_tiny("llama")), fresh_tiny("llama")
    trainer = DPOTrainer(policy, reference, args=args, train_dataset=Dataset.from_list(records), processing_class=tiny_tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    masks = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    if name == "cdpo":
        (chosen, rejected), (a, b) = (both.chunk(2) for both in sums(policy, *masks))
        scores = PairScores(chosen, rejected, *sums(reference, *masks)[0].detach().chunk(2), a, b)
    else:
        scores = scores_of(policy, reference, *masks)
    ours = loss_of(scores, name, beta=0.3)
    assert not torch.allclose(ours, loss_of(dataclasses.replace(scores, chosen=scores.ref_chosen, rejected=scores.ref_rejected), name, beta=0.3))
    assert_same_loss_and_gradients(policy, ours.mean(), trainer.compute_loss(trainer.model, batch))


def test_loss_and_gradients_of_trls_simpo(fresh_tiny, tiny_tokenizer, tmp_path):
    policy = fresh_tiny("llama")
    args = CPOConfig(**settings_of_trl(tmp_path, loss_type="simpo", cpo_alpha=0.0, simpo_gamma=0.7))
    trainer = CPOTrainer(policy, args=args, train_dataset=Dataset.from_list(RECORDS), processing_class=tiny_tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    scores = scores_of(policy, None, *concatenated(trainer, batch))
    ours = loss_of(scores, "simpo", beta=0.3, gamma=0.7).mean()
    assert_same_loss_and_gradients(policy, ours, trainer.compute_loss(trainer.model, batch))


def test_loss_and_gradients_of_trls_orpo(fresh_tiny, tiny_tokenizer, tmp_path):
    policy = fresh_tiny("llama")
    args = ORPOConfig(**settings_of_trl(tmp_path))
    trainer = ORPOTrainer(policy, args=args, train_dataset=Dataset.from_list(RECORDS), processing_class=tiny_tokenizer)
    batch = next(iter(trainer.get_train_dataloader()))
    input_ids, attention_mask, answers = concatenated(trainer, batch)
    scores = scores_of(policy, None, input_ids, attention_mask, answers)
    # trl's likelihood is that of the prompt as well, the paper's and ours that of the answer: here as trl has it
    likelihoods, tokens = sums(policy, input_ids[:3], attention_mask[:3], attention_mask[:3])
    ours = loss_of(scores, "orpo", beta=0.3).mean() - likelihoods.sum() / tokens.sum()
    assert_same_loss_and_gradients(policy, ours, trainer.compute_loss(trainer.model, batch))


def concatenated(trainer, batch):
    """The batch of trl's CPO and ORPO trainers, chosen above rejected: ids, attention mask, answer mask."""
    pad = trainer.processing_class.pad_token_id
    whole = trainer.concatenated_inputs(batch, is_encoder_decoder=False, padding_value=pad, device="cpu")
    return whole["concatenated_input_ids"], whole["concatenated_attention_mask"], whole["concatenated_labels"] != -100
