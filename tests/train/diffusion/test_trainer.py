"""The stage: exact means, resuming to the bit, adapters, held-out loss with its error."""

import math
import random

import pytest
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback, TrainingArguments

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.runners.paradigm import Diffusion, declare, diffusion_of
from seodang.train.attention.packed_attention import PACKED
from seodang.train.diffusion.canvas import Canvas
from seodang.train.diffusion.objective import DenoisingObjective
from seodang.train.diffusion.order import DRAWN
from seodang.train.diffusion.trainer import diffusion, diffusion_trainer
from seodang.train.run.callbacks import LOG, read_log
from seodang.train.run.checkpoints import find_resume
from seodang.train.stages.sft import StreamedRows, sft_trainer

MASK = 5
CANVAS = Canvas(filling=0, ends=(2, 0), multiple=4)


def rows(count=12, seed=0):
    draw, made = random.Random(seed), []
    for _ in range(count):
        ids = [draw.randrange(6, 124) for _ in range(draw.randrange(5, 14))] + [2]
        made.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return list(CANVAS.rows(made))


def arguments(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 6, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2, "seed": 1}
    return TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", disable_tqdm=True)


def made(fresh_tiny, kind="llama", says=None, **changes):
    model = fresh_tiny(kind, **changes)
    declare(model.config, says or Diffusion(MASK, shift=1))
    return model


def by_hand(model, batch, index):
    """The weighted sum of cross entropies of one record of a batch laid end to end, the record alone under a mask written out."""
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    ids, targets, weights = (batch[name][0].split(lengths)[index] for name in ("input_ids", "targets", "weights"))
    place = torch.arange(len(ids))
    visible = (place[None] <= place[:, None]) | (place[:, None] >= int(batch["causal_lengths"][index]))
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
    logits = model(ids[None], attention_mask=mask, use_cache=False).logits[0]
    return (torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="none") * weights).sum()


@pytest.mark.parametrize(
    ("says", "objective"),
    [
        (Diffusion(MASK, shift=1), DenoisingObjective(max_weight=0)),
        (Diffusion(MASK, attention="prompt_causal"), DenoisingObjective(weighting="cart", complementary=True)),
        (Diffusion(MASK, shift=1, autoregressive=True), DenoisingObjective(co_loss=0.5, schedule="cosine")),
    ],
)
def test_one_step_equals_the_step_of_a_plain_torch_loop(fresh_tiny, tiny_tokenizer, tmp_path, says, objective):
    """AdamW on the weighted sum over the masked tokens, each record alone, divided by all answer tokens."""
    ours, plain, data = made(fresh_tiny, says=says), made(fresh_tiny, says=says), rows(6)
    args = arguments(tmp_path, max_steps=1, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, adam_epsilon=1e-3, train_sampling_strategy="sequential")
    trainer = diffusion_trainer(ours, tiny_tokenizer, data, args, objective, canvas=CANVAS)
    batch = trainer.data_collator([{**row, DRAWN: (0, place)} for place, row in enumerate(data)])
    trainer.train()
    plain.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-3)  # else the sign of what is nearly 0 decides
    losses = [by_hand(plain, batch, index) for index in range(len(batch["causal_lengths"]))]
    loss = sum(losses) / (batch["labels"] != -100).sum()
    loss.backward()
    optimizer.step()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-4), name


