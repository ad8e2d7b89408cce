"""Rows to a batch with masks in its answers: what is masked, what the model is asked there, and what each answer weighs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.labels import IGNORE_INDEX, Row
from ...data.packing import collate, collate_padded, records_of
from ...infer.diffusion.masking import SCHEDULES, likelihood_weight
from ...infer.diffusion.schedule import blocks_of
from ...infer.requests.rng import hashed
from ...infer.runners.paradigm import Diffusion
from ..maths.denoising import context_weights, stratified_time
from .canvas import Canvas, prompt_length
from .noisy_record import noisy_record
from .objective import DenoisingObjective
from .order import DRAWN


@dataclass
class Question:
    """A record as the model is to see it, and what it is asked: all lists have as many values.

    `targets` and `weights` stand where the model reads out its answer; a weight of 0 asks nothing. `labels` are the answer's ids where these
    count as trained tokens. `causal` is how many of the first tokens see only what stands before them, `copied` how many of the last are a copy of
    the answer, see `NoisyRecord`.
    """

    input_ids: list[int]
    position_ids: list[int]
    labels: list[int]
    targets: list[int]
    weights: list[float]
    causal: int
    copied: int


@dataclass(frozen=True)
class DenoisingCollator:
    """Rows of `input_ids` and `labels` to a batch, corrupted by noise that depends on the seed and on when each row was drawn, and on nothing else.

    A resumed run, other workers, and processes and accumulated steps that make up the same batch of `strata` rows get the same masks. The times
    of these rows are stratified: one in each of as many equal parts of [0, 1). What a row was filled up with is cropped at random, by whole blocks
    where the model has any, then each token of its answer is masked with the same probability, or each of a block with that of the block, whose times
    are stratified too; complementary copies mask the others. Prompts are never masked.

    Without `end_to_end` each record is a row of its own, padded on the right.
    """

    objective: DenoisingObjective
    diffusion: Diffusion
    canvas: Canvas
    seed: int = 0
    strata: int = 1
    end_to_end: bool = True

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of some rows to train on; rows that nobody drew, as in a trial, count as the first of the first epoch."""
        return self._laid(question for place, row in enumerate(rows) for question in self._trained(row, *row.get(DRAWN, (0, place))))

    def held_out(self, rows: Sequence[Row], numbers: Sequence[int]) -> dict[str, Any]:
        """The batch of some held-out rows, known by their numbers: of each `eval_draws` corrupted copies, and a clean one where there is a co-loss.

        The masks are the same at each evaluation, whatever the batches and the seed; the times of a row's copies are stratified.
        """
        return self._laid(question for row, number in zip(rows, numbers, strict=True) for question in self._measured(row, number))

    def copies(self) -> int:
        """How many questions `held_out` makes of a row."""
        return self.objective.eval_draws + (self.objective.co_loss > 0)

    # Questions of one row

    def _trained(self, row: Row, epoch: int, place: int) -> Iterator[Question]:
        offset = _uniform("offset", self.seed, epoch, place // self.strata)
        time = stratified_time(offset, place % self.strata, self.strata)
        records = list(records_of(row))
        for index, record in enumerate(records):
            noise = torch.Generator().manual_seed(hashed("masks", self.seed, epoch, place, index))
            unit = self.diffusion.block_length or 1
            if self.objective.crop and (filled := self.canvas.filled(record["input_ids"]) // unit):
                keep = len(record["input_ids"]) - unit * int(torch.randint(filled + 1, (), generator=noise))
                record = {name: values[:keep] for name, values in record.items()}
            yield from self._corrupted(record, stratified_time(time, index, len(records)), noise)
            if self.objective.co_loss:
                yield self._left_to_right(record, self.objective.co_loss * (1 + self.objective.complementary))

    def _measured(self, row: Row, number: int) -> Iterator[Question]:
        draws = self.objective.eval_draws
        for draw in range(draws):
            noise = torch.Generator().manual_seed(hashed("held out", number, draw))
            yield next(self._corrupted(row, stratified_time(_uniform("held out", number), draw, draws), noise))
        if self.objective.co_loss:
            yield self._left_to_right(row, 1.0)

    def _corrupted(self, record: Row, time: float, noise: torch.Generator) -> Iterator[Question]:
        border = prompt_length(record)
        prompt, answer = record["input_ids"][:border], record["input_ids"][border:]
        blocks = blocks_of(len(answer), self.diffusion.block_length)
        times = [stratified_time(time, number, len(blocks)) for number in range(len(blocks))]
        drawn = torch.rand(len(answer), generator=noise, dtype=torch.float64).tolist()
        rate = SCHEDULES[self.objective.schedule].rate
        masked = [drawn[place] < rate(own) for block, own in zip(blocks, times, strict=True) for place in block]
        yield self._question(prompt, answer, masked, times, False)
        if self.objective.complementary:
            yield self._question(prompt, answer, [not each for each in masked], times, True)

    def _question(self, prompt: list[int], answer: list[int], masked: list[bool], times: list[float], complement: bool) -> Question:
        """What is asked of an answer with some tokens masked, each block at its time."""
        laid = noisy_record(prompt, answer, masked, self.diffusion)
        total = len(laid.input_ids)
        labels, targets, weights = [IGNORE_INDEX] * (total - len(answer)) + answer, [IGNORE_INDEX] * total, [0.0] * total
        for block, time in zip(blocks_of(len(answer), self.diffusion.block_length), times, strict=True):
            own = self._weights(len(prompt) + block.start, masked[block.start : block.stop], time, complement)
            for place, weight in zip(block, own, strict=True):
                if masked[place]:
                    targets[laid.read_at[place]], weights[laid.read_at[place]] = answer[place], weight
        return Question(laid.input_ids, laid.position_ids, labels, targets, weights, laid.causal, laid.copied)

    def _weights(self, before: int, masked: list[bool], time: float, complement: bool) -> list[float]:
        """What each token of a block weighs, which sees so many clean tokens before it."""
        if self.objective.weighting == "cart":
            return context_weights([False] * before + masked, self.objective.cart_p)[before:]
        weight = 1.0
        if self.objective.weighting == "one_over_t" and any(masked):
            weight = likelihood_weight(self.objective.schedule, time, complement)
            weight = min(weight, self.objective.max_weight or weight)
        return [weight * hidden for hidden in masked]

    def _left_to_right(self, record: Row, weight: float) -> Question:
        """The record unmasked and causal: each of the answer's tokens is read at the one before. It counts no tokens, for its copies have."""
        weights = [weight * (label != IGNORE_INDEX) for label in record["labels"]]
        uncounted = [IGNORE_INDEX] * len(weights)
        targets, weights = [*record["labels"][1:], IGNORE_INDEX], [*weights[1:], 0.0]
        return Question(record["input_ids"], list(range(len(weights))), uncounted, targets, weights, len(weights), 0)

    # The batch

    def _laid(self, questions: Iterator[Question]) -> dict[str, Any]:
        """`input_ids`, `labels`, `targets` and `weights`, [1, total] or [records, longest], with what their layout needs beside them."""
        asked = list(questions)
        features = [{"input_ids": each.input_ids, "labels": each.labels} for each in asked]
        if not self.end_to_end:
            batch, longest = collate_padded(features, self.canvas.filling), max(len(each.weights) for each in asked)
            return batch | {
                "targets": torch.tensor([each.targets + [IGNORE_INDEX] * (longest - len(each.targets)) for each in asked]),
                "weights": torch.tensor([each.weights + [0.0] * (longest - len(each.weights)) for each in asked]),
            }
        batch = collate(features) | {
            "targets": torch.tensor([[target for each in asked for target in each.targets]]),
            "weights": torch.tensor([[weight for each in asked for weight in each.weights]]),
            "causal_lengths": torch.tensor([each.causal for each in asked]),
        }
        if self.diffusion.block_length is None:
            return batch
        return batch | {
            "position_ids": torch.tensor([[place for each in asked for place in each.position_ids]]),
            "copied_lengths": torch.tensor([each.copied for each in asked]),
            "block_length": self.diffusion.block_length,
        }


def record_of_each_token(batch: dict[str, Any]) -> Tensor:
    """Which of a batch's records each of its tokens belongs to, in the layout of its `input_ids`."""
    ids = batch["input_ids"]
    if "cu_seq_lens_q" not in batch:
        return torch.arange(len(ids), device=ids.device)[:, None].expand_as(ids)
    lengths = batch["cu_seq_lens_q"].diff()
    return torch.repeat_interleave(torch.arange(len(lengths), device=ids.device), lengths)[None]


def _uniform(*parts: object) -> float:
    return (hashed(*parts) >> 11) / (1 << 53)
