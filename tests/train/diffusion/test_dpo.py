"""DPO of a diffusion model: the loss and gradients of the plain computation on the same masks, and what sharing these is worth."""

import math
from functools import partial

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback, TrainingArguments

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.diffusion.masking import Draws, every_mask, masks_of
from seodang.infer.diffusion.schedule import blocks_of
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.train.diffusion.dpo import diffusion_dpo, diffusion_dpo_trainer
from seodang.train.maths.preference_losses import LOSSES, PreferenceSettings
from seodang.train.run.callbacks import LOG, read_log
from seodang.train.run.checkpoints import find_resume
from seodang.train.stages.dpo import dpo_trainer

from ..batch_gradients import gradients
from .by_blocks import block_logits

MASK = 5
SETTINGS = {"hinge": {"beta": 0.5}, "robust": {"label_smoothing": 0.1}, "cdpo": {"label_smoothing": 0.1}, "simpo": {"beta": 2.0}}
KINDS = [Diffusion(MASK, shift=1), Diffusion(MASK, attention="prompt_causal"), Diffusion(MASK, shift=1, attention="prompt_causal")]
BLOCKS = [Diffusion(MASK, shift=shift, attention="block_causal", block_length=3) for shift in (0, 1)]
LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def pair_rows(count=6, seed=0, answers=2):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (1,), generator=generator))
    ids = lambda n: torch.randint(6, 124, (n,), generator=generator).tolist()
    return [{"prompt_ids": ids(draw(2, 6)), "branches": [ids(draw(1, 8)) for _ in range(answers)], "ranks": list(range(answers)), "where": f"row {i}"} for i in range(count)]


def arguments(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 6, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    return TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", disable_tqdm=True)


def made(fresh_tiny, says=KINDS[0], **changes):
    model = fresh_tiny("llama", **changes)
    declare(model.config, says)
    return model


def moved(model):
    """The model, no longer what it was: as a policy that has left its reference."""
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model


def estimate(model, says, prompt, answer, masks):
    """The weighted sum of the log-probabilities of masked tokens, one plain pass for each mask."""
    total = 0.0
    for number, block in enumerate(blocks_of(len(answer), says.block_length)):
        for masked, weight in masks(len(block), number):
            logprobs = block_logits(model, says, prompt, answer, block, masked).log_softmax(-1)
            for at in (at for at, hidden in enumerate(masked) if hidden):
                total = total + weight * logprobs[at, answer[block.start + at]]
    return total


def plain_loss(model, reference, says, rows, masks_of_row, beta=0.1):
    """DPO's formula, every answer and every mask alone."""
    losses = []
    for number, row in enumerate(rows):
        lead = 0.0
        for sign, branch in zip((1, -1), row["branches"], strict=True):
            masks = partial(masks_of_row, number)
            policy = estimate(model, says, row["prompt_ids"], branch, masks)
            with torch.no_grad():
                before = estimate(reference, says, row["prompt_ids"], branch, masks)
            lead = lead + sign * (policy - before)
        losses.append(-torch.nn.functional.logsigmoid(beta * lead))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("says", "reference_time"), list(zip([*KINDS, *BLOCKS], ["step", "before", "step", "step", "before"])))
def test_loss_and_gradients_equal_the_plain_computation(fresh_tiny, tiny_tokenizer, tmp_path, says, reference_time):
    """Four draws: answers and blocks of one and two tokens have all of their masks, the longer ones some."""
    rows, model, reference, plain = pair_rows(3), *(made(fresh_tiny, says) for _ in range(3))
    args = arguments(tmp_path, seed=3)
    trainer = diffusion_dpo_trainer(model, tiny_tokenizer, rows, args, draws=4, reference_time=reference_time)
    trainer.score_before()
    moved(model), moved(plain)
    plain.set_attn_implementation("eager"), reference.set_attn_implementation("eager")
    expected = plain_loss(plain, reference, says, rows, lambda number, length, block: masks_of(length, Draws(4, seed=3), "pairs", 0, number, block))
    expected.backward()
    loss, found = gradients(trainer, [trainer.train_dataset[number] for number in range(3)])
    assert loss == pytest.approx(expected.item(), abs=1e-5) and abs(loss - math.log(2)) > 1e-3
    for name, p in plain.named_parameters():
        assert (found[name] - p.grad).abs().max() <= 1e-5 * p.grad.abs().max().clamp_min(1e-6) + 1e-6, name


