"""What a filter is: its settings, its kind, whether a request asks for it, and what applies it to the sequences that ask.

What applies it is made once for a fixed set of sequences, `apply = spec.make(sequences)`, and then maps their scores, [rows, vocab],
to scores at every step. Where nothing is to be done at a step it returns what it was given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...data.errors import UserError
from ..requests.options import options_of
from ..requests.params import RequestParams
from ..requests.sequence import TokenSequence

Apply = Callable[[Tensor], Tensor]
Make = Callable[[Sequence[TokenSequence]], Apply]

# what filters do, with the word for several: "bias" adds to scores, "penalty" looks back, "ban" drops tokens by name, "own" is the
# caller's, "constraint" steers the text, "warper" shapes the distribution and applies to sequences that sample alone
KINDS = {"bias": "biases", "penalty": "penalties", "ban": "bans", "own": "own filters", "constraint": "constraints", "warper": "warpers"}


class RowErrors(Exception):
    """A filter failed on some of its sequences: their errors by the sequence's place, and the scores, in which theirs are what they were."""

    def __init__(self, errors: dict[int, UserError], scores: Tensor):
        self.errors, self.scores = errors, scores


@dataclass(frozen=True)
class FilterSpec:
    """A filter by its name, of one of `KINDS`: `function` does it, `options` is the class of its settings, `make` applies it to sequences.

    `asks` says whether a request asks for it: without, where the first of its settings is given and not 0 or empty. `shares` names settings of
    another filter that it reads too, `asked_by` sets of settings that each ask for it, where that is not the first one alone. `check` says
    what is wrong with the settings together. `memoryless`: nothing counts but scores and settings, neither what was said before nor
    where. `looks_back` names the settings given for which what was said before counts: without, all that are given, and of one without memory
    none. `of_the_scale`: a constant added to all scores matters to it.
    """

    name: str
    kind: str
    function: Callable[..., Tensor]
    options: type
    make: Make
    asks: Callable[[RequestParams], bool] | None = None
    shares: tuple[str, ...] = ()
    asked_by: tuple[tuple[str, ...], ...] = ()
    check: Callable[[RequestParams], str | None] = lambda params: None
    memoryless: bool = False
    looks_back: Callable[[RequestParams], Collection[str]] | None = None
    of_the_scale: bool = False

    def __post_init__(self):
        assert self.kind in KINDS, self.kind
        if self.asks is None:
            object.__setattr__(self, "asks", given(self.fields[0]))
        if self.looks_back is None:
            object.__setattr__(self, "looks_back", nothing if self.memoryless else lambda params: [name for name in self.fields if name in params.given])
        if not self.asked_by:
            object.__setattr__(self, "asked_by", (self.fields[:1],))

    @property
    def fields(self) -> tuple[str, ...]:
        """The settings that it reads."""
        return (*self.shares, *options_of(self.options))

    @property
    def source(self) -> str:
        """Where the filter comes from: the line of its function's documentation that begins with "Source:"."""
        lines = (inspect.getdoc(self.function) or "").split("\n")
        return next((line.removeprefix("Source: ").rstrip(".") for line in lines if line.startswith("Source: ")), "")


def column(sequences: Sequence[TokenSequence], name: str) -> Tensor:
    """One setting of every sequence, [rows, 1]: whole numbers for top_k, float64 for all others."""
    dtype = torch.long if name == "top_k" else torch.float64
    return torch.tensor([getattr(sequence.request.params, name) for sequence in sequences], dtype=dtype)[:, None]


def placed(columns: Sequence[Tensor], scores: Tensor) -> list[Tensor]:
    """Columns, [rows, 1] each, where the scores are and, but for whole numbers, of their type."""
    return [each.to(scores.device, scores.dtype if each.is_floating_point() else each.dtype) for each in columns]


def nothing(params: RequestParams) -> Collection[str]:
    """Of a filter to which at most counts where a token stands, whatever was said before: no setting looks back."""
    return ()


def given(*names: str) -> Callable[[RequestParams], bool]:
    """Whether one of the settings asks for something; None, 0 and the empty do not."""
    return lambda params: any(getattr(params, name) for name in names)


def other_than(name: str, neutral: float | None) -> Callable[[RequestParams], bool]:
    """Whether the setting is given and does not leave the sequence as it is."""
    return lambda params: getattr(params, name) not in (None, neutral)


def warping(function: Callable[..., Tensor], *names: str) -> Make:
    """A filter of the scores and columns of settings, which are stacked once and sent to the device once."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        columns = [column(sequences, name) for name in names]

        def apply(scores: Tensor) -> Tensor:
            if columns[0].device != scores.device or columns[-1].dtype not in (scores.dtype, torch.long):
                columns[:] = placed(columns, scores)
            return function(scores, *columns)

        return apply

    return make


def looking_back(function: Callable[..., Tensor], name: str, at: Callable[[TokenSequence], Tensor]) -> Make:
    """A filter of the scores, one column of settings, and what each sequence looks back at."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        values = column(sequences, name)
        return lambda scores: function(scores, values, [at(sequence) for sequence in sequences])

    return make


def row_by_row(function: Callable[[TokenSequence, Tensor], Tensor]) -> Make:
    """A filter that goes over sequences by themselves, [1, vocab] to [1, vocab]; raises RowErrors once all of them had their turn."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        def apply(scores: Tensor) -> Tensor:
            errors: dict[int, UserError] = {}
            parts = list(scores.split(1))
            for place, sequence in enumerate(sequences):
                try:
                    parts[place] = function(sequence, parts[place])
                except UserError as error:
                    errors[place] = error
            filtered = torch.cat(parts) if len(parts) > 1 else parts[0]
            if errors:
                raise RowErrors(errors, filtered)
            return filtered

        return apply

    return make


def state_of(sequence: TokenSequence, name: str, begin: Callable[[], Any]) -> Any:
    """What a filter remembers of a sequence; `begin` makes it at the sequence's first step."""
    if name not in sequence.states:
        sequence.states[name] = begin()
    return sequence.states[name]


def history(sequence: TokenSequence) -> Tensor:
    """The ids of prompt and answer so far, [n]."""
    return sequence.history()


def answer(sequence: TokenSequence) -> Tensor:
    """The ids of the answer so far, [n]."""
    return sequence.history()[len(sequence.request.prompt_ids) :]


def source(sequence: TokenSequence) -> Tensor:
    """The ids of the encoder's input, [n]; of a decoder those of the prompt."""
    if sequence.request.source_ids is not None:
        return torch.tensor(sequence.request.source_ids)
    return sequence.history()[: len(sequence.request.prompt_ids)]
