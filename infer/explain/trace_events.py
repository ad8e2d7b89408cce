"""What a trace saw, as JSON: the events that `explain` draws, with the texts of the ids that they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..requests.events import Committed, Event, Finished, Observed, Provisional
from ..requests.likelihoods import said
from ..requests.trace import BeamTrace, ChoiceTrace, ContrastTrace, DiffusionStep, DraftTrace, LayerTrace, PassTrace
from ..text.token_labels import spelled

TYPES = {
    Committed: "committed", Provisional: "provisional", Finished: "finished", PassTrace: "pass", ChoiceTrace: "choice", BeamTrace: "beams",
    DraftTrace: "draft", LayerTrace: "layer", ContrastTrace: "contrast", DiffusionStep: "diffusion",
}  # fmt: skip


def traced(tokenizer: PreTrainedTokenizerBase, prompt: int, event: Event) -> dict[str, Any] | None:
    """Return an event with its `type`, its places (prompt, choice, position) and the texts of its ids; None for one that is told elsewhere."""
    what = event.what if isinstance(event, Observed) else event
    if type(what) not in TYPES:
        return None
    if isinstance(what, DiffusionStep):
        return {"type": TYPES[DiffusionStep], "prompt": prompt, "choice": event.choice, "position": event.position, **step_told(tokenizer, what), "texts": {}}
    fields = asdict(what)
    for told_elsewhere in ("prompt_index", "top_logprobs"):
        fields.pop(told_elsewhere, None)
    places = {"prompt": prompt, "choice": event.choice, **({"position": event.position} if hasattr(event, "position") else {})}
    return {"type": TYPES[type(what)], **places, **fields, "texts": {str(id): text_of(tokenizer, id) for id in ids_of(what)}}


def step_told(tokenizer: PreTrainedTokenizerBase, step: DiffusionStep) -> dict[str, Any]:
    """A step of diffusion as JSON: its number, the passes so far, the length of the canvas, and what is other than before it.

    `certain` are the tokens that became so, each with its position, log-probability and how sure the order was; `guesses` what open positions are thought
    to be by now, `remasked` the positions that are open again. In the first step `given` has what stood there from the beginning; `cached` is there, and
    true, where the step was read over keys and values of an earlier one.
    """
    committed = {position for position, *_ in step.committed}
    given = [(position, id) for position, id in enumerate(step.canvas) if id is not None and position not in committed] if step.step == 1 else []
    return {
        "step": step.step, "forwards": step.forwards, "length": len(step.canvas),
        "certain": [token_told(tokenizer, position, id, logprob=logprob, sure=sure) for (position, id, sure), logprob in zip(step.committed, step.logprobs)],
        "guesses": [token_told(tokenizer, position, id, logprob=logprob) for position, id, logprob in step.guesses],
        "remasked": list(step.remasked),
        **({"given": [token_told(tokenizer, position, id) for position, id in given]} if given else {}),
        **({"cached": True} if step.cached else {}),
    }  # fmt: skip


def token_told(tokenizer: PreTrainedTokenizerBase, position: int, id: int, **more: float) -> dict[str, Any]:
    """A position's token as JSON; of one that is no text by itself its name, and that it is `special`."""
    special = {} if said(tokenizer, id)[1] is not None else {"special": True}
    return {"position": position, "id": id, "token": text_of(tokenizer, id), **more, **special}


def text_of(tokenizer: PreTrainedTokenizerBase, id: int) -> str:
    """What a token says, with bytes that make no character written out (`<0xEC>`)."""
    text, known = said(tokenizer, id)
    return text if known is None else spelled(known)


def ids_of(what: Any) -> Iterator[int]:
    """Yield the token ids that an event or a record names."""
    if isinstance(what, Committed | Provisional):
        yield what.id
    elif isinstance(what, ChoiceTrace):
        yield what.id
        for _, candidates in what.stages:
            yield from (id for id, _ in candidates)
    elif isinstance(what, BeamTrace):
        yield from (id for _, id, _ in what.live)
    elif isinstance(what, DraftTrace):
        yield from what.ids
    elif isinstance(what, ContrastTrace):
        yield from (id for id, *_ in what.candidates)
