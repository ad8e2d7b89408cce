"""The loss at label positions alone, against plain transformers' and by hand."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.trainer_pt_utils import LabelSmoother

from seodang.data.errors import UserError
from seodang.data.seq2seq.packing import collate_padded_pairs, collate_pairs, pack_seq2seq
from seodang.infer.kernels import products
from seodang.infer.runners.end_to_end import can_run_end_to_end
from seodang.train.models.completion_loss import HeadCrossEntropy, LinearCrossEntropy
from seodang.train.models.seq2seq_loss import FORM_IS_KNOWN, patch_seq2seq_loss

from ..encoder_decoder.some_pairs import pairs

KINDS = ["t5", "umt5", "bart", "marian", "mbart", "m2m_100"]
DROPOUTS = ("dropout", "activation_dropout", "attention_dropout", "layerdrop", "p")


def model_of(tiny, kind, *, bias: bool = False, **changes):
    """A float64 copy without dropout in training mode, for BART's kin with a bias of its logits that is not nothing."""
    model = copy.deepcopy(tiny(kind, **changes)).double()
    for module in model.modules():
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    if bias:
        model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape, generator=torch.Generator().manual_seed(1)))
    return model.train()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def check_equal(ours, theirs, share):
    assert ours.keys() == theirs.keys()
    largest = max(g.abs().max().item() for g in theirs.values())
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=share * largest, msg=name)


