"""The steps of continuous diffusion as people read them: noise that becomes words, and when each word was settled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ..diffusion_lm.sampling import Denoised
from ..requests.events import Committed, Event, Finished, Observed, Result
from ..requests.trace import DiffusionStep
from ..text.token_labels import TokenLabels

SETTLED = {True: "bold green", False: "dim"}


def settled(history: Sequence[list[int]]) -> list[int]:
    """From which step on, counted from 0, each position has the word that it ends with.

    >>> settled([[1, 2], [3, 2], [3, 2]])
    [1, 0]
    """
    found = []
    for position, last in enumerate(history[-1]):
        changed = [step for step, words in enumerate(history) if words[position] != last]
        found.append(changed[-1] + 1 if changed else 0)
    return found


def shown_steps(count: int, most: int) -> list[int]:
    """At most so many of the steps, evenly spaced, the first and the last among them.

    >>> shown_steps(200, 3)
    [0, 100, 199]
    """
    if most >= count or most < 2:
        return list(range(count)) if most >= count else [count - 1]
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def lines(history: Sequence[Denoised], row: int, names: TokenLabels, most: int = 20) -> Iterator[Text]:
    """Yield a row's canvas after some steps, a line each (`step 1990  garden of the [END]`): the words nearest to its latents, green from when they stay."""
    words = [each.words[row] for each in history]
    since, wide = settled(words), len(str(history[0].step))
    for step in shown_steps(len(history), most):
        line = Text(f"step {history[step].step:>{wide}} ", overflow="fold")
        for position, id in enumerate(words[step]):
            line.append(f" {names(id).lstrip('␣')}", style=SETTLED[step >= since[position]])
        yield line


def as_steps(history: Sequence[Denoised], row: int, given: Sequence[bool]) -> list[DiffusionStep]:
    """A row's steps as masked diffusion tells them, for its pictures: a position is certain from when the word that the model takes it for stays the same.

    Before that it is a guess. Positions that were `given` are certain from the beginning.
    """
    words = [each.predicted[row] for each in history]
    since, steps, before = settled(words), [], {}
    for place, (denoised, now) in enumerate(zip(history, words, strict=True)):
        logprobs = denoised.logprobs[row]
        new = [position for position, step in enumerate(since) if step == place and not given[position]]
        guesses = {position: id for position, id in enumerate(now) if since[position] > place and not given[position]}
        steps.append(
            DiffusionStep(
                place + 1, tuple((position, now[position], logprobs[position]) for position in new),
                tuple(id if given[position] or since[position] <= place else None for position, id in enumerate(now)), place + 1,
                tuple(logprobs[position] for position in new),
                guesses=tuple((position, id, logprobs[position]) for position, id in guesses.items() if before.get(position) != id),
            )
        )  # fmt: skip
        before = guesses
    return steps


def as_result(steps: Sequence[DiffusionStep], text: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> Result:
    """A text with its steps, as the page of an answer takes it."""
    last = {position: (id, logprob) for step in steps for (position, id, _), logprob in zip(step.committed, step.logprobs, strict=True)}
    ids = list(steps[-1].canvas)
    logprobs = [last.get(position, (None, 0.0))[1] for position in range(len(ids))]
    trace: list[Event] = [Observed(0, 0, step) for step in steps]
    trace += [Committed(0, position, id, logprob, tokenizer.decode([id])) for position, (id, logprob) in enumerate(zip(ids, logprobs, strict=True))]
    return Result(0, text, ids, logprobs, "length", 0, seed, trace=[*trace, Finished(0, "length")], forwards=steps[-1].forwards)
