"""Our own architectures are trained as any: losses and gradients, packed and padded, smoothed labels by the paper's formula, and what they learn."""

import pytest
import torch

from seodang.data.seq2seq.packing import collate_padded_pairs, collate_pairs, pack_seq2seq
from seodang.infer import SamplingParams, generate, load
from seodang.infer.runners.end_to_end import can_run_end_to_end
from seodang.train import seq2seq, seq2seq_trainer
from seodang.train.encoder_decoder.pairs import PaddedPairs
from seodang.train.models.seq2seq_loss import patch_seq2seq_loss

from .some_pairs import arguments, pairs

LEARNED = {"positions": "learned", "max_encoder_position_embeddings": 14, "max_decoder_position_embeddings": 14}
TRANSFORMERS = {"post-norm": {}, "pre-norm": {"norm_position": "pre", "decoder_layers": 3}, "learned positions": LEARNED}
LSTMS = {"context alone": {"attention": "none"}, "attention": {"attention": "dot", "bidirectional": True}}
KINDS = [*(("transformer", name) for name in TRANSFORMERS), *(("lstm", name) for name in LSTMS)]


@pytest.fixture
def dry(fresh_own):
    """`dry(kind, name)`: a float64 model without dropout, in training."""
    return lambda kind, name: fresh_own(kind, dropout=0.0, **(TRANSFORMERS | LSTMS)[name]).train()


def gradients(model, loss):
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("laid", ["padded", "end to end", "packed"])
@pytest.mark.parametrize("kind, name", KINDS)
def test_loss_and_gradients_are_those_of_each_pair_alone(dry, kind, name, laid):
    rows = pairs(6, given=1)
    if kind == "lstm" and laid != "padded":
        assert not can_run_end_to_end(dry(kind, name))  # its state would run on from one pair to the next
        return
    plain, model = dry(kind, name), dry(kind, name)
    labels = sum(label != -100 for row in rows for label in row["labels"])
    want = sum(plain(**{name: torch.tensor([ids]) for name, ids in row.items()}, num_items_in_batch=labels).loss for row in rows)
    patch_seq2seq_loss(model)
    if laid != "padded":
        assert can_run_end_to_end(model)
    batch = collate_padded_pairs(rows, 0) if laid == "padded" else collate_pairs(rows if laid == "end to end" else pack_seq2seq(rows, 30, 30))
    got = model(**batch).loss
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    wanted = gradients(plain, want)
    largest = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in gradients(model, got).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=0, atol=1e-11 * largest, msg=name)


@pytest.mark.parametrize("kind, name", [KINDS[0], KINDS[-1]])
def test_smoothed_labels_are_a_label_and_a_little_of_every_word(dry, kind, name):
    """The cross-entropy of q(k) = (1 - e) [k = y] + e / K (Szegedy et al. 2016, section 7), which the Transformer was trained with, e = 0.1."""
    rows, model = pairs(4), dry(kind, name)
    total, count = 0.0, 0
    for row in rows:
        logprobs = model(input_ids=torch.tensor([row["input_ids"]]), decoder_input_ids=torch.tensor([row["decoder_input_ids"]])).logits[0].log_softmax(dim=-1)
        for label, each in zip(row["labels"], logprobs):
            q = torch.full((128,), 0.1 / 128, dtype=torch.float64)
            q[label] += 0.9
            total, count = total - (q * each).sum().item(), count + 1
    patch_seq2seq_loss(model)
    assert model(**collate_padded_pairs(rows, 0), label_smoothing=0.1).loss.item() == pytest.approx(total / count, rel=1e-12)


@pytest.mark.parametrize("kind, name", [KINDS[0], KINDS[1], KINDS[-1]])
def test_what_is_learned_is_saved_and_said(fresh_own, tiny_tokenizer, tmp_path, kind, name):
    """The paper's schedule and smoothing; pairs end to end where the architecture keeps them apart."""
    rows = [{"input_ids": [*source, 2], "decoder_input_ids": [0, *source[::-1]], "labels": [*source[::-1], 2]} for source in ([5, 6, 7], [30, 31], [90, 8, 40, 41], [7, 6])]
    built = fresh_own(kind, dropout=0.0, **(TRANSFORMERS | LSTMS)[name], **({"num_layers": 1} if kind == "lstm" else {}))
    torch.manual_seed(0)
    model = type(built)(built.config)  # with the weights that the architecture begins with
    settings = {"max_steps": {"transformer": 60, "lstm": 120}[kind], "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "inverse_sqrt", "warmup_steps": 30}
    trainer = seq2seq_trainer(model, tiny_tokenizer, rows, arguments(tmp_path, label_smoothing_factor=0.1, **settings))
    assert (trainer.data_collator is collate_pairs) is (kind == "transformer") is not isinstance(trainer.data_collator, PaddedPairs)
    trainer.train()
    trainer.save_final()
    loaded, tokenizer = load(tmp_path, device="cpu", dtype="float32")
    for params in (SamplingParams(max_new_tokens=6), SamplingParams(max_new_tokens=6, num_beams=3)):
        said = generate(loaded, tokenizer, [row["input_ids"] for row in rows], params)
        assert [result.ids for result in said] == [row["labels"] for row in rows]


def test_a_source_beyond_learned_positions_and_ids_of_another_tokenizer_are_refused_before_training(fresh_own, tiny_tokenizer, tmp_path):
    model = fresh_own("transformer", torch.float32, **LEARNED)
    row = {"input_ids": [5] * 15, "decoder_input_ids": [0], "labels": [2]}
    with pytest.raises(ValueError, match="a source of 15 tokens, the encoder only 14 positions"):
        seq2seq(model, tiny_tokenizer, [row], arguments(tmp_path))
    for kind in ("transformer", "lstm"):
        with pytest.raises(ValueError, match="token id 128 of the source is beyond the model's vocabulary of 128"):
            seq2seq(fresh_own(kind, torch.float32), tiny_tokenizer, [{**row, "input_ids": [128]}], arguments(tmp_path))
