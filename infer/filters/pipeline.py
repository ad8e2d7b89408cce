"""The filters that a set of sequences asks for, each sequence its own, in their order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from ...data.errors import UserError
from ..requests.options import options_of
from ..requests.params import RequestParams
from ..requests.sequence import TokenSequence
from .logits import wide
from .native_choice import NativeChoice
from .registry import DEFAULT_ORDER, FILTERS
from .shortlist import LONGEST, SHORTLIST, shortlist
from .spec import Apply, RowErrors, placed

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}  # where the shortlist is not asked for one
OnFilter = Callable[[int, str, Tensor], None]  # hears of a sequence's place, a filter's name and the scores after it, [vocab]


def uses(params: RequestParams) -> set[str]:
    """Return the names of the filters that a request asks for; one that takes the likeliest token asks for no warper."""
    return {name for name, spec in FILTERS.items() if spec.asks(params) and (spec.kind != "warper" or params.samples)}


def order_of(params: RequestParams) -> tuple[str, ...]:
    """Return all filter names in the order in which they apply to a request.

    A request's `filter_order` must name all filters that it asks for, but for "constraints": unnamed they come before the first
    warper. Raises UserError for one that is missing, unknown or named twice.
    """
    if params.filter_order is None:
        return DEFAULT_ORDER
    order = list(params.filter_order)
    for name in order:
        if name not in FILTERS:
            guess = get_close_matches(name, FILTERS, 1)
            hint = f"did you mean {guess[0]}?" if guess else f"the names are {', '.join(FILTERS)}"
            raise UserError(f"filter_order has {name!r}, which is no filter: {hint}")
        if order.count(name) > 1:
            raise UserError(f"filter_order has {name!r} twice: name it once")
    if missing := [name for name in DEFAULT_ORDER if name in uses(params) - {*order, "constraints"}]:
        raise UserError(f"filter_order leaves out {missing[0]}, which the request asks for: name it too")
    if "constraints" not in order:
        warpers = [i for i, name in enumerate(order) if FILTERS[name].kind == "warper"]
        order.insert(warpers[0] if warpers else len(order), "constraints")
    return tuple(order)


def check_filters(params: RequestParams, vocab_size: int, known_ids: int | None = None) -> None:
    """Raise UserError, before anything is computed, for a wrong `filter_order` or an id that the model does not have.

    What is forced must be among the tokenizer's `known_ids` too.
    """
    order_of(params)
    for name, each in options_of(type(params)).items():
        value = getattr(params, name)
        if each.ids is not None and value is not None:
            known = known_ids if name.startswith("forced") else None
            check_ids(name, each.ids(value), vocab_size, known)


def check_ids(name: str, ids: Iterable[int], vocab_size: int, known_ids: int | None) -> None:
    """Raise UserError for the first of a setting's ids that is beyond the model's, or the tokenizer's where that counts."""
    for id in ids:
        if isinstance(id, bool) or not isinstance(id, int) or not 0 <= id < vocab_size:
            raise UserError(f"{name} has the id {id!r}, but the model's {vocab_size} ids begin at 0")
        if known_ids is not None and id >= known_ids:
            raise UserError(f"{name} has the id {id!r}, which is none of the tokenizer's {known_ids}: give one of these")


@dataclass
class Step:
    """One filter applied to the sequences that ask for it: `members` are their numbers, `index` the same as a tensor, None for all sequences."""

    name: str
    members: list[int]
    index: Tensor | None
    apply: Apply