@pytest.mark.parametrize("laid", ["padded", "end to end", "packed"])
@pytest.mark.parametrize(("kind", "biased"), [*((kind, False) for kind in KINDS), ("bart", True), ("marian", True)])
def test_loss_and_gradients_equal_plain_transformers(tiny, kind, laid, biased):
    rows = pairs(7, start=2, given=1)
    plain = model_of(tiny, kind, bias=biased)
    want = plain(**collate_padded_pairs(rows, 0)).loss
    model = model_of(tiny, kind, bias=biased)
    patch_seq2seq_loss(model, chunk=16)
    if laid != "padded":
        assert can_run_end_to_end(model)
    batch = collate_padded_pairs(rows, 0) if laid == "padded" else collate_pairs(rows if laid == "end to end" else pack_seq2seq(rows, 30, 30))
    got = model(**batch)
    tolerance = 1e-6 if kind.endswith("t5") else 1e-11  # T5's norms are in float32, whatever the model is in
    assert got.tokens.item() == sum(label != -100 for row in rows for label in row["labels"])
    assert got.loss.item() == pytest.approx(want.item(), rel=tolerance)
    check_equal(gradients(model, got.loss), gradients(plain, want), tolerance)
    assert vars(model)[FORM_IS_KNOWN] == (32**-0.5 if kind.endswith("t5") and model.config.tie_word_embeddings else 1.0)  # in the fast way, all of them


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("laid", ["padded", "end to end", "of one length"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_faster_products_change_neither_loss_nor_gradients(tiny, monkeypatch, kind, laid, checkpointed):
    rows = pairs(24, start=2, given=1)
    if laid == "of one length":
        rows = [{"input_ids": [5 + place, 7, 9, 2], "decoder_input_ids": [2, 8, place], "labels": [8, place, 2]} for place in range(24)]
    plain = model_of(tiny, kind)
    want = plain(**collate_padded_pairs(rows, 0)).loss
    monkeypatch.setattr(products, "LARGE", 1)
    called, own = [], products._Linear.backward
    monkeypatch.setattr(products._Linear, "backward", lambda *args: called.append(1) or own(*args))
    model = model_of(tiny, kind).float()
    patch_seq2seq_loss(model, chunk=16)
    if laid != "padded":
        assert can_run_end_to_end(model)
    if checkpointed:  # its layers run again outside of the loss
        model.activation_checkpointing_enable()
    got = model(**(collate_padded_pairs(rows, 0) if laid == "padded" else collate_pairs(rows)))
    assert got.loss.item() == pytest.approx(want.item(), rel=1e-5)
    ours = {name: gradient.double() for name, gradient in gradients(model, got.loss).items()}
    check_equal(ours, gradients(plain, want), 1e-5)
    layers = [module for stack in (model.get_encoder(), model.get_decoder()) for module in stack.modules() if isinstance(module, torch.nn.Linear)]
    assert len(called) == (0 if checkpointed else len(layers))


@pytest.mark.parametrize("settings", [{"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
def test_t5s_scale_before_the_head_is_found_tied_or_not(tiny, settings):
    plain, model = model_of(tiny, "t5", **settings), model_of(tiny, "t5", **settings)
    batch = collate_padded_pairs(pairs(3), 0)
    patch_seq2seq_loss(model)
    want, got = plain(**batch).loss, model(**batch).loss
    check_equal(gradients(model, got), gradients(plain, want), 1e-6)
    assert got.item() == pytest.approx(want.item(), rel=1e-6)


def test_a_head_of_more_than_a_layer_is_asked_itself(tiny, monkeypatch):
    plain, model = model_of(tiny, "bart"), model_of(tiny, "bart")
    batch = collate_padded_pairs(pairs(3), 0)
    patch_seq2seq_loss(model, chunk=5)
    vars(model)[FORM_IS_KNOWN] = None
    want, got = plain(**batch).loss, model(**batch).loss
    assert got.item() == pytest.approx(want.item(), rel=1e-11)
    check_equal(gradients(model, got), gradients(plain, want), 1e-11)


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("kind", ["t5", "marian"])
def test_smoothed_labels_are_those_of_transformers(tiny, kind, linear):
    rows = pairs(5, given=1)
    plain, model = model_of(tiny, kind), model_of(tiny, kind)
    batch = collate_padded_pairs(rows, 0)
    out = plain(**{name: value for name, value in batch.items() if name != "labels"})
    want = LabelSmoother(epsilon=0.3)(Seq2SeqLMOutput(logits=out.logits), batch["labels"])
    patch_seq2seq_loss(model, chunk=7)
    if not linear:
        vars(model)[FORM_IS_KNOWN] = None
    got = model(**batch, label_smoothing=0.3).loss
    assert got.item() == pytest.approx(want.item(), rel=1e-6)
    check_equal(gradients(model, got), gradients(plain, want), 1e-6)
    with torch.no_grad():
        told = model(**batch, label_smoothing=0.3)
    assert told.loss.item() == pytest.approx(plain(**batch).loss.item(), rel=1e-6)  # what is measured is the plain one


def test_smoothing_by_hand():
    """Logits 0 and ln 3: probabilities 1/4 and 3/4; the label gets 1 - 0.2 and half of 0.2."""
    hidden, weight = torch.tensor([[1.0]]).double().requires_grad_(), torch.tensor([[0.0], [math.log(3)]]).double()
    loss = LinearCrossEntropy.apply(hidden, weight, None, torch.tensor([0]), 1.0, 8, None, 0.2)
    assert loss.item() == pytest.approx(-0.9 * math.log(0.25) - 0.1 * math.log(0.75))
    loss.backward()
    assert hidden.grad.item() == pytest.approx((0.75 - 0.1) * math.log(3))  # probability less target, times the weight
    other = HeadCrossEntropy.apply(lambda x: x @ weight.T, torch.tensor([0]), 1.0, 8, None, 0.2, hidden)
    assert other.item() == pytest.approx(loss.item())
    importance = torch.tensor([3.0])
    assert LinearCrossEntropy.apply(hidden, weight, None, torch.tensor([0]), 1.0, 8, importance, 0.2).item() == pytest.approx(3 * loss.item())


def test_smoothed_gradients_are_those_of_finite_differences():
    draw = lambda *size: torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels, bias = torch.tensor([0, 3, 1]), draw(4)
    apply = lambda h, w, b: LinearCrossEntropy.apply(h, w, b, labels, 3.0, 2, None, 0.1)
    assert torch.autograd.gradcheck(apply, (draw(3, 2), draw(4, 2), bias))
    want = F.cross_entropy(draw(3, 2) @ draw(4, 2).T + bias, labels, label_smoothing=0.1)
    assert apply(draw(3, 2), draw(4, 2), bias).item() == pytest.approx(want.item())


def test_without_labels_the_model_answers_as_before(tiny):
    plain, model = tiny("bart"), copy.deepcopy(tiny("bart"))
    patch_seq2seq_loss(model)
    batch = {name: value for name, value in collate_padded_pairs(pairs(3), 0).items() if name != "labels"}
    assert torch.equal(model(**batch).logits, plain(**batch).logits)
    with pytest.raises(UserError, match="labels without decoder_input_ids"):
        model(input_ids=batch["input_ids"], labels=batch["decoder_input_ids"])


def test_a_routers_loss_is_refused(tiny):
    model = copy.deepcopy(tiny("t5"))
    model.config.output_router_logits = True
    with pytest.raises(UserError, match="output_router_logits is on"):
        patch_seq2seq_loss(model)
