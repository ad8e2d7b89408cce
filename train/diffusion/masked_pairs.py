"""Ranked answers as batches of masked copies, whose weighted log-probabilities are estimates of the bounds on their likelihoods."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ...data.packing import collate, collate_padded
from ...infer.diffusion.masking import Draws, Masks, masks_of
from ...infer.runners.paradigm import BIDIRECTIONAL, Diffusion
from .order import DRAWN, NUMBER, Drawn, NumberedRows

Rows = Sequence[dict[str, Any]]


@dataclass
class MaskedCopy:
    """A prompt and one of its answers with some tokens masked: the branch that it is of, its masks, and how many first tokens are its prompt."""

    branch: int
    input_ids: list[int]
    answer: list[int]
    masks: Masks
    prompt: int


@dataclass(frozen=True)
class MaskedBranches:
    """Rows of `prompt_ids` and `branches` to a batch as `collate_branches` makes it, but of masked copies: `weights` and `owners`, [masked tokens], say how
    much each log-probability counts, and for which branch.

    The masks hang on the seed, the epoch and the row, and not on the branch: a better and a worse answer of as many tokens have the same ones, and policy
    and reference, which are asked of one batch, always do (Zhu et al. 2025, "LLaDA 1.5": VRPO). Those of held-out rows hang on the row alone. Rows that
    nobody numbered count from the first. Without `end_to_end` each copy is a row of its own, padded on the right with `filling`.
    """

    diffusion: Diffusion
    draws: Draws
    end_to_end: bool = True
    filling: int = 0

    def __call__(self, rows: Rows) -> dict[str, Any]:
        branches = [branch for row in rows for branch in row["branches"]]
        copies = list(self._copies(rows))
        lengths = [len(copy.input_ids) for copy in copies]
        features = [{"input_ids": copy.input_ids, "labels": copy.input_ids} for copy in copies]
        batch = collate(features) if self.end_to_end else collate_padded(features, self.filling)
        layout = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
        if self.end_to_end:
            causal = [0 if self.diffusion.attention == BIDIRECTIONAL else copy.prompt for copy in copies]
            layout |= {"record_lengths": tuple(lengths), "causal_lengths": tuple(causal)}
            starts = [0, *accumulate(lengths)][:-1]
        else:
            starts = [number * batch["input_ids"].shape[1] for number in range(len(copies))]
        return layout | self._asked(copies, starts) | {"branch_lengths": tuple(map(len, branches))}

    def _copies(self, rows: Rows) -> Iterator[MaskedCopy]:
        branch = 0
        for place, row in enumerate(rows):
            number = row.get(NUMBER, place)
            key, draws = (("pairs", row[DRAWN][0], number), self.draws) if DRAWN in row else (("held-out pairs", number), replace(self.draws, seed=0))
            for answer in row["branches"]:
                for masks in masks_of(len(answer), draws, *key):
                    canvas = [self.diffusion.mask_token_id if hidden else id for id, hidden in zip(answer, masks.masked, strict=True)]
                    yield MaskedCopy(branch, row["prompt_ids"] + canvas, answer, masks, len(row["prompt_ids"]))
                branch += 1

    def _asked(self, copies: Sequence[MaskedCopy], starts: Sequence[int]) -> dict[str, Tensor]:
        """Where each masked token is read, what it is, what it weighs and whose it is, [masked tokens] each."""
        predictors, targets, weights, owners = [], [], [], []
        for copy, start in zip(copies, starts, strict=True):
            places = [place for place, hidden in enumerate(copy.masks.masked) if hidden]
            predictors += [start + copy.prompt + place - self.diffusion.shift for place in places]
            targets += [copy.answer[place] for place in places]
            weights += [copy.masks.weight] * len(places)
            owners += [copy.branch] * len(places)
        return {"predictors": torch.tensor(predictors), "targets": torch.tensor(targets), "weights": torch.tensor(weights), "owners": torch.tensor(owners)}


class NumberedPairs(NumberedRows):
    """Rows that know their numbers and the epoch that they are drawn in, the first where nobody drew them.

    Of rows that the reference has scored, `references` by epoch, each is given that epoch's.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch = index.epoch if isinstance(index, Drawn) else 0
        return self.of_epoch(epoch, int(index))

    def of_epoch(self, epoch: int, number: int) -> dict[str, Any]:
        """The row of a number as it is in an epoch."""
        row = {**self.rows[number], NUMBER: number, DRAWN: (epoch, number)}
        if (scored := row.pop("references", None)) is not None:
            row["reference"] = scored[epoch]
        return row


def numbered(rows: Rows | None) -> list[dict[str, Any]] | None:
    """Rows that are measured, with their numbers; those that have one keep it."""
    return None if rows is None else [row if NUMBER in row else {**row, NUMBER: number} for number, row in enumerate(rows)]
