"""Ranked answers as batches of masked copies, whose weighted log-probabilities are estimates of the bounds on their likelihoods."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from ...data.packing import collate, collate_padded
from ...infer.diffusion.masking import Draws, Masks, masks_of
from ...infer.diffusion.schedule import blocks_of
from ...infer.runners.paradigm import Diffusion
from .noisy_record import NoisyRecord, noisy_record
from .order import DRAWN, NUMBER, Drawn, NumberedRows

Rows = Sequence[dict[str, Any]]


@dataclass
class MaskedCopy:
    """A prompt and one of its answers with some tokens masked: the branch that it is of, and what each of its tokens weighs, 0 where it is not masked."""

    branch: int
    laid: NoisyRecord
    answer: list[int]
    weights: list[float]


@dataclass(frozen=True)
class MaskedBranches:
    """Rows of `prompt_ids` and `branches` to a batch as `collate_branches` makes it, but of masked copies: `weights` and `owners`, [masked tokens], say how
    much each log-probability counts, and for which branch. Each block of a model of blocks has masks of its own.

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
        lengths = [len(copy.laid.input_ids) for copy in copies]
        features = [{"input_ids": copy.laid.input_ids, "labels": copy.laid.input_ids} for copy in copies]
        batch = collate(features) if self.end_to_end else collate_padded(features, self.filling)
        layout = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask") if name in batch}
        if self.end_to_end:
            layout |= {"record_lengths": tuple(lengths), "causal_lengths": tuple(copy.laid.causal for copy in copies)}
            if self.diffusion.block_length is not None:
                layout |= {"copied_lengths": tuple(copy.laid.copied for copy in copies), "block_length": self.diffusion.block_length}
                layout["position_ids"] = torch.tensor([[place for copy in copies for place in copy.laid.position_ids]])
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
                for masks in self._masks(len(answer), draws, *key):
                    masked, weights = zip(*((hidden, weight * hidden) for own, weight in masks for hidden in own), strict=True)
                    yield MaskedCopy(branch, noisy_record(row["prompt_ids"], answer, masked, self.diffusion), answer, list(weights))
                branch += 1

    def _masks(self, length: int, draws: Draws, *key: object) -> Iterator[Sequence[Masks]]:
        """The masks of each copy of an answer, block after block; a short last block may have fewer than the others, and then has none."""
        blocks = blocks_of(length, self.diffusion.block_length)
        drawn = [masks_of(len(block), draws, *key, number) for number, block in enumerate(blocks)]
        for copy in range(max(map(len, drawn))):
            yield [own[copy] if copy < len(own) else Masks([False] * len(block), 0.0) for block, own in zip(blocks, drawn, strict=True)]

    def _asked(self, copies: Sequence[MaskedCopy], starts: Sequence[int]) -> dict[str, Tensor]:
        """Where each masked token is read, what it is, what it weighs and whose it is, [masked tokens] each."""
        predictors, targets, weights, owners = [], [], [], []
        for copy, start in zip(copies, starts, strict=True):
            places = [place for place, weight in enumerate(copy.weights) if weight]
            predictors += [start + copy.laid.read_at[place] for place in places]
            targets += [copy.answer[place] for place in places]
            weights += [copy.weights[place] for place in places]
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
