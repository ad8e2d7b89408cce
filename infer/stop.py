"""Where an answer ends: end tokens, stop strings, and what must be held back until they are judged."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from .architecture import transformers_model
from .detokenise import Detokeniser


class StopStrings:
    """Cuts a stream of text before the first stop string that is completed in it.

    What could still become a stop string is held back, so no part of one is ever shown. Judged character by
    character: how the text is cut into pieces changes nothing.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = tuple(stops)
        self.found: str | None = None
        self._held = ""

    def push(self, piece: str) -> str:
        """Return the text that is now safe to show; after a stop string, nothing more."""
        if self.found is not None:
            return ""
        if not self.stops:
            return piece
        text = self._held + piece
        complete = [(at + len(stop), at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if complete:
            _, at, self.found = min(complete)
            self._held = ""
            return text[:at]
        safe = len(text) - max(overlap(text, stop) for stop in self.stops)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """Return what was held back: the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class AnswerText:
    """The text of one answer, growing by ids: detokenised, and cut before a stop string."""

    def __init__(self, detokeniser: Detokeniser, stops: Sequence[str] = ()):
        self._detokeniser = detokeniser
        self._stops = StopStrings(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.found is not None

    def push(self, id: int) -> str:
        """Return the text that this id makes safe to show."""
        return self._stops.push(self._detokeniser.push(id))

    def finish(self) -> str:
        """Return what was held back, the answer being over."""
        return self._stops.push(self._detokeniser.flush()) + self._stops.flush()

    def fork(self) -> AnswerText:
        """Return one that goes on from here by itself."""
        other = copy.copy(self)
        other._detokeniser, other._stops = self._detokeniser.fork(), copy.copy(self._stops)
        return other


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a text by the model's generation_config or the tokenizer."""
    declared = getattr(getattr(transformers_model(model), "generation_config", None), "eos_token_id", None)
    declared = declared if isinstance(declared, list) else [declared]
    return frozenset(id for id in [*declared, tokenizer.eos_token_id] if id is not None)
