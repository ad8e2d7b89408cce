import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from seodang.data.errors import UserError
from seodang.train.models.masked_loss import TRANSFORM_IS_KNOWN, head_logits, hidden_at_labels, patch_masked_loss

KINDS = ["bert", "roberta", "distilbert", "modernbert", "electra", "deberta-v2"]


def batch(seed=0):
    """Two rows, the second padded, with labels at some positions."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 128, (2, 9), generator=generator)
    labels = torch.where(torch.rand(2, 9, generator=generator) < 0.4, torch.randint(4, 128, (2, 9), generator=generator), -100)
    seen = torch.ones_like(ids)
    ids[1, 6:], labels[1, 6:], seen[1, 6:] = 0, -100, 0
    return {"input_ids": ids, "attention_mask": seen, "labels": labels}


def plain_loss(model, given):
    """What transformers' models compute, in the precision of the weights: ModernBERT's own casts to float32."""
    logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    return F.cross_entropy(logits.flatten(0, 1), given["labels"].flatten())


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_those_of_the_architecture_itself(fresh_encoder, kind):
    plain = fresh_encoder(kind).double().train()
    ours = copy.deepcopy(plain)
    patch_masked_loss(ours, chunk=2)
    theirs, out = plain_loss(plain, batch()), ours(**batch())
    assert torch.allclose(out.loss, theirs, atol=1e-12) and out.tokens == (batch()["labels"] != -100).sum()
    theirs.backward()
    out.loss.backward()
    expected, found = gradients(plain), gradients(ours)
    assert expected.keys() == found.keys() and len(found) > 10
    assert all(torch.allclose(found[name], expected[name], atol=1e-12) for name in expected)
    assert ours.__dict__[TRANSFORM_IS_KNOWN]  # the product with the vocabulary kept no logits


@pytest.mark.parametrize("kind", ["bert", "modernbert"])
def test_a_head_that_is_more_than_a_transform_and_a_layer_is_computed_whole(fresh_encoder, kind):
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    plain = fresh_encoder(kind).double().train()
    layer = plain.get_output_embeddings()
    layer.__class__ = Scaled
    ours = copy.deepcopy(plain)
    patch_masked_loss(ours, chunk=2)
    theirs, out = plain_loss(plain, batch()), ours(**batch())
    assert torch.allclose(out.loss, theirs, atol=1e-12)
    theirs.backward()
    out.loss.backward()
    expected, found = gradients(plain), gradients(ours)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-12) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_is_that_of_transformers_own_with_labels(fresh_encoder, kind):
    model = fresh_encoder(kind)
    with torch.no_grad():
        expected = model(**batch()).loss
    patch_masked_loss(model)
    assert torch.allclose(model(**batch()).loss, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_tells_each_loss_and_hit_and_logits_are_the_heads_own(fresh_encoder, kind):
    model = fresh_encoder(kind).double()
    given = batch()
    with torch.no_grad():
        logits = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits[given["labels"] != -100]
        patch_masked_loss(model)
        out = model(**given)
        answers = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits[given["labels"] != -100]
        hidden, labels = hidden_at_labels(model, **given)
        own = head_logits(model, hidden)
    assert torch.equal(answers, logits) and torch.allclose(own, logits, atol=1e-12)
    assert torch.allclose(out.losses, F.cross_entropy(logits, labels, reduction="none"), atol=1e-12)
    assert out.hits.tolist() == (logits.argmax(dim=-1) == labels).tolist() and out.correct == out.hits.sum()


def test_the_mean_is_over_the_items_of_the_whole_step_where_that_is_said(fresh_encoder):
    model = fresh_encoder("bert").double()
    patch_masked_loss(model)
    given, count = batch(), int((batch()["labels"] != -100).sum())
    assert torch.allclose(model(**given, num_items_in_batch=4 * count).loss, model(**given).loss / 4)


def test_a_batch_without_labels_has_no_loss_and_no_gradient_that_is_none_other_than_zero(fresh_encoder):
    model = fresh_encoder("bert").train()
    patch_masked_loss(model)
    given = batch() | {"labels": torch.full((2, 9), -100)}
    out = model(**given)
    out.loss.backward()
    assert out.loss == 0 and out.tokens == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_model_without_a_head_is_refused(fresh_encoder):
    with pytest.raises(UserError, match="BertModel has no head of masked language modelling"):
        patch_masked_loss(fresh_encoder("bert").bert)
