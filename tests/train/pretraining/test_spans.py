"""The stage: plain transformers' step on pieces alone, resuming to the bit, held-out text that is hidden alike, a loss that falls, spans shown as filled."""

import math
from itertools import accumulate

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import TrainerCallback, TrainingArguments

from seodang.data.errors import UserError
from seodang.data.text.corruption import held_out_noise, noise_of
from seodang.data.text.rows import span_rows
from seodang.data.text.span_corruption import SpanCorruption, SpanOptions
from seodang.data.text.store import token_store
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer
from seodang.infer import LSTMConfig
from seodang.train.diffusion.order import DRAWN
from seodang.train.pretraining.architecture import Sizes, of_tokenizer, small_config, untrained
from seodang.train.pretraining.fill_ins import SpanSampler
from seodang.train.pretraining.spans import span_corruption, span_trainer
from seodang.train.run.callbacks import LOG, read_log
from seodang.train.run.checkpoints import find_resume

LINES = ["영화가 정말 재미있었어요 그리고 배우가 좋았어요", "the little model learns to read a text", "어제 본 영화는 재미없었어요", "do not stop learning, little model, read on"]
OPTIONS = SpanOptions(0.3, 2.0)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(LINES * 3, TokenizerSettings(vocab_size=400, family="encoder-decoder"))


@pytest.fixture(scope="module")
def rows(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("\n".join(f"{line} {i}" for i in range(6) for line in LINES), encoding="utf-8")
    store, _ = token_store([str(folder / "a.txt")], tokenizer, folder / "cache", documents="line")
    return span_rows(store, tokenizer, 64, options=OPTIONS)


def arguments(folder, **changes):
    settings = {"max_steps": 2, "per_device_train_batch_size": 3, "save_strategy": "no", "logging_steps": 1, "learning_rate": 1e-2, "seed": 1}
    return TrainingArguments(str(folder), **{**settings, **changes}, use_cpu=True, report_to="none", disable_tqdm=True)


def model_of(tokenizer, kind="t5", dropout=0.0):
    if kind == "seodang_lstm":
        config = LSTMConfig(**of_tokenizer(tokenizer), d_model=32, attention="dot")
    else:
        config = small_config(kind, Sizes(32, 2, 4), tokenizer, 80)
    for name in ("dropout_rate", "dropout", "attention_dropout", "activation_dropout"):
        if hasattr(config, name):
            setattr(config, name, dropout)
    return untrained(config, 0, torch.float32, torch.device("cpu"))


def corruption_of(tokenizer, model):
    return SpanCorruption.of(tokenizer, OPTIONS, model.config.decoder_start_token_id, model.config.vocab_size)


def pairs(row):
    """What is read, what the decoder is shown and what it is to say, of each piece of a corrupted row."""
    sources, targets = ([0, *accumulate(row[name])] for name in ("lengths", "target_lengths"))
    for a, b, c, d in zip(sources, sources[1:], targets, targets[1:]):
        yield [torch.tensor([ids]) for ids in (row["input_ids"][a:b], row["decoder_input_ids"][c:d], row["labels"][c:d])]


def plain_sum(model, row):
    """The loss of a plain transformers model summed over a row's labels, each piece in a pass of its own."""
    return sum(F.cross_entropy(model(input_ids=source, decoder_input_ids=shown).logits[0], labels[0], reduction="sum") for source, shown, labels in pairs(row))


@pytest.mark.parametrize("kind", ["t5", "bart", "seodang_transformer", "seodang_lstm"])
def test_one_step_equals_the_step_of_a_plain_torch_loop_over_pieces_alone(tokenizer, rows, tmp_path, kind):
    ours, plain = (model_of(tokenizer, kind) for _ in range(2))
    args = arguments(tmp_path, max_steps=1, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=0.0, adam_epsilon=1e-3, train_sampling_strategy="sequential")
    corruption = corruption_of(tokenizer, ours)
    trainer = span_trainer(ours, tokenizer, rows, args, corruption, eval_rows=rows)
    held = trainer.evaluate()["eval_loss"]
    made = [corruption(rows[i], held_out_noise(i)) for i in range(len(rows))]
    assert held == pytest.approx(sum(plain_sum(plain, row).item() for row in made) / sum(len(row["labels"]) for row in made), rel=1e-5)
    trainer.train()
    corrupted = [corruption(rows[i], noise_of(1, 0, i)) for i in range(3)]
    assert all(len(row["lengths"]) > 1 for row in corrupted)  # several pieces in a row
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-3)
    loss = sum(plain_sum(plain, row) for row in corrupted) / sum(len(row["labels"]) for row in corrupted)
    loss.backward()
    optimizer.step()
    logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert logged == pytest.approx(loss.item(), rel=1e-5)
    for (name, p), q in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-4), name


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def test_resuming_within_an_epoch_equals_the_uninterrupted_run_bit_for_bit(tokenizer, rows, tmp_path):
    def run(folder, resume=None, callbacks=(), **changes):
        torch.manual_seed(0)
        model = model_of(tokenizer, dropout=0.1)
        settings = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 2}
        return span_corruption(model, tokenizer, rows, arguments(tmp_path / folder, **{**settings, **changes}), corruption_of(tokenizer, model), resume=resume, callbacks=callbacks)

    whole = run("whole")
    assert whole.state.global_step >= 6
    run("cut", save_strategy="steps", save_steps=4, callbacks=[StopAt(4)])
    resumed = run("cut", resume=str(find_resume(tmp_path / "cut", "auto")))
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True))
    losses = lambda folder: [(entry["step"], entry["loss"]) for entry in read_log(tmp_path / folder / LOG) if "loss" in entry]
    assert losses("cut") == losses("whole")


