"""The choice of an id in one native call, for sequences whose filters it knows: penalties, a grammar, and the shortlist."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...data.errors import UserError
from ..requests.sequence import TokenSequence
from ..runners.native.scores import Rows, library_for
from .shortlist import SHORTLIST
from .spec import placed

PENALTIES = {"repetition_penalty": "repetition", "frequency_penalty": "frequency", "presence_penalty": "presence"}  # as `Asked` calls them
ORDER = (*PENALTIES, "constraints", "temperature", SHORTLIST)  # in which it applies them


class NativeChoice:
    """Chooses for a fixed set of sequences, each after its own filters, `chains` of their names; `columns` are those of a shortlist of all sequences."""

    def __init__(self, sequences: Sequence[TokenSequence], chains: Sequence[tuple[str, ...]], columns: Sequence[Tensor]):
        self._sequences = sequences
        self._known = [is_known(sequence.constraints) and is_in_order(names) for sequence, names in zip(sequences, chains)]
        self._rows = Rows(len(sequences))
        self._looking_back, self._constrained = [], []
        t, k, p, m = placed(columns, torch.empty(0, dtype=torch.float32, device="cpu"))
        warping = zip(*(each.flatten().tolist() for each in (t, k, p, m.log())))
        for sequence, names, asked, own in zip(sequences, chains, self._rows.asked, warping):
            params = sequence.request.params
            asked.t, asked.k, asked.p, asked.floor = own
            asked.draws, asked.prompt = params.samples, len(sequence.request.prompt_ids)
            for name in PENALTIES.keys() & names:
                setattr(asked, PENALTIES[name], getattr(params, name))
            self._looking_back.append(not PENALTIES.keys().isdisjoint(names))
            self._constrained.append("constraints" in names)

    def __call__(self, logits: Tensor, vocab: int) -> tuple[list[int], list[float]] | None:
        """An id for each sequence among the first `vocab`, and its log-probability behind the filters; -1 where torch has to filter and choose.

        logits are [sequences, vocab or more]; None where it has to for all of them.
        """
        if not any(self._known) or (library := library_for(logits)) is None:
            return None
        wanted = list(self._known)
        for row, (sequence, asked) in enumerate(zip(self._sequences, self._rows.asked)):
            if not wanted[row]:
                continue
            if asked.draws:
                asked.key = sequence.key()
            if self._looking_back[row]:
                asked.past, asked.said = sequence.history_at(), len(sequence.ids)
            if self._constrained[row]:
                try:
                    asked.bits = bits = sequence.constraints[0].bits(vocab)
                    asked.bytes = len(bits)
                except UserError:  # which is told where the constraint is applied as a filter
                    wanted[row] = False
        return self._rows.choose(library, logits, vocab, wanted)


def is_in_order(names: tuple[str, ...]) -> bool:
    """Whether there are no other filters, and these in the order in which they are applied natively."""
    return list(names) == [name for name in ORDER if name in names]


def is_known(constraints: Sequence[object]) -> bool:
    """Whether there is no constraint, or one that says in bits which ids may come."""
    return not constraints or len(constraints) == 1 and hasattr(constraints[0], "bits")
