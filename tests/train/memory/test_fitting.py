"""What is chosen for a device's memory: the quickest that fits, by enumeration; and that no choice teaches anything else."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from seodang.data.errors import UserError
from seodang.infer.checkpoint import without_weights
from seodang.infer.checkpoint.without_weights import load_without_weights, model_of_shapes
from seodang.infer.runners.architecture import transformers_model
from seodang.recipes.options.training import Arguments
from seodang.train.maths import logprobs
from seodang.train.memory import fitting
from seodang.train.memory.fitting import Choice, Given, fitted, tokens_at_once
from seodang.train.memory.peak import measure, memory_plan
from seodang.train.memory.sharding import Layout
from seodang.train.stages.dpo import dpo_trainer
from seodang.train.stages.sft import sft_trainer

VOCAB = 3000
ROWS = [{"input_ids": [5 + i] * 700, "labels": [5 + i] * 700} for i in range(2)]


@pytest.fixture
def folder(fresh_tiny, tmp_path):
    model = fresh_tiny("llama")
    model.config.update({"vocab_size": VOCAB, "max_position_embeddings": 2048})
    model.config.save_pretrained(tmp_path / "config")
    return str(tmp_path / "config")


@pytest.fixture
def of_shapes(folder, tmp_path, tokenizer):
    """Makes a trainer over a model of shapes."""
    load_without_weights()
    yield lambda **more: sft_trainer(
        model_of_shapes(folder, AutoModelForCausalLM, torch.float32, {}), tokenizer, ROWS, arguments(tmp_path, **more), loss_chunk=more.pop("chunk", 512)
    )
    without_weights._BUILT.set(None)


def arguments(tmp_path, chunk=None, **more):
    return Arguments(**{"output_dir": str(tmp_path / "out"), "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 2, **more})


def test_what_is_chosen_takes_what_a_plan_of_it_says(of_shapes):
    plan_of = lambda checkpointing, chunk: memory_plan(measure(of_shapes(activation_checkpointing=checkpointing, chunk=chunk)), Layout()).peak
    quickest, chunked, twice = plan_of(False, 512), plan_of(False, 256), plan_of(True, 256)
    assert twice < plan_of(False, 64) < chunked < quickest
    for memory, expected, peak in ((quickest, (False, 512), quickest), (quickest - 1, (False, 256), chunked), (twice, (True, 256), twice)):
        choice = fitted(trainer := of_shapes(), Layout(), memory, Given())
        assert (choice.checkpointing, choice.chunk, choice.plan.peak, choice.quickest, choice.fits) == (*expected, peak, quickest, True)
        assert (trainer.args.activation_checkpointing, transformers_model(trainer.model).loss_chunk) == expected


PEAKS = {(False, 512): 900, (False, 256): 700, (False, 128): 600, (False, 64): 550, (True, 512): 580, (True, 256): 380, (True, 128): 280, (True, 64): 230}


@pytest.mark.parametrize("given", [Given(), Given(checkpointing=False), Given(checkpointing=True), Given(chunk=128), Given(False, 512), Given(True, 8)])
@pytest.mark.parametrize("memory", [100, 230, 279, 300, 400, 549, 550, 590, 650, 800, 900])
def test_the_quickest_that_fits_is_chosen_and_what_is_given_is_kept(memory, given, monkeypatch):
    model = SimpleNamespace(loss_chunk=512, get_output_embeddings=lambda: torch.nn.Linear(1, 1))
    trainer = SimpleNamespace(model=model, args=SimpleNamespace(activation_checkpointing=bool(given.checkpointing)))
    peaks = {**PEAKS, (True, 8): 200}
    now = lambda *_: (trainer.args.activation_checkpointing, model.loss_chunk)
    for name, stand_in in (("measure", now), ("measured_again", now), ("transformers_model", lambda model: model)):
        monkeypatch.setattr(fitting, name, stand_in)
    monkeypatch.setattr(fitting, "memory_plan", lambda way, _: SimpleNamespace(peak=peaks[way]))
    open_to = [way for way in peaks if given.checkpointing in (None, way[0]) and (way[1] == given.chunk if given.chunk else way in PEAKS)]
    expected = next((way for way in open_to if peaks[way] <= memory), open_to[-1])
    choice = fitted(trainer, Layout(), memory, given)
    assert (choice.checkpointing, choice.chunk) == expected == now()
    assert choice.fits == (peaks[expected] <= memory) and choice.quickest == peaks[open_to[0]]


def test_the_choice_is_told_as_options_and_why():
    told = lambda checkpointing, chunk, peak, memory, given: Choice(checkpointing, chunk, SimpleNamespace(peak=peak * 2**30), 9 * 2**30, memory * 2**30, given).told("of here")
    assert told(False, 512, 9, 10, Given()) == "--activation_checkpointing false --loss_chunk 512: this is quickest and takes 9.00 of 10.00 GiB of here"
    assert told(True, 256, 3, 4, Given(True)) == "--activation_checkpointing true --loss_chunk 256 (the first as given): this takes 3.00 of 4.00 GiB of here, what is quicker 9.00"
    assert told(True, 8, 3, 2, Given(True, 8)) == "--activation_checkpointing true --loss_chunk 8 (both as given): this takes least, 3.00 GiB, more than 2.00 GiB of here"


def losses_and_gradients(trainer, rows):
    """Of one micro-batch, by the trainer's own loss."""
    model = trainer.model.train()
    if trainer.args.activation_checkpointing:
        model.activation_checkpointing_enable()
    loss = trainer.compute_loss(model, trainer._prepare_inputs(trainer.data_collator(rows)))
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


