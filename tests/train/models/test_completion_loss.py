import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import OPTConfig, OPTForCausalLM

from seodang.data.errors import UserError
from seodang.train.models.completion_loss import HeadCrossEntropy, LinearCrossEntropy, patch_completion_loss

KINDS = ["llama", "gpt2", "qwen3", "mistral", "gemma", "gemma2", "granite", "cohere"]


def batch(seed=0, rows=3, length=12):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 128, (rows, length), generator=generator)
    labels = ids.clone()
    labels[torch.rand(labels.shape, generator=generator) < 0.6] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(ours, theirs, tolerance=1e-5):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        scale = theirs[name].abs().max().clamp_min(1e-12)
        assert (ours[name] - theirs[name]).abs().max() <= tolerance * scale, name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [4, 512])
def test_loss_and_gradients_equal_the_models_own(fresh_tiny, kind, chunk):
    plain, ours = fresh_tiny(kind), fresh_tiny(kind)
    patch_completion_loss(ours, chunk)
    inputs = batch()
    expected = plain(**inputs).loss
    expected.backward()
    got = ours(**inputs).loss
    got.backward()
    assert torch.allclose(got, expected, rtol=1e-5)
    assert_close(gradients(ours), gradients(plain))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_gradient_checkpointing_changes_nothing(fresh_tiny, kind):
    plain, ours = fresh_tiny(kind).train(), fresh_tiny(kind).train()
    patch_completion_loss(plain)
    patch_completion_loss(ours)
    ours.gradient_checkpointing_enable()
    plain(**batch()).loss.backward()
    ours(**batch()).loss.backward()
    assert_close(gradients(ours), gradients(plain), 1e-6)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"]])
def test_adapters_get_the_plain_gradients(fresh_tiny, targets):
    def adapted(teach):
        model = fresh_tiny("llama", tie_word_embeddings=False)
        if teach:
            patch_completion_loss(model, 4)
        torch.manual_seed(1)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
        return model

    plain, ours = adapted(False), adapted(True)
    expected, got = plain(**batch()).loss, ours(**batch()).loss
    expected.backward()
    got.backward()
    assert torch.allclose(got, expected, rtol=1e-5)
    assert any("lm_head" in name for name in gradients(ours)) == (targets != "all-linear")
    assert_close(gradients(ours), gradients(plain))


def assert_as_exact(ours, plain, exact):
    """Rounding leaves our gradients no farther from the exact ones than it leaves the model's own; what is farther is a fault."""
    assert ours.keys() == plain.keys() == exact.keys()
    distance = lambda found, name: ((found[name].double() - exact[name]).norm() / exact[name].norm()).item()
    for name in exact:
        assert distance(ours, name) <= 1.15 * distance(plain, name) < 0.07, name


@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_bfloat16_loss_is_the_plain_loss_of_bfloat16_weights(fresh_tiny, kind):
    plain, ours, exact = fresh_tiny(kind).bfloat16(), fresh_tiny(kind).bfloat16(), fresh_tiny(kind).bfloat16().double()
    patch_completion_loss(ours)
    expected, got = plain(**batch()).loss, ours(**batch()).loss
    for loss in (expected, got, exact(**batch()).loss):
        loss.backward()
    assert torch.allclose(got.float(), expected.float(), rtol=1e-6)  # the logits are rounded to 8 bits in both, the sum is not
    assert_as_exact(gradients(ours), gradients(plain), gradients(exact))


def test_autocast_equals_autocast_of_the_plain_loss(fresh_tiny):
    plain, ours, exact = fresh_tiny("llama"), fresh_tiny("llama"), fresh_tiny("llama").double()
    patch_completion_loss(ours)
    with torch.autocast("cpu", torch.bfloat16):
        expected, got = plain(**batch()).loss, ours(**batch()).loss
    for loss in (expected, got, exact(**batch()).loss):
        loss.backward()
    assert torch.allclose(got.float(), expected.float(), rtol=1e-6)
    assert_as_exact(gradients(ours), gradients(plain), gradients(exact))
    assert all(g.dtype == torch.float32 for g in gradients(ours).values())


def test_loss_is_divided_by_the_tokens_of_the_whole_accumulated_batch(fresh_tiny):
    model = fresh_tiny("llama")
    patch_completion_loss(model)
    whole = batch(rows=4)
    halves = [{k: v[i : i + 2] for k, v in whole.items()} for i in (0, 2)]
    count = (whole["labels"][:, 1:] != -100).sum()
    parts = [model(**half, num_items_in_batch=count).loss for half in halves]
    assert torch.allclose(sum(parts), model(**whole).loss, rtol=1e-6)


def test_evaluation_counts_right_tokens_as_argmax_does(fresh_tiny):
    model = fresh_tiny("gemma2")
    inputs = batch()
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1]
        patch_completion_loss(model, 4)
        out = model(**inputs)
    targets = inputs["labels"][:, 1:]
    kept = targets != -100
    assert out.tokens == kept.sum()
    assert out.correct == (logits.argmax(-1) == targets)[kept].sum()
    assert torch.allclose(out.loss_sum, F.cross_entropy(logits[kept], targets[kept], reduction="sum"), rtol=1e-5)


