"""The passes of a step: the sequences of all strategies laid together, one pass a runner, and their logits told apart again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.device import precise
from ..requests.likelihoods import Likelihoods, Place
from ..requests.sequence import TokenSequence
from ..requests.strategy import Forward
from ..requests.trace import PassTrace
from ..runners.contract import Runner


class Batch:
    """The slots of one runner that go through a pass together, and what came of them."""

    def __init__(self, runner: Runner):
        self.runner = runner
        self.slots: list[int] = []
        self.ids: list[list[int]] = []
        self.keep: list[int] = []
        self.layers: set[int] = set()
        self._parts: tuple[Tensor, ...] | None = None

    def add(self, slot: int, new: list[int], keep: int) -> int:
        """Add a slot with its new ids, of the newest `keep` of which the logits are wanted; return its index in the batch."""
        self.slots.append(slot)
        self.ids.append(new)
        self.keep.append(keep)
        return len(self.slots) - 1

    def run(self) -> None:
        """Run the pass: `logits` are then [sum(keep), vocab], `states` by layer those of each slot, [new ids, hidden] each."""
        if self.layers:
            logits, states = self.runner.observe(self.slots, self.ids, self.keep, sorted(self.layers))
            counts = [len(new) for new in self.ids]
            self.states = {layer: precise(state).split(counts) for layer, state in states.items()}
        else:
            logits = self.runner.forward(self.slots, self.ids, self.keep)
        self.logits = precise(logits)

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The logits of each slot, [keep, vocab]."""
        if self._parts is None:
            self._parts = self.logits.split(self.keep)
        return self._parts


class Placed(NamedTuple):
    """A sequence of a pass: its index in its runner's batch, and its guidance's in that of the guidance's runner."""

    sequence: TokenSequence
    index: int
    guidance: int | None


def run_forwards(forwards: Sequence[Forward]) -> list[Tensor]:
    """Run one pass a runner and return each forward's logits, [sum(keep), vocab]; guidance runs along and is combined."""
    batches: dict[Runner, Batch] = {}
    placed = [place(forward, batches) for forward in forwards]
    for batch in batches.values():
        batch.run()
    note_likelihoods(placed, batches)
    return [gathered(forward, batches, own) for forward, own in zip(forwards, placed)]


def note_likelihoods(placed: Sequence[Sequence[Placed]], batches: dict[Runner, Batch]) -> None:
    """Let the sequences that ask for it know what the model thinks of their next tokens, before guidance and filters."""
    asking = [each for forward in placed for each in forward if each.sequence.asks_likelihoods]
    for runner in dict.fromkeys(each.sequence.runner for each in asking):
        own = [each for each in asking if each.sequence.runner is runner]
        parts = [batches[runner].parts[each.index] for each in own]
        known = Likelihoods(torch.cat(parts), max(each.sequence.request.params.logprobs for each in own))
        row = 0
        for each, part in zip(own, parts):
            each.sequence.place = Place(known, row)
            row += len(part)


def place(forward: Forward, batches: dict[Runner, Batch]) -> list[Placed]:
    """Put a forward's sequences, and their guidance, into the batches of their runners; return where each was put."""
    placed = []
    for sequence, new, keep in zip(forward.sequences, forward.ids, forward.keep):
        batch = batch_of(sequence.runner, batches)
        index, other = batch.add(sequence.cache_slot, new, keep), None
        batch.layers.update(forward.layers)
        if (guidance := sequence.guidance) is not None:
            shown = guidance_ids(sequence, new)
            if keep:  # a part of a prompt wants no logits, and its guidance waits for the last one
                other = batch_of(guidance.runner, batches).add(guidance.cache_slot, shown, keep)
        placed.append(Placed(sequence, index, other))
    return placed


def batch_of(runner: Runner, batches: dict[Runner, Batch]) -> Batch:
    """Return the batch that the runner has in this step."""
    if runner not in batches:
        batches[runner] = Batch(runner)
    return batches[runner]


def guidance_ids(sequence: TokenSequence, new: list[int]) -> list[int]:
    """Return what the sequence's guidance has to be shown when the sequence is shown `new`: its own prompt first, then the same."""
    guidance = sequence.guidance
    of_prompt = len(sequence.unseen) - sequence.position if sequence.seen < len(sequence.request.prompt_ids) else 0
    unseen = guidance.ids[guidance.cached :]
    guidance.ids += new[of_prompt:]
    return unseen + new[of_prompt:]


def gathered(forward: Forward, batches: dict[Runner, Batch], placed: list[Placed]) -> Tensor:
    """Return a forward's logits, [sum(keep), vocab], and hand it its hidden states."""
    batch = batches[forward.sequences[0].runner]
    if forward.layers:
        forward.states = {layer: torch.cat([batch.states[layer][each.index] for each in placed]) for layer in forward.layers}
    if all(each.guidance is None for each in placed):
        if len(placed) == len(batch.slots):
            return batch.logits
        first, last = placed[0].index, placed[-1].index + 1  # without guidance between them a forward's sequences stand together
        begin = sum(batch.keep[:first])
        return batch.logits[begin : begin + sum(batch.keep[first:last])]
    return torch.cat([guided(each, batch.parts[each.index], batches) for each in placed])


def guided(placed: Placed, logits: Tensor, batches: dict[Runner, Batch]) -> Tensor:
    """Return the sequence's logits, [keep, vocab], changed by its guidance's where it has one."""
    sequence = placed.sequence
    if placed.guidance is None:
        return logits
    return sequence.request.guidance.combine(logits, batches[sequence.guidance.runner].parts[placed.guidance])


class Before(NamedTuple):
    """How much a sequence had seen before a pass, and whether the pass reads on in its prompt."""

    seen: int
    reads_prompt: bool


def seen_before(forwards: Sequence[Forward]) -> dict[TokenSequence, Before]:
    """Return how far each traced sequence is, to be compared with where it is after the pass."""
    traced = [sequence for forward in forwards for sequence in forward.sequences if sequence.request.traced]
    return {sequence: Before(sequence.seen, sequence.reads_prompt) for sequence in traced}


def trace_pass(forwards: Sequence[Forward], before: dict[TokenSequence, Before], seconds: float) -> None:
    """Trace what a pass cost, in seconds and positions, for the requests that are traced; `before` is how far their sequences were until then."""
    of_all = sum(len(ids) for forward in forwards for ids in forward.ids)
    for generation in dict.fromkeys(sequence.generation for sequence in before):
        own = [sequence for sequence in before if sequence.generation is generation]
        new = sum(sequence.seen - before[sequence].seen for sequence in own)
        record = PassTrace(seconds, new, of_all, sum(sequence.seen for sequence in own), any(before[sequence].reads_prompt for sequence in own))
        generation.trace(record, own[0].position)
