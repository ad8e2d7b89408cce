"""Pairs end to end: against each pair alone, through plain transformers, and attention against the softmax written out."""

import copy

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.runners import end_to_end
from seodang.infer.runners.end_to_end import END_TO_END, Pairs, attend_apart, can_run_end_to_end
from seodang.infer.runners.packed_records import like_lengths, worth_padding

KINDS = ["t5", "mt5", "umt5", "bart", "mbart", "marian", "pegasus", "m2m_100", "blenderbot"]
MIXED = Pairs((7, 2, 7, 30, 1), (3, 9, 3, 4, 12))
ALIKE = Pairs((4, 4, 4), (6, 6, 6))
PADDED = Pairs((6, 5, 7), (8, 8, 6))


def in_float64(model):
    """A copy whose norms are in float64, too: T5's are in float32 whatever the model is in."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if type(module).__name__.endswith("5LayerNorm"):
            module.forward = lambda states, norm=module: norm.weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return model


def row_of(pairs: Pairs, vocab: int = 128) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    sides = {"input_ids": pairs.sources, "decoder_input_ids": pairs.targets}
    return {name: torch.randint(3, vocab, (1, sum(lengths)), generator=generator) for name, lengths in sides.items()}


def alone(model, row, pairs: Pairs) -> torch.Tensor:
    """The logits of each pair by itself, one after the other: [total targets, vocab]."""
    parts = zip(row["input_ids"].split(pairs.sources, dim=1), row["decoder_input_ids"].split(pairs.targets, dim=1), strict=True)
    return torch.cat([model(input_ids=source, decoder_input_ids=target).logits[0] for source, target in parts])


def gradients(model, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(5), dtype=logits.dtype)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pairs", [MIXED, ALIKE, PADDED], ids=["mixed", "alike", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_end_to_end_are_what_each_is_alone_and_so_are_their_gradients(tiny, kind, pairs):
    model = in_float64(tiny(kind))
    row = row_of(pairs)
    want = alone(model, row, pairs)
    theirs = gradients(model, want)
    assert can_run_end_to_end(model)
    got = model(**row, pairs=pairs).logits[0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11 * want.abs().max().item())
    ours = gradients(model, got)
    assert ours.keys() == theirs.keys()
    largest = max(gradient.abs().max().item() for gradient in theirs.values())  # a key's bias has none: softmax does not see it
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=1e-12 * largest, msg=name)


@pytest.mark.parametrize("kind", ["t5", "umt5", "bart"])
def test_activations_that_are_computed_again_give_the_same_gradients(tiny, kind):
    model = in_float64(tiny(kind))
    row, pairs = row_of(MIXED), MIXED
    assert can_run_end_to_end(model)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "activation_dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    theirs = gradients(model, model(**row, pairs=pairs).logits[0])
    model.activation_checkpointing_enable({"use_reentrant": False})
    ours = gradients(model, model(**row, pairs=pairs).logits[0])
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], msg=name)


@pytest.mark.parametrize("kind", ["t5", "umt5", "m2m_100"])
def test_without_pairs_the_model_answers_padded_rows_as_before(tiny, kind):
    model = in_float64(tiny(kind))
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long(), "decoder_input_ids": torch.tensor([[3, 4, 5], [6, 7, 8]])}
    want = model(**batch).logits
    assert can_run_end_to_end(model) and model.config._attn_implementation == END_TO_END
    model(**row_of(ALIKE), pairs=ALIKE)
    torch.testing.assert_close(model(**batch).logits, want, rtol=0, atol=1e-12 * want.abs().max().item())
    again = copy.deepcopy(model)
    assert can_run_end_to_end(again)
    torch.testing.assert_close(again(**row_of(MIXED), pairs=MIXED).logits, model(**row_of(MIXED), pairs=MIXED).logits)


def test_no_bias_of_all_tokens_by_all_tokens_is_made(tiny, monkeypatch):
    model = in_float64(tiny("umt5"))
    assert can_run_end_to_end(model)
    sizes = []
    monkeypatch.setattr(end_to_end, "attend_apart", lambda *qkv, bias, **settings: sizes.append(None if bias is None else tuple(bias.shape)) or attend_apart(*qkv, bias=bias, **settings))
    made = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **how: sizes.append(size[0] if isinstance(size[0], tuple) else size) or made(*size, **how))
    model(**row_of(MIXED), pairs=MIXED)
    assert (1, 4, 30, 30) in sizes and (1, 4, 12, 12) in sizes and (1, 1, 1, 1) in sizes  # the longest source, the longest target, from one to the other
    assert not [size for size in sizes if size and max(size) > 30]


@pytest.mark.parametrize(
    "broken", ["_begun_anew", "_bias_of_longest", "end_to_end_attention"], ids=["positions run on", "distances run on", "attention runs across"]
)
def test_the_trial_finds_an_architecture_that_does_not_obey(tiny, monkeypatch, broken):
    kind = "bart" if broken == "_begun_anew" else "t5"
    model = copy.deepcopy(tiny(kind))
    if broken == "end_to_end_attention":
        across = lambda *args, lengths=None, seen=None, **settings: attend_apart(*args[:3], (args[0].shape[2],), (args[1].shape[2],), **settings)
        monkeypatch.setattr(end_to_end, "attend_apart", across)
    else:
        monkeypatch.setattr(end_to_end, broken, lambda *args: None)
        monkeypatch.setattr(end_to_end, "_one_pair_each", lambda *args: None)
    before = model.config._attn_implementation
    assert not can_run_end_to_end(model)
    assert model.config._attn_implementation == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_pairs_are_refused_where_the_attention_was_changed_or_one_is_empty(tiny):
    model = copy.deepcopy(tiny("t5"))
    assert can_run_end_to_end(model)
    model.set_attn_implementation("sdpa")
    with pytest.raises(UserError, match="pairs need the attention 'seodang_end_to_end', the model has 'sdpa'"):
        model(**row_of(ALIKE), pairs=ALIKE)
    with pytest.raises(UserError, match=r"got the lengths \(3, 0\) and \(1, 2\)"):
        Pairs((3, 0), (1, 2))
    with pytest.raises(UserError, match="a source and a target each"):
        Pairs((3,), (1, 2))


def test_a_decoder_is_none(tiny):
    assert not can_run_end_to_end(copy.deepcopy(tiny("llama")))


def test_records_that_differ_on_both_sides_share_few_calls():
    lengths, seen = (40, 3, 2, 3, 2), (5, 30, 4, 29, 5)
    # 40 beside a 3 would be 80 for 43; 3, 3, 2, 2 are 12 for 10, but of what these see 30, 29, 5 are 90 for 64, with 4 as well 120 for 68
    assert like_lengths(lengths, seen) == ((0,), (1, 3, 4), (2,))
    assert like_lengths((4, 4, 4), (5, 5, 5)) is None and not worth_padding((4, 4, 4), (5, 5, 5))  # one run
    assert worth_padding((4, 4), (5, 6)) and not worth_padding((4, 4), (5, 50)) and worth_padding((520, 520), (5, 6))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [((5, 2, 5, 9), (3, 3, 8, 1)), ((4, 4), (4, 4)), ((6, 5), (7, 8)), ((2, 40, 3, 41, 2), (3, 5, 30, 6, 29)), ((520, 3, 520), (7, 4, 6))])
def test_attention_and_its_gradients_equal_the_softmax_written_out(lengths, causal, biased):
    queries, seen = (lengths[0], lengths[0]) if causal or biased else lengths
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64).requires_grad_()
    query, key, value = draw(1, 4, sum(queries), 8), draw(1, 2, sum(seen), 8), draw(1, 2, sum(seen), 8)
    bias = draw(1, 4, max(queries), max(queries)) if biased else None
    told = bias if bias is None or not causal else bias.masked_fill(torch.ones(bias.shape[2:]).triu(1).bool(), -torch.inf)
    got = attend_apart(query, key, value, queries, seen, causal=causal, bias=told, scale=0.3, dropout=0.0)
    want = []
    for q, k, v in zip(query.split(queries, dim=2), key.split(seen, dim=2), value.split(seen, dim=2), strict=True):
        scores = 0.3 * q @ k.repeat_interleave(2, dim=1).transpose(2, 3)
        if biased:
            scores = scores + bias[:, :, : q.shape[2], : k.shape[2]]
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[2:]).triu(1).bool(), -torch.inf)
        want.append(scores.softmax(-1) @ v.repeat_interleave(2, dim=1))
    want = torch.cat(want, dim=2)
    torch.testing.assert_close(got, want)
    inputs = [query, key, value] + [bias] * biased
    weights = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    for ours, theirs in zip(torch.autograd.grad((got * weights).sum(), inputs), torch.autograd.grad((want * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(ours, theirs)