def test_accumulated_steps_equal_one_large_batch(fresh_tiny, tiny_tokenizer, tmp_path):
    ends = []
    for size, steps in ((6, 1), (2, 3), (1, 6)):
        model = made(fresh_tiny)
        args = arguments(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        diffusion(model, tiny_tokenizer, rows(6), args, DenoisingObjective(complementary=True), canvas=CANVAS)
        ends.append(dict(model.named_parameters()))
    before = dict(made(fresh_tiny).named_parameters())
    for name, p in ends[0].items():
        assert (p - before[name]).abs().max() > 0.01, name
        for other in ends[1:]:
            assert torch.allclose(p, other[name], atol=2e-4), name


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def losses(folder):
    return [(entry["step"], entry["loss"]) for entry in read_log(folder / LOG) if "loss" in entry]


@pytest.mark.parametrize(("workers", "steps", "adapted"), [(0, (1, 3), False), (2, (4,), False), (0, (4,), True)])
def test_resuming_at_any_step_equals_the_uninterrupted_run_bit_for_bit(fresh_tiny, tiny_tokenizer, tmp_path, workers, steps, adapted):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if adapted else None

    def run(folder, resume=None, callbacks=(), **changes):
        torch.manual_seed(0)
        model = made(fresh_tiny, attention_dropout=0.1)
        settings = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        args = arguments(tmp_path / folder, **{**settings, "dataloader_num_workers": workers, **changes})
        return diffusion(model, tiny_tokenizer, rows(), args, DenoisingObjective(co_loss=0.3), canvas=CANVAS, lora=lora, resume=resume, callbacks=callbacks)

    whole = run("whole")
    assert whole.state.global_step == 6
    for step in steps:  # within the first epoch, at its end, within the second
        run(str(step), callbacks=[StopAt(step)], save_steps=step, save_strategy="steps")
        resumed = run(str(step), resume=str(find_resume(tmp_path / str(step), "auto")))
        assert losses(tmp_path / str(step)) == losses(tmp_path / "whole")
        for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
            assert torch.equal(p, q)


def test_a_stream_trains_as_rows_in_memory_do(fresh_tiny, tiny_tokenizer, tmp_path):
    logged = []
    for data in (rows(), StreamedRows(lambda: iter(rows()), batch=4)):
        args = arguments(tmp_path, max_steps=5, per_device_train_batch_size=4, train_sampling_strategy="sequential")
        logged.append(diffusion(made(fresh_tiny), tiny_tokenizer, data, args, canvas=CANVAS).state.log_history)
    first, second = ([entry["loss"] for entry in each if "loss" in entry] for each in logged)
    assert first == second and len(set(first)) == 5  # the second epoch has other masks


def test_an_architecture_that_cannot_be_told_who_sees_whom_is_padded_and_looks_both_ways(tiny_tokenizer, tmp_path):
    config = AutoConfig.for_model("bloom", vocab_size=128, hidden_size=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    declare(model.config, Diffusion(MASK))
    data = rows(4)
    trainer = diffusion_trainer(model, tiny_tokenizer, data, arguments(tmp_path), DenoisingObjective(crop=False), canvas=CANVAS)
    batch = trainer.data_collator(data)
    assert batch["input_ids"].shape[0] == 4
    expected = 0.0
    for ids, targets, weights, mask in zip(*(batch[name] for name in ("input_ids", "targets", "weights", "attention_mask")), strict=True):
        logits = model(ids[mask == 1][None]).logits[0]  # alone, without padding
        expected += (torch.nn.functional.cross_entropy(logits, targets[mask == 1], ignore_index=-100, reduction="none") * weights[mask == 1]).sum()
    assert model(**batch).loss.item() == pytest.approx((expected / (batch["labels"] != -100).sum()).item(), rel=1e-5)
    first, last = batch["input_ids"][:1, :5], batch["input_ids"][:1, :5].clone()
    last[0, -1] = 77
    assert not torch.allclose(model(first).logits[0, 0], model(last).logits[0, 0])


def test_held_out_loss_and_its_error_are_those_of_the_rows_whatever_the_batches(fresh_tiny, tiny_tokenizer, tmp_path):
    held, objective = rows(5, seed=2), DenoisingObjective(eval_draws=3, co_loss=1.0, max_weight=0)
    says = Diffusion(MASK, shift=1, attention="prompt_causal", autoregressive=True)
    found = []
    for size in (1, 2, 5):
        args = arguments(tmp_path, per_device_eval_batch_size=size)
        trainer = diffusion_trainer(made(fresh_tiny, says=says), tiny_tokenizer, rows(), args, objective, canvas=CANVAS, eval_rows=held)
        found.append(trainer.evaluate())
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0] == pytest.approx(found[2], rel=1e-5)
    model = made(fresh_tiny, says=says)
    model.set_attn_implementation("eager")
    batch = trainer.data_collator.held_out(held, range(5))
    with torch.no_grad():
        parts = torch.tensor([by_hand(model, batch, index) for index in range(20)]).view(5, 4)
    sums, causal = parts[:, :3].mean(dim=1).tolist(), parts[:, 3].tolist()
    tokens = [sum(label != -100 for label in row["labels"]) for row in held]
    mean = sum(sums) / sum(tokens)
    error = math.sqrt(sum((s - mean * n) ** 2 for s, n in zip(sums, tokens, strict=True)) * 5 / 4) / sum(tokens)
    assert (found[0]["eval_loss"], found[0]["eval_loss_se"]) == pytest.approx((mean, error), rel=1e-4)
    assert found[0]["eval_autoregressive_loss"] == pytest.approx(sum(causal) / sum(tokens), rel=1e-4)
    asked = (batch["weights"] != 0).sum().item() - sum(tokens)
    assert round(found[0]["eval_token_accuracy"] * asked, 6) % 1 == 0


def test_an_adapter_brings_the_mask_and_what_it_is_to_its_base(fresh_tiny, tiny_tokenizer, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    fresh_tiny("llama", tie_word_embeddings=True).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    model, _ = load(base, device="cpu", dtype="float32")
    declare(model.config, Diffusion(MASK, shift=1))
    with torch.no_grad():
        model.get_input_embeddings().weight[MASK] = 0.5
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = diffusion(model, tiny_tokenizer, rows(), arguments(out, max_steps=4), canvas=CANVAS, lora=lora)
    folder = trainer.save_final()
    trainer.model.eval()
    loaded, _ = load(folder, device="cpu", dtype="float32")
    assert diffusion_of(loaded.config) == Diffusion(MASK, shift=1) and loaded.config.is_causal is False
    learned = loaded.get_input_embeddings()(torch.tensor([MASK]))
    assert (learned - 0.5).abs().max() > 1e-3 and (learned - 0.5).abs().max() < 0.1
    assert diffusion_of(load(base, device="cpu")[0].config) is None
    batch = trainer.data_collator(rows(3))
    ids, lengths = batch["input_ids"], tuple(batch["cu_seq_lens_q"].diff().tolist())
    loaded.base_model.model.set_attn_implementation(PACKED)
    with torch.no_grad():
        told = [each(input_ids=ids, position_ids=batch["position_ids"], record_lengths=lengths, causal_lengths=(0,) * 3, use_cache=False).logits
                for each in (trainer.model, loaded)]  # fmt: skip
    assert torch.allclose(*told, atol=1e-5)


def test_sampling_while_training_changes_nothing_of_it(fresh_tiny, tiny_tokenizer, tmp_path):
    ends, seen = [], []
    for sampled in (False, True):
        torch.manual_seed(0)
        model = made(fresh_tiny, attention_dropout=0.1)
        how = {"eval_rows": rows(3, seed=1), "sample": lambda model: (seen.append(torch.rand(3)), {"exact": 0.25})[1]} if sampled else {}
        args = arguments(tmp_path, max_steps=3, **({"eval_strategy": "steps", "eval_steps": 1} if sampled else {}))
        trainer = diffusion(model, tiny_tokenizer, rows(), args, canvas=CANVAS, **how)
        ends.append(dict(model.named_parameters()))
    assert [entry["eval_exact"] for entry in trainer.state.log_history if "eval_exact" in entry] == [0.25] * 3 and len(seen) == 3
    assert all(torch.equal(p, ends[1][name]) for name, p in ends[0].items())


def test_each_stage_trains_models_of_its_own_kind(fresh_tiny, tiny_tokenizer, tmp_path):
    with pytest.raises(UserError, match="sft teaches text from left to right, but this model is one of masked diffusion: train it by `seodang diffusion`"):
        sft_trainer(made(fresh_tiny), tiny_tokenizer, rows(), arguments(tmp_path))
    with pytest.raises(UserError, match="speaks from left to right, and its config knows no mask: make it one of diffusion first"):
        diffusion_trainer(fresh_tiny("llama"), tiny_tokenizer, rows(), arguments(tmp_path), canvas=CANVAS)


def test_the_generation_config_ends_with_what_answers_are_filled_up_with(fresh_tiny, tiny_tokenizer, tmp_path):
    model = made(fresh_tiny)
    model.generation_config.eos_token_id = 7
    diffusion_trainer(model, tiny_tokenizer, rows(), arguments(tmp_path), canvas=Canvas(0, (2, 0), 4))
    assert model.generation_config.eos_token_id == [7, 0, 2]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"schedule": "cosin"}, "no schedule 'cosin': did you mean cosine"),
        ({"weighting": "one"}, "choose one of one_over_t, cart, uniform"),
        ({"cart_p": 1.0}, "cart_p must be between 0 and 1, got 1.0"),
        ({"max_weight": -1}, "max_weight must be at least 0"),
        ({"co_loss": float("nan")}, "co_loss must be at least 0"),
        ({"canvas": 0}, "canvas must be at least 1"),
        ({"eval_draws": 0}, "eval_draws must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        DenoisingObjective(**settings)
