"""The events of one traced prompt, put in order: its answers token by token, its passes, beams and drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..requests.events import Committed, Event, Observed, Result
from ..requests.trace import BeamTrace, ChoiceTrace, ContrastTrace, DiffusionStep, DraftTrace, LayerTrace, PassTrace


@dataclass
class Step:
    """A token of an answer: its id, its log-probability as it was chosen, what text it completed, and what was observed there.

    `passes` were run since the token before; where they gave several tokens, the first has them. `denoised` is the step of diffusion in which it
    became certain.
    """

    position: int
    id: int
    logprob: float
    text: str
    filtered: ChoiceTrace | None = None
    layer: LayerTrace | None = None
    contrast: ContrastTrace | None = None
    passes: list[PassTrace] = field(default_factory=list)
    denoised: int | None = None


@dataclass
class GenerationTrace:
    """What happened to one prompt. `answers` are the results with their steps; beams and drafts come with the position where they were,
    steps of diffusion in their order."""

    answers: list[tuple[Result, list[Step]]]
    passes: list[PassTrace]
    beams: list[tuple[int, BeamTrace]]
    drafts: list[tuple[int, int, DraftTrace]]  # position, choice, draft
    denoising: list[tuple[int, DiffusionStep]] = field(default_factory=list)  # choice, step

    def steps_of(self, result: Result) -> list[DiffusionStep]:
        """The steps of diffusion of one of the answers."""
        return [step for choice, step in self.denoising if choice == result.grown_as]

    @property
    def prefill(self) -> list[PassTrace]:
        """The passes that read the prompt."""
        return [each for each in self.passes if each.prefill]

    @property
    def later(self) -> list[PassTrace]:
        """The passes after the prompt was read."""
        return [each for each in self.passes if not each.prefill]


def generation_trace(results: Sequence[Result]) -> GenerationTrace:
    """Return what happened to one prompt, from all its results, which were made with `trace=True`."""
    events = results[0].trace
    at: dict[type, dict[tuple[int, int], object]] = {ChoiceTrace: {}, LayerTrace: {}, ContrastTrace: {}}  # by choice and position
    found = GenerationTrace([], [], [], [])
    fresh: list[PassTrace] = []
    spent: dict[int, list[PassTrace]] = {}
    for event in events:
        what = event.what if isinstance(event, Observed) else event
        if isinstance(what, PassTrace):
            found.passes.append(what)
            fresh.append(what)
            continue
        if fresh and isinstance(event, Observed | Committed):
            spent.setdefault(event.position, []).extend(fresh)
            fresh = []
        if isinstance(what, BeamTrace):
            found.beams.append((event.position, what))
        elif isinstance(what, DraftTrace):
            found.drafts.append((event.position, event.choice, what))
        elif isinstance(what, DiffusionStep):
            found.denoising.append((event.choice, what))
        elif type(what) in at:
            at[type(what)][event.choice, event.position] = what
    denoised = {(choice, position): step.step for choice, step in found.denoising for position, *_ in step.committed}
    found.answers = [(result, steps_of(result, events, at, spent, denoised)) for result in results]
    return found


def steps_of(
    result: Result, events: Sequence[Event], at: dict, spent: dict[int, list[PassTrace]], denoised: dict[tuple[int, int], int]
) -> list[Step]:
    """The steps of one answer; `at` holds the records by choice and position, `spent` the passes by position, `denoised` steps by choice and position."""
    steps = []
    for event in events:
        if isinstance(event, Committed) and event.choice == result.choice:
            key = (result.grown_as, event.position)
            records = (at[ChoiceTrace].get(key), at[LayerTrace].get(key), at[ContrastTrace].get(key))
            steps.append(Step(event.position, event.id, event.logprob, event.text, *records, spent.get(event.position, []), denoised.get(key)))
    return steps