class Filters:
    """Filters a fixed set of sequences together, each sequence by its own settings and in its own order.

    Where a sequence asks for no other order it is `DEFAULT_ORDER`. A filter touches the sequences that ask for it alone, and one that no
    sequence asks for costs nothing. Every sequence keeps at least one token: where bans, biases or constraints leave none, UserError names the
    filter and the step. On beams the scores are log-probabilities, and every filter treats them as it treats logits.

    Ids that the model has and the tokenizer has not are dropped before all filters, and again where a filter of the caller's own revives them.
    """

    def __init__(self, sequences: Sequence[TokenSequence]):
        self.sequences = list(sequences)
        orders: dict[int, tuple[str, ...]] = {}  # sequences of a request share its settings
        for sequence in self.sequences:
            if id(sequence.request) not in orders:
                orders[id(sequence.request)] = order_of(sequence.request.params)
        self._orders = [orders[id(sequence.request)] for sequence in self.sequences]
        alike = [(id(sequence.request), len(sequence.constraints) > 0) for sequence in self.sequences]  # a canvas stands here once a position
        several = dict(zip(alike, zip(self.sequences, self._orders)))
        chains = {key: chain(sequence, order) for key, (sequence, order) in several.items()}
        self._chains = [chains[key] for key in alike]
        self._steps: dict[bool, list[Step]] = {}
        self._native: NativeChoice | None = None
        self.few: Tensor | None = None  # where it is known, ids among which all are that the last call has left, [rows, n]
        self._known = min((sequence.request.known_ids for sequence in self.sequences if sequence.request.known_ids is not None), default=None)

    def __call__(self, scores: Tensor, watch: OnFilter | None = None) -> Tensor:
        """[rows, vocab] to [rows, vocab], in the order of the sequences given; float32 at least.

        `watch(sequence, name, scores [vocab])` hears of every filter that changed a sequence. Raises the first sequence's error.
        """
        scores, errors = self.each(scores, watch)
        for error in errors.values():
            raise error
        return scores

    def each(self, scores: Tensor, watch: OnFilter | None = None) -> tuple[Tensor, dict[int, UserError]]:
        """As a call, for sequences of several requests: with the scores come the errors by the sequence's place.

        A sequence in error keeps the scores that it had before, and the other sequences theirs.
        """
        errors: dict[int, UserError] = {}
        self.few = None
        scores = known_alone(wide(scores), self._known)
        watched = watch is not None
        if watched not in self._steps:
            self._steps[watched] = self._plan(scores.device, short=not watched)
        for step in self._steps[watched]:
            before = scores if step.index is None else scores[step.index]
            try:
                after, failed = step.apply(before), {}
            except RowErrors as raised:
                after, failed = raised.scores, raised.errors
            if step.name == "filters":
                after = known_alone(after, self._known)
            if after is before:
                continue
            if step.name != SHORTLIST and FILTERS[step.name].kind != "warper":
                dead = self._dead(step, after)
                for place in dead:
                    after[place] = before[place]
                failed = dead | failed
            errors = {step.members[place]: error for place, error in failed.items()} | errors  # the first is the one to be told
            scores = after if step.index is None else scores.index_copy(0, step.index, after)
            if watch is not None:
                for i, old, new in zip(step.members, before, after):
                    if not torch.equal(old, new):
                        watch(i, label(self.sequences[i], step.name), new)
            self.few = step.apply.few if step.name == SHORTLIST and step.index is None else None
        return scores, errors

    def chosen(self, logits: Tensor) -> tuple[list[int], list[float]] | None:
        """An id for each sequence, [sequences, vocab] of logits, and its log-probability behind the filters, in one native call.

        The id is -1 where the filters have to be applied by `each` and the choice made behind them; None where that is so for all.
        """
        if self._native is None:
            chains = [shortened(each, sequence.request.params) for each, sequence in zip(self._chains, self.sequences)]
            self._native = NativeChoice(self.sequences, chains, Shortlist(self.sequences).columns)
        vocab = logits.shape[-1]
        return self._native(logits, vocab if self._known is None else min(vocab, self._known))

    def _plan(self, device: torch.device, short: bool) -> list[Step]:
        """Merge the sequences' chains into steps: sequences of one order share them."""
        chains = [shortened(each, sequence.request.params) if short else each for each, sequence in zip(self._chains, self.sequences)]
        steps = []
        for order in dict.fromkeys(self._orders):
            for name in with_shortlist(order):
                members = [i for i, own in enumerate(chains) if self._orders[i] == order and name in own]
                if members:
                    sequences = [self.sequences[i] for i in members]
                    index = None if len(members) == len(self.sequences) else torch.tensor(members, device=device)
                    apply = Shortlist(sequences) if name == SHORTLIST else FILTERS[name].make(sequences)
                    steps.append(Step(name, members, index, apply))
        return steps

    def _dead(self, step: Step, scores: Tensor) -> dict[int, UserError]:
        """Return an error for each of the step's sequences that has no token left, by its place among them."""
        best = scores.amax(dim=-1).tolist()
        sequences = {place: self.sequences[step.members[place]] for place, score in enumerate(best) if not score > -math.inf}
        return {
            place: UserError(
                f"{label(sequence, step.name)} left no token to choose at step {sequence.position} of prompt {sequence.request.index + 1}: "
                "it contradicts the model or the filters before it, so loosen one of them"
            )
            for place, sequence in sequences.items()
        }


def known_alone(scores: Tensor, known_ids: int | None) -> Tensor:
    """Drop the ids beyond those known, padding of the model's vocabulary; costs nothing where there are none."""
    if known_ids is None or scores.shape[-1] <= known_ids:
        return scores
    kept = scores.clone()
    kept[:, known_ids:] = -torch.inf
    return kept


def label(sequence: TokenSequence, name: str) -> str:
    """What a filter is called where it is told of: the constraints have names of their own."""
    return ", ".join(constraint.name for constraint in sequence.constraints) if name == "constraints" else name


def chain(sequence: TokenSequence, order: Sequence[str]) -> tuple[str, ...]:
    """The filters that a sequence asks for, in order."""
    names = uses(sequence.request.params) - {"constraints"} | ({"constraints"} if sequence.constraints else set())
    return tuple(name for name in order if name in names)


def with_shortlist(order: Sequence[str]) -> list[str]:
    """An order with the place of the shortlist: that of top_k."""
    return [name for each in order for name in ((SHORTLIST, each) if each == "top_k" else (each,))]


def shortened(names: tuple[str, ...], params: RequestParams) -> tuple[str, ...]:
    """Put the shortlist in the place of top_k and its neighbours, where they follow one another as the shortlist has them."""
    if "top_k" not in names or params.top_k > LONGEST:
        return names
    block = tuple(name for name in NEUTRAL if name in names)
    first = names.index(block[0])
    if names[first : first + len(block)] != block:
        return names
    return (*names[:first], SHORTLIST, *names[first + len(block) :])


class Shortlist:
    """Temperature, top_k, top_p and min_p in one, with the neutral value where a sequence does not ask for one.

    `few` are then ids among which all are that it has left, [rows, n], where they are known.
    """

    def __init__(self, sequences: Sequence[TokenSequence]):
        self.few: Tensor | None = None
        asked = [uses(sequence.request.params) for sequence in sequences]
        self.columns = []  # of temperature, top_k, top_p, min_p, [rows, 1] each
        for name, neutral in NEUTRAL.items():
            values = [getattr(sequence.request.params, name) if name in names else neutral for sequence, names in zip(sequences, asked)]
            self.columns.append(torch.tensor(values, dtype=torch.long if name == "top_k" else torch.float64)[:, None])

    def __call__(self, scores: Tensor) -> Tensor:
        if self.columns[0].device != scores.device or self.columns[0].dtype != scores.dtype:
            self.columns = placed(self.columns, scores)
        filtered, self.few = shortlist(scores, *self.columns)
        return filtered