def test_the_head_sees_label_positions_alone_in_chunks(fresh_tiny, monkeypatch):
    model = fresh_tiny("llama")
    patch_completion_loss(model, 4)
    model(**batch()).loss  # the head has been recognised as plain
    seen = []
    linear = F.linear
    head = model.get_output_embeddings().weight
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: (seen.append(len(x)) if w is head else None, linear(x, w, b))[1])
    model(**batch()).loss.backward()
    labels = int((batch()["labels"][:, 1:] != -100).sum())
    assert sum(seen) == labels and max(seen) == 4


def test_sums_by_hand():
    hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1])
    e, e2 = torch.e, torch.e**2
    expected = -torch.tensor(e / (e + 2)).log() - torch.tensor(e2 / (e2 + 2)).log()
    total = LinearCrossEntropy.apply(hidden, weight, None, labels, 1.0, 1)
    assert torch.allclose(total.float(), expected)
    assert torch.autograd.gradcheck(lambda h, w: LinearCrossEntropy.apply(h, w, None, labels, 3.0, 1), (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: HeadCrossEntropy.apply(lambda x: torch.tanh(x @ w.T), labels, 3.0, 1, None, 0.0, h, w), (hidden, weight))


def test_weighted_sums_by_hand_and_their_gradients():
    hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    labels, importance = torch.tensor([0, 1, 2]), torch.tensor([2.0, 0.5, 0.25])
    each = -torch.stack([torch.e / (torch.e + 2 * torch.ones(())), (torch.e**2) / (torch.e**2 + 2 * torch.ones(())), 1 / (torch.e**3 + torch.e + torch.ones(()))]).log()
    expected = (2 * each[0] + each[1] / 2 + each[2] / 4) / 3
    total = LinearCrossEntropy.apply(hidden, weight, None, labels, 3.0, 2, importance)
    assert torch.allclose(total.float(), expected)
    assert torch.allclose(HeadCrossEntropy.apply(lambda x: x @ weight.T, labels, 3.0, 2, importance, 0.0, hidden, weight), total)
    assert torch.autograd.gradcheck(lambda h, w: LinearCrossEntropy.apply(h, w, None, labels, 3.0, 2, importance), (hidden, weight))
    assert torch.autograd.gradcheck(lambda h, w: HeadCrossEntropy.apply(lambda x: torch.tanh(x @ w.T), labels, 3.0, 2, importance, 0.0, h, w), (hidden, weight))


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_targets_and_weights_say_what_is_read_where(fresh_tiny, kind):
    """Each target at its own place; the labels count alone. Gemma 2's head is capped."""
    model, ids = fresh_tiny(kind), batch()["input_ids"]
    labels = torch.full_like(ids, -100)
    labels[:, -4:] = 7
    weights = torch.zeros(ids.shape).index_put((torch.tensor([0, 0]), torch.tensor([0, 3])), torch.tensor([0.5, 2.0]))
    targets = torch.full_like(ids, 9)
    losses = torch.nn.functional.cross_entropy(model(ids).logits[0, [0, 3]], torch.tensor([9, 9]), reduction="none")
    patch_completion_loss(model)
    out = model(input_ids=ids, labels=labels, targets=targets, weights=weights)
    assert out.loss.item() == pytest.approx(((losses * torch.tensor([0.5, 2.0])).sum() / (labels != -100).sum()).item(), rel=1e-5)
    with torch.no_grad():
        told = model(input_ids=ids, labels=labels, targets=targets, weights=weights, num_items_in_batch=5)
    assert torch.allclose(told.losses, losses, atol=1e-5) and told.loss.item() == pytest.approx(out.loss.item() * (labels != -100).sum().item() / 5, rel=1e-5)


def test_an_architecture_that_calls_its_decoder_beneath_the_head_has_its_own_loss_and_gradients():
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16, word_embed_proj_dim=16, dropout=0.0)
    plain = OPTForCausalLM(config).double()
    ours = copy.deepcopy(plain)
    patch_completion_loss(ours)
    ids = torch.tensor([[5, 9, 20, 31, 7]])
    for model in (plain, ours):
        model(input_ids=ids, labels=ids).loss.backward()
    assert ours(input_ids=ids, labels=ids).loss.item() == pytest.approx(plain(input_ids=ids, labels=ids).loss.item(), rel=1e-6)
    assert_close(gradients(ours), gradients(plain))


def test_without_labels_the_model_answers_as_before(fresh_tiny):
    model = fresh_tiny("llama")
    ids = batch()["input_ids"]
    before = model(ids).logits
    patch_completion_loss(model)
    assert torch.equal(model(ids).logits, before)


def test_router_losses_are_refused(fresh_tiny):
    model = copy.deepcopy(fresh_tiny("llama"))
    model.config.output_router_logits = True
    with pytest.raises(UserError, match="output_router_logits"):
        patch_completion_loss(model)


class BuiltAnew:
    """Makes of a copy what FSDP's wrapper makes of it."""

    def __new__(cls):
        raise TypeError("missing 1 required positional argument: 'config'")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_whole_while_its_head_runs(fresh_tiny, training):
    """Another thread may run it meanwhile; Gemma 2's capped head is the architecture's own forward."""
    model = fresh_tiny("gemma2")
    patch_completion_loss(model)
    model.__class__ = type("Wrapped", (BuiltAnew, type(model)), {})
    trunk, seen = model.model, []
    model.lm_head.register_forward_hook(lambda *_: seen.append(model.model is trunk))
    with torch.set_grad_enabled(training):
        model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[-100, 6, 7]]))
    assert seen and all(seen)
