"""Where an answer ends: end tokens, stop strings and patterns, and what must be held back until they are judged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import regex
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.refusal import UserError
from .architecture import transformers_model
from .detokenise import Detokeniser


class Stops:
    """Cuts a stream of text before the first stop string or match of the pattern that is completed in it.

    What could still become one is held back, so no part of it is ever shown. Judged character by character: how the text
    is cut into pieces changes nothing.
    """

    def __init__(self, stops: Sequence[str] = (), pattern: regex.Pattern | None = None):
        self.stops = tuple(stops)
        self.pattern = pattern
        self.found: str | None = None
        self._text = ""  # what is held, and with a pattern all before it, which lookbehinds see
        self._safe = 0  # where the held text begins

    def push(self, piece: str) -> str:
        """Return the text that is now safe to show; after a stop, nothing more."""
        if self.found is not None:
            return ""
        if not self.stops and self.pattern is None:
            return piece
        text, judged = self._text + piece, len(self._text)
        first = self._first(text, judged)
        if first is not None:
            at, end = first
            shown, self.found, self._text, self._safe = text[self._safe : at], text[at:end], "", 0
            return shown
        safe = len(text) - max((overlap(text, stop) for stop in self.stops), default=0)
        if self.pattern is not None and (partial := self.pattern.search(text, self._safe, partial=True)):
            safe = min(safe, partial.start())
        safe = max(safe, self._safe)
        shown = text[self._safe : safe]
        self._text, self._safe = (text[safe:], 0) if self.pattern is None else (text, safe)
        return shown

    def _first(self, text: str, judged: int) -> tuple[int, int] | None:
        """Return from where to where the stop that is completed first reaches, of several the one that begins first."""
        complete = [(at + len(stop), at) for stop in self.stops if (at := text.find(stop, self._safe)) >= 0]
        if self.pattern is not None:
            last = min((end for end, _ in complete), default=len(text))
            for end in range(judged + 1, last + 1):
                if match := self.pattern.search(text, self._safe, end):
                    complete.append((end, match.start()))
                    break
        if not complete:
            return None
        end, at = min(complete)
        return at, end

    def flush(self) -> str:
        """Return what was held back: the text has ended without a stop."""
        held, self._text, self._safe = self._text[self._safe :], "", 0
        return held


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def stop_pattern(source: str) -> regex.Pattern:
    """Return a `stop_regex` compiled, in the syntax of Python and `regex`; raises UserError for one that is wrong or matches the empty text."""
    try:
        pattern = regex.compile(source)
    except regex.error as error:
        raise UserError(f"stop_regex={source!r} is no regular expression: {error}") from None
    if pattern.search(""):
        raise UserError(f"stop_regex={source!r} matches the empty text, so that every answer would end at once: let it ask for a character")
    return pattern


class AnswerText:
    """The text of one answer, growing by ids: detokenised, cut before a stop, ended where the caller's own judge says so.

    `stop_when` is asked after every token with the text so far, what is held back included. The first `skip` characters are left out.
    """

    def __init__(
        self,
        detokeniser: Detokeniser,
        stops: Sequence[str] = (),
        pattern: regex.Pattern | None = None,
        stop_when: Callable[[str], bool] | None = None,
        skip: int = 0,
    ):
        self._detokeniser = detokeniser
        self._stops = Stops(stops, pattern)
        self._stop_when, self._ended, self._whole = stop_when, False, ""
        self._skip = skip

    @property
    def stopped(self) -> bool:
        """Whether a stop was found."""
        return self._stops.found is not None or self._ended

    def push(self, id: int) -> str:
        """Return the text that this id makes safe to show."""
        piece = self._own(self._detokeniser.push(id))
        shown = self._stops.push(piece)
        if self._stop_when is not None and not self.stopped:
            self._whole += piece
            self._ended = bool(self._stop_when(self._whole))
            shown += self._stops.flush() if self._ended else ""
        return shown

    def finish(self) -> str:
        """Return what was held back, the answer being over."""
        return self._stops.push(self._own(self._detokeniser.flush())) + self._stops.flush()

    def fork(self) -> AnswerText:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._detokeniser, other._stops = self._detokeniser.fork(), copy.copy(self._stops)
        return other

    def _own(self, piece: str) -> str:
        """The piece without what belongs to the prompt."""
        skipped = min(self._skip, len(piece))
        self._skip -= skipped
        return piece[skipped:]


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a text by the model's generation_config or the tokenizer."""
    declared = getattr(getattr(transformers_model(model), "generation_config", None), "eos_token_id", None)
    declared = declared if isinstance(declared, list) else [declared]
    return frozenset(id for id in [*declared, tokenizer.eos_token_id] if id is not None)