def test_with_enough_draws_the_likelihoods_are_the_bounds_themselves(fresh_tiny, tiny_tokenizer, tmp_path):
    rows = pair_rows(2)
    for row in rows:
        row["branches"] = [branch[:3] for branch in row["branches"]]
    model, reference, plain = (made(fresh_tiny) for _ in range(3))
    trainer = diffusion_dpo_trainer(model, tiny_tokenizer, rows, arguments(tmp_path), draws=7)
    moved(model), moved(plain)
    plain.set_attn_implementation("eager"), reference.set_attn_implementation("eager")
    with torch.no_grad():
        expected = plain_loss(plain, reference, KINDS[0], rows, lambda number, length, block: every_mask(length))
    assert trainer.measure(rows)["loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_an_architecture_that_cannot_be_told_who_sees_whom_is_padded(tiny_tokenizer, tmp_path):
    config = AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=2, n_head=4)
    models = []
    for _ in range(3):
        torch.manual_seed(0)
        models.append(AutoModelForCausalLM.from_config(config).eval())
        declare(models[-1].config, Diffusion(MASK))
    model, reference, plain = models
    rows = pair_rows(3)
    trainer = diffusion_dpo_trainer(model, tiny_tokenizer, rows, arguments(tmp_path), draws=4)
    moved(model), moved(plain)
    losses = []
    for number, row in enumerate(rows):
        lead = 0.0
        for sign, branch in zip((1, -1), row["branches"], strict=True):
            for masked, weight in masks_of(len(branch), Draws(4, seed=42), "pairs", 0, number, 0):
                ids = torch.tensor([row["prompt_ids"] + [MASK if hidden else id for hidden, id in zip(masked, branch)]])
                for factor, each in ((1, plain), (-1, reference)):
                    logprobs = each(ids).logits[0, len(row["prompt_ids"]) :].log_softmax(-1)
                    lead += sign * factor * weight * sum(logprobs[at, branch[at]].item() for at, hidden in enumerate(masked) if hidden)
        losses.append(-torch.nn.functional.logsigmoid(torch.tensor(0.1 * lead)).item())
    loss, _ = gradients(trainer, [trainer.train_dataset[number] for number in range(3)])
    assert loss == pytest.approx(sum(losses) / 3, abs=1e-5)


# What sharing masks is worth


def values_by_mask(model, prompt, answer):
    """What each mask alone says of an answer, with how often counts draw it: [masks] both."""
    found = []
    with torch.no_grad():
        for masks in every_mask(len(answer)):
            count = sum(masks.masked)
            found.append((estimate(model, KINDS[0], prompt, answer, lambda *_: [(masks.masked, len(answer) / count)]), masks.weight * count / len(answer)))
    values, probabilities = zip(*found)
    return torch.stack(values).double(), torch.tensor(probabilities, dtype=torch.float64)


def test_masks_shared_with_the_reference_lower_the_variance_of_the_log_ratio(fresh_tiny):
    """By enumeration of all 63 masks of six tokens: that of the difference is a small part of the sum of both, which independent masks would have."""
    reference, policy = made(fresh_tiny), moved(made(fresh_tiny))
    with torch.no_grad():  # a policy near its reference, as while it is trained
        for p, q in zip(policy.parameters(), reference.parameters(), strict=True):
            p.copy_(q + 0.1 * (p - q))
    [row] = pair_rows(1, seed=4)
    answer = [20, 21, 33, 40, 41, 90]
    (first, probabilities), (second, same) = (values_by_mask(each, row["prompt_ids"], answer) for each in (policy, reference))
    assert torch.equal(probabilities, same) and probabilities.sum().item() == pytest.approx(1)

    def variance(values):
        return (probabilities * (values - (probabilities * values).sum()) ** 2).sum().item()

    assert variance(first - second) < 0.02 * (variance(first) + variance(second))


