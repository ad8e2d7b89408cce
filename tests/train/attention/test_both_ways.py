import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.runners.packed_records import like_lengths, worth_padding
from seodang.train.attention.both_ways import attend_both_ways
from seodang.train.attention.packed_attention import PACKED, packed_attention

LENGTHS = [(5, 7, 6, 6), (3, 40, 1, 3, 3), (4, 4, 4), (9, 2, 7, 1, 8, 2)]
KINDS = {"both ways": lambda n: 0, "causal": lambda n: n, "prompts": lambda n: n // 2, "mixed": lambda n: {0: 0, 1: n}.get(n % 3, 2)}


def inputs(lengths, heads=4, kv_heads=2, d=8):
    generator, total = torch.Generator().manual_seed(0), sum(lengths)
    return [torch.randn(1, count, total, d, generator=generator, dtype=torch.float64).requires_grad_() for count in (heads, kv_heads, kv_heads)]


def dense(query, key, value, lengths, causal, softcap=None, scale=None, window=None):
    """One square mask over all records, written out: a query sees a key of its record that stands no later, or any, if it stands behind the causal part.

    With a window it sees none that is farther away.
    """
    total = sum(lengths)
    mask = torch.zeros(total, total, dtype=torch.bool)
    start = 0
    for length, first in zip(lengths, causal, strict=True):
        for q in range(length):
            for k in range(length):
                mask[start + q, start + k] = (k <= q or q >= first) and (window is None or abs(q - k) <= window)
        start += length
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[3] ** -0.5 if scale is None else scale)
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value


@pytest.mark.parametrize("settings", [{}, {"softcap": 1.5}, {"scale": 0.2}])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_and_its_gradients_equal_those_of_one_dense_mask(lengths, kind, settings):
    causal = tuple(KINDS[kind](n) for n in lengths)
    ours, theirs = inputs(lengths), inputs(lengths)
    out, expected = attend_both_ways(*ours, lengths, causal, **settings), dense(*theirs, lengths, causal, **settings)
    assert torch.allclose(out, expected, atol=1e-12)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for q, r in zip(ours, theirs, strict=True):
        assert torch.allclose(q.grad, r.grad, atol=1e-12)


BLOCKS = {  # lengths, tokens of the prompt, and of the copied answer, of which no copy sees the last block
    "padded": ((3 + 4 + 5, 2 + 2 + 4, 4 + 0 + 2, 9), (3, 2, 4, 9), (5, 4, 2, 0)),
    "grouped": ((1 + 8 + 9, 2 + 0 + 1, 5, 30 + 4 + 6, 2 + 0 + 2), (1, 2, 5, 30, 2), (9, 1, 0, 6, 2)),
    "alike": ((2 + 4 + 6, 2 + 4 + 6, 3 + 4 + 5, 58 + 0 + 2), (2, 2, 3, 58), (6, 6, 5, 2)),
}


def sees_in_blocks(query, key, length, prompt, copied, block):
    """Whether a place of a record sees another: the rule in words, a case after the other."""
    border = length - copied
    if query < prompt:
        return key <= query
    if key < prompt:
        return True
    if query < border:
        return key < border and (key - prompt) // block <= (query - prompt) // block
    if key < border:
        return (key - prompt) // block < (query - border) // block
    return (key - border) // block == (query - border) // block


@pytest.mark.parametrize("settings", [{}, {"softcap": 1.5}])
@pytest.mark.parametrize("kind", BLOCKS)
def test_copied_blocks_see_themselves_and_what_stands_before_their_originals(kind, settings):
    lengths, prompts, copied = BLOCKS[kind]
    ours, theirs = inputs(lengths), inputs(lengths)
    out = attend_both_ways(*ours, lengths, prompts, copied, block_length=2, **settings)
    mask = torch.block_diag(*(
        torch.tensor([[float(sees_in_blocks(q, k, *each, 2)) for k in range(each[0])] for q in range(each[0])]) for each in zip(lengths, prompts, copied)
    )).bool()  # fmt: skip
    query, key, value = theirs
    scores = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 8**-0.5
    scores = torch.tanh(scores / 1.5) * 1.5 if settings else scores
    expected = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value.repeat_interleave(2, dim=1)
    assert torch.allclose(out, expected, atol=1e-12)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for q, r in zip(ours, theirs, strict=True):
        assert torch.allclose(q.grad, r.grad, atol=1e-12)


