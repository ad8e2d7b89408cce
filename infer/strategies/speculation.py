"""Which guessed tokens stay, so that what stays is distributed as the target model alone would have it.

p is the target's distribution and q the one a guess was drawn from, [n, vocab] each, both after every filter
(Leviathan et al., 2023; Chen et al., 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..requests.rng import draw


@dataclass
class Guess:
    """Tokens that may come next, with the scores, [vocab] each, of the distributions that they were drawn from.

    Without scores the guess is certain of itself, a point mass. `probs` are what traces show.
    """

    ids: list[int] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    probs: list[float] = field(default_factory=list)

    def cut(self, count: int) -> None:
        """Keep the first `count` tokens."""
        for part in (self.ids, self.scores, self.probs):
            del part[count:]


def acceptance(p: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    """Return the probability with which each guessed id stays, min(1, p / q): [n]."""
    at = ids[:, None]
    return (p.gather(-1, at) / q.gather(-1, at)).squeeze(-1).clamp(max=1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return what a refused guess is replaced from, max(p - q, 0), not normalised: [n, vocab]."""
    rest = (p - q).clamp(min=0)
    return torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, p)  # where they are equal, rounding alone can refuse


def speculate(p: Tensor, q: Tensor, ids: Tensor, judge: Tensor, keys: Tensor) -> Tensor:
    """Return each guessed id, or what replaces it, [n]: drawn from q, they come out drawn from p.

    `judge`, [n] numbers in [0, 1), decide whether the guesses stay; `keys`, [n], draw the replacements. Both are the rows' own, and
    none of them drew a guess.
    """
    stays = judge < acceptance(p, q, ids)
    return torch.where(stays, ids, draw(residual(p, q), keys))