def margins(policy, reference, rows, tokenizer, folder, draws=3, runs=30):
    """The margin of the first row with masks shared with the reference, and with masks of the reference's own, by so many keys: [runs] each."""
    trainer = diffusion_dpo_trainer(policy, tokenizer, rows, arguments(folder), draws=draws, reference=reference)
    shared, apart = [], []
    with torch.no_grad():
        for run in range(runs):
            batches = [trainer.data_collator([trainer.train_dataset.of_epoch(epoch, 0)]) for epoch in (run, 1000 + run)]
            own = trainer.branch_sums(policy(**trainer._model_inputs(batches[0])).logprobs, batches[0])
            for found, batch in zip((shared, apart), batches):
                against = own - trainer._reference_sums(policy, batch)
                found.append((against[0] - against[1]).item())
    return torch.tensor(shared, dtype=torch.float64), torch.tensor(apart, dtype=torch.float64)


def test_the_trainers_margin_and_loss_vary_far_less_than_with_masks_apart(fresh_tiny, tiny_tokenizer, tmp_path):
    policy, reference = made(fresh_tiny), made(fresh_tiny)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.005 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    rows = pair_rows(1, seed=2)
    rows[0]["branches"] = [[20, 21, 33, 40, 41, 90], [20, 21, 33, 77, 50]]
    shared, apart = margins(policy, reference, rows, tiny_tokenizer, tmp_path)
    loss = lambda margin: -torch.nn.functional.logsigmoid(0.1 * margin)
    assert shared.var() < 0.05 * apart.var() and loss(shared).var() < 0.05 * loss(apart).var()
    assert abs(shared.mean() - apart.mean()) < 4 * (apart.std() / len(apart) ** 0.5)


# The run


@pytest.mark.parametrize("loss", ["sigmoid", "orpo", *(pytest.param(name, marks=pytest.mark.full) for name in LOSSES if name not in ("sigmoid", "orpo"))])
def test_every_loss_of_dpo_takes_the_estimates_and_accumulating_changes_nothing(fresh_tiny, tiny_tokenizer, tmp_path, loss):
    ends = []
    for size, steps in ((6, 1), (2, 3)):
        args = arguments(tmp_path, max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=steps, optim="sgd", learning_rate=0.1, max_grad_norm=0.0)
        settings = PreferenceSettings(loss=loss, **SETTINGS.get(loss, {}))
        ends.append(dict(diffusion_dpo(made(fresh_tiny), tiny_tokenizer, pair_rows(), args, settings, draws=3).model.named_parameters()))
    before = dict(made(fresh_tiny).named_parameters())
    assert max((p - before[name]).abs().max().item() for name, p in ends[0].items()) > 1e-4
    assert all(torch.allclose(p, ends[1][name], atol=3e-6) for name, p in ends[0].items())


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize(("time", "lora"), [("step", False), ("before", True)])
def test_resuming_equals_the_uninterrupted_run_bit_for_bit(fresh_tiny, tiny_tokenizer, tmp_path, time, lora):
    def run(folder, resume=None, callbacks=(), **changes):
        torch.manual_seed(0)
        args = arguments(tmp_path / folder, **{"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2, **changes})
        how = {"lora": LoraConfig(**LORA) if lora else None, "reference_time": time, "resume": resume, "callbacks": callbacks}
        return diffusion_dpo(made(fresh_tiny, attention_dropout=0.1), tiny_tokenizer, pair_rows(), args, draws=3, **how)

    whole = run("whole")
    assert whole.state.global_step == 6
    run("cut", callbacks=[StopAt(4)], save_steps=4, save_strategy="steps")  # within the second epoch, whose masks are others
    resumed = run("cut", resume=str(find_resume(tmp_path / "cut", "auto")))
    losses = [[entry["loss"] for entry in read_log(tmp_path / name / LOG) if "loss" in entry] for name in ("cut", "whole")]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))


