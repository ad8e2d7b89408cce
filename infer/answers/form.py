"""What a model's answers consist of, found out by rendering: how its chat template writes thinking and tool calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AnswerForm:
    """How thinking, content and calls stand in an answer; None for what the model does not write."""

    thinking: tuple[str, str] | None = None  # what opens and what closes it
    calls: Any = None
    supports_tools: bool = False  # whether the template shows tools to the model
    short_ids: bool = False  # whether ids of calls must be nine letters and digits
    control_ids: frozenset[int] = frozenset()  # special tokens whose text the parser has to see

    def begins_in_thinking(self, prompt: str) -> bool:
        """Whether a rendered prompt ends inside an open thinking block."""
        raise NotImplementedError


def answer_form(tokenizer: PreTrainedTokenizerBase) -> AnswerForm:
    """Return the form of this tokenizer's template, found out once."""
    raise NotImplementedError