def same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    for one, other in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item())


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
def test_chunks_and_activations_computed_twice_give_the_loss_and_gradients_of_transformers(kind, fresh_tiny, tmp_path, tokenizer, monkeypatch):
    model = fresh_tiny(kind)
    if kind == "mistral":
        model.config.sliding_window = 16
    monkeypatch.setattr("seodang.infer.runners.attention.AT_ONCE", 2000)  # a few queries at a time, as long rows have them
    texts = [[(7 * i + n) % 120 + 4 for n in range(length)] for i, length in enumerate((90, 31))]
    rows = [{"input_ids": text, "labels": [-100, *text[1:]]} for text in texts]
    plain = copy.deepcopy(model)
    plain.config._attn_implementation = "eager"
    whole = sum(plain(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss * (len(row["labels"]) - 1) for row in rows) / (89 + 30)
    whole.backward()
    expected = whole.detach(), [p.grad for p in plain.parameters()]
    for chunk, checkpointing in ((512, False), (16, False), (16, True)):
        args = arguments(tmp_path, activation_checkpointing=checkpointing)
        packed = [{"input_ids": rows[0]["input_ids"] + rows[1]["input_ids"], "labels": rows[0]["labels"] + rows[1]["labels"], "lengths": [90, 31]}]
        for laid in (rows, packed):
            same(losses_and_gradients(sft_trainer(copy.deepcopy(model), tokenizer, rows, args, loss_chunk=chunk), laid), expected)


def test_preferences_learn_the_same_by_chunks(fresh_tiny, tmp_path, tokenizer, monkeypatch):
    model = fresh_tiny("llama")
    rows = [{"prompt_ids": list(range(5, 65)), "branches": [list(range(20, 60)), [9, 8, 7] * 13], "ranks": [0, 1]}]
    expected = losses_and_gradients(dpo_trainer(copy.deepcopy(model), tokenizer, rows, arguments(tmp_path)), rows)
    monkeypatch.setattr("seodang.infer.runners.attention.AT_ONCE", 1500)
    monkeypatch.setattr("seodang.infer.runners.attention.LEAST", 8)
    monkeypatch.setattr(logprobs, "KEPT_BYTES", 0)
    trainer = dpo_trainer(copy.deepcopy(model), tokenizer, rows, arguments(tmp_path, activation_checkpointing=True), loss_chunk=16)
    assert trainer.reference.given.loss_chunk == 16
    same(losses_and_gradients(trainer, rows), expected)


def test_a_chunk_of_nothing_is_refused_and_tokens_at_once_are_those_of_the_longest_rows(fresh_tiny, tmp_path, tokenizer):
    with pytest.raises(UserError, match="loss_chunk must be at least 1, got 0"):
        sft_trainer(fresh_tiny("llama"), tokenizer, [{"input_ids": [5, 6], "labels": [-100, 6]}], arguments(tmp_path), loss_chunk=0)
    assert tokens_at_once([{"input_ids": [1] * n} for n in (5, 9, 7)], 2) == 16