def test_all_ways_to_compute_blocks_were_tried():
    assert [worth_padding(lengths) for lengths, _, _ in BLOCKS.values()] == [True, False, False]
    assert [like_lengths(lengths) is not None for lengths, _, _ in BLOCKS.values()] == [True, True, False]


@pytest.mark.parametrize("window", [1, 3, 50])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_window_goes_both_ways_and_stops_at_the_records_borders(lengths, window):
    ours, theirs = inputs(lengths), inputs(lengths)
    out = attend_both_ways(*ours, lengths, (0,) * len(lengths), window=window)
    expected = dense(*theirs, lengths, (0,) * len(lengths), window=window)
    assert torch.allclose(out, expected, atol=1e-12)
    out.square().sum().backward()
    expected.square().sum().backward()
    for q, r in zip(ours, theirs, strict=True):
        assert torch.allclose(q.grad, r.grad, atol=1e-12)


def test_all_ways_to_compute_it_were_tried():
    assert [worth_padding(lengths) for lengths in LENGTHS] == [True, False, False, False]
    assert [like_lengths(lengths) for lengths in LENGTHS] == [((1, 2, 3, 0),), ((1,), (0, 3, 4, 2)), None, ((0, 4, 2, 1), (5, 3))]


def test_long_records_share_a_call_with_those_of_their_own_length_alone():
    assert like_lengths((600, 9, 601, 8, 600)) == ((2,), (0, 4), (1, 3))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "granite"])
@pytest.mark.parametrize("prompts", [(0, 0, 0), (4, 2, 6)])
def test_packed_logits_equal_those_of_each_record_alone(fresh_tiny, kind, prompts):
    model = fresh_tiny(kind)
    generator = torch.Generator().manual_seed(0)
    records = [torch.randint(3, 128, (length,), generator=generator) for length in (9, 7, 8)]
    model.set_attn_implementation("eager")
    alone = []
    for ids, prompt in zip(records, prompts, strict=True):
        place = torch.arange(len(ids))
        visible = (place[None] <= place[:, None]) | (place[:, None] >= prompt)
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
        alone.append(model(ids[None], attention_mask=mask, use_cache=False).logits[0])
    model.set_attn_implementation(PACKED)
    positions = torch.cat([torch.arange(len(ids)) for ids in records])[None]
    lengths = tuple(map(len, records))
    for declared in (True, False):  # what the config says of the whole does not matter
        model.config.is_causal = declared
        together = model(torch.cat(records)[None], position_ids=positions, record_lengths=lengths, causal_lengths=prompts, use_cache=False).logits[0]
        assert torch.allclose(together, torch.cat(alone), atol=2e-5)


@pytest.mark.parametrize("declared", [True, False])
def test_without_records_the_config_says_which_way_a_model_reads(fresh_tiny, declared):
    model, ids = fresh_tiny("llama"), torch.tensor([[5, 6, 7, 8, 9]])
    model.config.is_causal = declared
    expected = model(ids, use_cache=False).logits
    model.set_attn_implementation(PACKED)
    assert torch.allclose(model(ids, use_cache=False).logits, expected, atol=2e-5)


def test_a_record_does_not_feel_its_neighbours():
    """Another record of the same length beside it: the same output, bit for bit."""
    one, other = inputs((6, 9)), inputs((6, 9))
    for x in other:
        x.data[:, :, 6:] += 1
    first, second = (attend_both_ways(*x, (6, 9), (0, 3))[:, :, :6] for x in (one, other))
    assert torch.equal(first, second)


def test_a_sliding_window_is_refused(tiny_llama):
    q = torch.zeros(1, 4, 3, 8)
    with pytest.raises(UserError, match="sliding window of 2 positions"):
        packed_attention(tiny_llama.model.layers[0].self_attn, q, q, q, None, record_lengths=(3,), causal_lengths=(0,), sliding_window=2)
