"""The events of one traced prompt, put in order: its answers token by token, its passes, beams and drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..requests.events import Committed, Event, Observed, Result
from ..requests.trace import BeamTrace, ContrastTrace, DraftTrace, ChoiceTrace, LayerTrace, PassTrace


@dataclass
class Step:
    """A token of an answer: its id, its log-probability as it was chosen, what text it completed, and what was observed there.

    `passes` were run since the token before; where they gave several tokens, the first has them.
    """

    position: int
    id: int
    logprob: float
    text: str
    filtered: ChoiceTrace | None = None
    layer: LayerTrace | None = None
    contrast: ContrastTrace | None = None
    passes: list[PassTrace] = field(default_factory=list)


@dataclass
class GenerationTrace:
    """What happened to one prompt. `answers` are the results with their steps; beams and drafts come with the position where they were."""

    answers: list[tuple[Result, list[Step]]]
    passes: list[PassTrace]
    beams: list[tuple[int, BeamTrace]]
    drafts: list[tuple[int, int, DraftTrace]]  # position, choice, draft

    @property
    def prefill(self) -> list[PassTrace]:
        return [each for each in self.passes if each.prefill]

    @property
    def later(self) -> list[PassTrace]:
        """The passes after the prompt was read."""
        return [each for each in self.passes if not each.prefill]


def generation_trace(results: Sequence[Result]) -> GenerationTrace:
    """Tell the story of one prompt from all its results, which were made with `trace=True`."""
    events = results[0].trace
    at: dict[type, dict[tuple[int, int], object]] = {ChoiceTrace: {}, LayerTrace: {}, ContrastTrace: {}}  # by choice and position
    told = GenerationTrace([], [], [], [])
    fresh: list[PassTrace] = []
    spent: dict[int, list[PassTrace]] = {}
    for event in events:
        what = event.what if isinstance(event, Observed) else event
        if isinstance(what, PassTrace):
            told.passes.append(what)
            fresh.append(what)
            continue
        if fresh and isinstance(event, Observed | Committed):
            spent.setdefault(event.position, []).extend(fresh)
            fresh = []
        if isinstance(what, BeamTrace):
            told.beams.append((event.position, what))
        elif isinstance(what, DraftTrace):
            told.drafts.append((event.position, event.choice, what))
        elif type(what) in at:
            at[type(what)][event.choice, event.position] = what
    told.answers = [(result, steps_of(result, events, at, spent)) for result in results]
    return told


def steps_of(result: Result, events: Sequence[Event], at: dict, spent: dict[int, list[PassTrace]]) -> list[Step]:
    """The steps of one answer; `at` holds the records by choice and position, `spent` the passes by position."""
    choice = grown_as(result, at[ChoiceTrace])
    steps = []
    for event in events:
        if isinstance(event, Committed) and event.choice == result.choice:
            place = (choice, event.position)
            records = (at[ChoiceTrace].get(place), at[LayerTrace].get(place), at[ContrastTrace].get(place))
            steps.append(Step(event.position, event.id, event.logprob, event.text, *records, spent.get(event.position, [])))
    return steps


def grown_as(result: Result, filtered: dict[tuple[int, int], ChoiceTrace]) -> int | None:
    """Return as which choice an answer grew: one that was chosen among several has another number since."""
    for choice in dict.fromkeys([result.choice, *(choice for choice, _ in filtered)]):
        own = {position: each.id for (of, position), each in filtered.items() if of == choice}
        if own and all(position < len(result.ids) and result.ids[position] == id for position, id in own.items()):
            return choice
    return None
