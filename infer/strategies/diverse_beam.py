"""Diverse beam search: groups of beams that are held away from one another (Vijayakumar et al., 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.errors import UserError
from ..requests.generation import Generation
from ..requests.options import CONFIG, option, settings
from ..requests.params import RequestParams
from ..requests.rules import not_negative, whole
from ..requests.strategy import Host, Strategy
from .beam import SHARED_BY_BEAMS, Beams, Search, beams, check_beams, searched
from .spec import StrategySpec


def diverse_beam(generation: Generation, host: Host) -> Strategy:
    """Search with `num_beam_groups` groups of beams one after the other; the answers are the best of all groups.

    At each step a group loses `diversity_penalty` of a token's log-probability for every beam of an earlier group that took the token
    there; scores contain what was lost. The first group is an ordinary beam search. A group that has ended takes nothing. Two groups may
    still arrive at the same answer.
    """
    params = generation.request.params
    size = params.num_beams // params.num_beam_groups
    return searched(generation, host, lambda sequence, group: GroupSearch(sequence, size, group), params.num_beam_groups)


class GroupSearch(Search):
    """The search of one group."""

    counts_ended = True

    def logprobs(self, logits: Tensor, taken: list[int]) -> Tensor:
        """The model's log-probabilities less what earlier groups took, [sequences, vocab]."""
        return less_taken(super().logprobs(logits, taken), taken, self.request.params.diversity_penalty)


def less_taken(logprobs: Tensor, taken: list[int], penalty: float) -> Tensor:
    """Subtract `penalty` for each time that a token was taken: the Hamming diversity of [rows, vocab]."""
    if not taken:
        return logprobs
    counts = torch.bincount(torch.tensor(taken, device=logprobs.device), minlength=logprobs.shape[-1])
    return logprobs - penalty * counts.to(logprobs.dtype)


def check_groups(params: RequestParams) -> None:
    """Raise UserError for groups of unequal size, and for groups that nothing would hold apart."""
    check_beams(params)
    if params.num_beams % params.num_beam_groups:
        raise UserError(f"num_beams={params.num_beams} is no multiple of num_beam_groups={params.num_beam_groups}: change one of them")
    if params.num_beam_groups > 1 and not params.diversity_penalty:
        raise UserError(f"num_beam_groups={params.num_beam_groups} would all find the same: give a diversity_penalty above 0")


@settings
class BeamGroups:
    num_beam_groups: int = option(1, "Groups of beams that are held apart by diversity_penalty.", whole(1), example=2, same_in=(CONFIG,))
    diversity_penalty: float = option(
        0.0, "Taken from a token for each earlier group that chose it.", not_negative, example=0.5, same_in=(CONFIG,)
    )


DIVERSE_BEAM = StrategySpec(
    "diverse_beam", diverse_beam, about=diverse_beam, options=(Beams, BeamGroups),
    least={"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5}, meant=lambda params: params.num_beam_groups > 1, needs=("fork",),
    check=check_groups, width=beams, samples=False, sees_logprobs=True, streams=SHARED_BY_BEAMS, paper="Vijayakumar et al. 2018, Diverse beam search",
)  # fmt: skip
