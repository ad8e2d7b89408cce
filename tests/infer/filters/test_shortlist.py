"""The shortlist gives what the whole vocabulary would, to the last bit."""

import pytest
import torch

from seodang.infer.filters.shortlist import LONGEST, shortlist, step_by_step


def columns(rows: int, generator: torch.Generator):
    def pick(values, dtype):
        return torch.tensor(values, dtype=dtype)[torch.randint(len(values), (rows, 1), generator=generator)]

    return (
        pick([0.3, 0.7, 1.0, 1.3], torch.float32), pick([1, 2, 50, LONGEST], torch.long),
        pick([0.1, 0.5, 0.95, 1.0], torch.float32), pick([0.0, 0.05, 0.5, 1.0], torch.float32),
    )  # fmt: skip


@pytest.mark.parametrize("vocab", [200, 256, 257, 5000])
@pytest.mark.parametrize("scale", [0.2, 2.0, 9.0])
def test_equal_to_the_four_filters_bit_for_bit(vocab, scale):
    generator = torch.Generator().manual_seed(vocab)
    logits = scale * torch.randn(64, vocab, generator=generator)
    logits[::5, 7:] = -torch.inf  # fewer candidates than k
    arguments = columns(64, generator)
    got, _ = shortlist(logits, *arguments)
    assert torch.equal(got, step_by_step(logits, *arguments))
    assert (got > -torch.inf).sum(dim=-1).unique().numel() > 2


def test_equal_where_many_tokens_are_level():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(0, 6, (64, 500), generator=generator).float()
    logits[:3] = 0.0
    arguments = columns(64, generator)
    assert torch.equal(shortlist(logits, *arguments)[0], step_by_step(logits, *arguments))


def test_a_row_does_not_depend_on_its_mates():
    generator = torch.Generator().manual_seed(2)
    logits, arguments = 3 * torch.randn(64, 900, generator=generator), columns(64, generator)
    logits[::7] = logits[::7].round()  # some of which have level tokens
    together, _ = shortlist(logits, *arguments)
    for i in range(64):
        assert torch.equal(shortlist(logits[i : i + 1], *(each[i : i + 1] for each in arguments))[0][0], together[i])