@pytest.mark.parametrize("lora", [False, True])
def test_a_reference_that_scores_before_teaches_the_same_in_every_epoch(fresh_tiny, tiny_tokenizer, tmp_path, lora):
    ends = []
    for time in ("step", "before"):
        torch.manual_seed(0)
        args = arguments(tmp_path, max_steps=7, per_device_train_batch_size=3, per_device_eval_batch_size=2)
        how = {"lora": LoraConfig(**LORA) if lora else None, "eval_rows": pair_rows(3, seed=1), "reference_time": time}
        ends.append(diffusion_dpo(made(fresh_tiny), tiny_tokenizer, pair_rows(), args, draws=3, **how))
    step, before = ends
    first, second = ([entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in ends)
    assert first == pytest.approx(second, abs=1e-5) and len(first) == 7  # four epochs
    assert step.measure() == pytest.approx(before.measure(), abs=1e-4)
    if not lora:
        assert before.reference is None
        with pytest.raises(UserError, match="the reference is let go of"):
            before.measure(pair_rows(2, seed=5))
        assert before.measure(before.train_dataset)["loss"] == pytest.approx(step.measure(step.train_dataset)["loss"], abs=1e-5)


def test_an_adapter_learns_held_out_preferences_and_is_loaded_with_its_base(fresh_tiny, tiny_tokenizer, tmp_path):
    """Answers of letters beat answers of digits, on prompts that were never seen."""
    generator = torch.Generator().manual_seed(1)
    some = lambda low, high, n: torch.randint(low, high, (n,), generator=generator).tolist()
    rows = [{"prompt_ids": some(6, 124, 4), "branches": [some(70, 90, 4), some(20, 30, 4)], "ranks": [0, 1]} for _ in range(36)]
    base = tmp_path / "base"
    made(fresh_tiny).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    model, _ = load(base, device="cpu", dtype="float32")
    args = arguments(tmp_path / "out", max_steps=25, per_device_train_batch_size=6, eval_strategy="steps", eval_steps=25)
    trainer = diffusion_dpo_trainer(model, tiny_tokenizer, rows[:24], args, draws=3, eval_rows=rows[24:], lora=LoraConfig(**LORA))
    before = trainer.measure()
    assert before["margin"] == 0 and before["loss"] == pytest.approx(math.log(2), abs=1e-6)
    trainer.train()
    after = trainer.measure()
    assert after["accuracy"] > 0.9 and after["loss"] < 0.6 and trainer.state.log_history[-2]["eval_accuracy"] == after["accuracy"]
    sizes = set()
    for size in (1, 5):  # the masks of held-out rows are the same, whatever the batches
        trainer.args.per_device_eval_batch_size = size
        sizes.add(round(trainer.measure()["loss"], 5))
    assert len(sizes) == 1
    loaded, _ = load(trainer.save_final(), device="cpu", dtype="float32")
    again = diffusion_dpo_trainer(loaded.merge_and_unload(), tiny_tokenizer, rows[:24], arguments(tmp_path / "again"), PreferenceSettings(loss="simpo", beta=2.0), draws=3)
    assert again.measure(rows[24:])["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 0}, "draws must be a whole number of at least 1, got 0"),
        ({"reference_time": "later"}, "reference_time must be one of step, before, got 'later'"),
        ({"rows": [{"prompt_ids": [9], "branches": [[7], [MASK, 8]], "ranks": [0, 1], "where": "pairs.jsonl line 3"}]}, "pairs.jsonl line 3: an answer contains the mask token"),
        ({"model": None}, "the model speaks from left to right, and its config knows no mask"),
        ({"reference": None}, "the reference speaks from left to right, the model by diffusion"),
        ({"reference": Diffusion(MASK)}, "the reference has shift 0, the model 1"),
        ({"model": BLOCKS[0], "reference": Diffusion(MASK, 0, "block_causal", 2)}, "the reference has block_length 2, the model 3"),
    ],
)
def test_what_does_not_go_together_is_refused(fresh_tiny, tiny_tokenizer, tmp_path, change, message):
    how = {"model": KINDS[0], "rows": pair_rows(2), **change}
    models = {name: fresh_tiny("llama") if how[name] is None else made(fresh_tiny, how[name]) for name in ("model", "reference") if name in how}
    rest = {name: value for name, value in how.items() if name not in ("model", "reference", "rows")}
    with pytest.raises(UserError, match=message):
        diffusion_dpo_trainer(models.pop("model"), tiny_tokenizer, how["rows"], arguments(tmp_path), **models, **rest)


def test_dpo_from_left_to_right_names_the_way_of_a_diffusion_model(fresh_tiny, tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="one of masked diffusion: .* on preferences by `seodang dpo`"):
        dpo_trainer(made(fresh_tiny), tiny_tokenizer, pair_rows(), arguments(tmp_path))