def test_what_is_hidden_is_drawn_anew_each_epoch_and_held_out_text_is_hidden_alike(tokenizer, rows, tmp_path):
    model = model_of(tokenizer)
    trainer = span_trainer(model, tokenizer, rows, arguments(tmp_path), corruption_of(tokenizer, model), eval_rows=rows)
    collator = trainer.data_collator
    ids = lambda batch: (batch["input_ids"].tolist(), batch["labels"].tolist())
    drawn = lambda epoch: ids(collator([{**rows[0], DRAWN: (epoch, 0)}]))
    assert drawn(0) == drawn(0) != drawn(1) and ids(collator.held_out([rows[0]])) == ids(collator.held_out([rows[0]])) != drawn(0)
    first = trainer.evaluate()
    assert first == pytest.approx({**trainer.evaluate(), **{name: value for name, value in first.items() if "runtime" in name or "second" in name}})
    assert first["eval_perplexity"] == pytest.approx(math.exp(first["eval_loss"]))


def test_the_loss_falls_and_held_out_spans_are_filled_in(tokenizer, rows, tmp_path):
    model, told = model_of(tokenizer), []
    corruption = corruption_of(tokenizer, model)
    sampler = SpanSampler(tokenizer, rows, corruption, 2, told.append)
    args = arguments(tmp_path, max_steps=40, per_device_train_batch_size=4, lr_scheduler_type="linear")
    trainer = span_trainer(model, tokenizer, rows, args, corruption, eval_rows=rows, sample=sampler)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert before > 5.5 and after < 3.5  # ln 400 is 6.0; what is guessed without looking at the text comes to 4
    assert len(told) == 4 and all(text.count("[") == text.count("]") >= 1 and "<extra_id" not in text for text in told)


def test_a_filling_is_shown_beside_what_is_right(tokenizer):
    corruption = SpanCorruption.of(tokenizer, OPTIONS, 0)
    x, y, z = corruption.sentinels[:3]
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    sampler = SpanSampler(tokenizer, (), corruption, 1, print)
    source = [*ids("the"), x, *ids(" learns"), y, end]
    target = [x, *ids(" little model"), y, *ids(" to read"), z, end]
    assert sampler.filled(source, target, [x, *ids(" little model"), y, *ids(" a text"), z, end]) == "the [ little model]  learns [ to read >  a text]"
    assert sampler.filled(source, target, [x, *ids(" little")]) == "the [ little model >  little]  learns [ to read > ]"


def test_texts_that_are_shown_are_short_and_of_the_first_pieces(tokenizer, rows):
    sampler = SpanSampler(tokenizer, rows, SpanCorruption.of(tokenizer, OPTIONS, 0), 3, print)
    found = sampler.texts()
    assert [number for number, _ in found] == [0, 1, 2] and all(2 <= len(ids) <= 40 and ids == rows[number]["input_ids"][: len(ids)] for number, ids in found)
    assert np.shape(sampler.corruption.corrupt(np.array(found[0][1]), held_out_noise(0))[0])[0] <= 41


def test_models_that_are_no_encoder_decoders_are_refused_by_name(tokenizer, rows, tmp_path, fresh_encoder):
    encoder = fresh_encoder("bert", vocab_size=len(tokenizer))
    with pytest.raises(UserError, match="bert is an encoder, which writes nothing: train it by `seodang mlm`"):
        span_trainer(encoder, tokenizer, rows, arguments(tmp_path), SpanCorruption.of(tokenizer, OPTIONS, 0))
    small = model_of(tokenizer, "bart")
    small.config.max_position_embeddings = 10
    with pytest.raises(UserError, match=f"row has a source of {rows.size[0]} tokens, the encoder only 10 positions"):
        span_trainer(small, tokenizer, rows, arguments(tmp_path), SpanCorruption.of(tokenizer, OPTIONS, 0))
