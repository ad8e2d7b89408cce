"""An answer's text taken apart as it comes: thinking, content and tool calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .form import AnswerForm


@dataclass(frozen=True)
class Thinking:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of what it says."""

    text: str


@dataclass(frozen=True)
class CallBegun:
    """A tool call begins; `index` counts the answer's calls from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments; all pieces of a call join to JSON text, or to its beginning where the answer was cut off."""

    index: int
    text: str


Part = Thinking | Content | CallBegun | CallArguments


@dataclass
class Call:
    """A whole call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """What an answer consists of, joined."""

    thinking: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)


class AnswerParser:
    """Takes an answer's text in pieces and hands out its parts as soon as they are certain; how the text is cut changes nothing when they are joined."""

    def __init__(self, form: AnswerForm, *, in_thinking: bool = False, tools: Sequence[Mapping[str, Any]] = ()):
        """in_thinking: whether the prompt has opened the thinking (`form.begins_in_thinking`); without tools nothing is taken as a call."""

    def push(self, text: str) -> list[Part]:
        """Return the parts that this piece settles. The text holds the control tokens of `form.control_ids` written out."""
        raise NotImplementedError

    def finish(self) -> list[Part]:
        """Return what was held back: the answer has ended."""
        raise NotImplementedError


def joined(parts: Sequence[Part]) -> Answer:
    """Return the answer that the parts are of."""
    raise NotImplementedError


def parsed(form: AnswerForm, text: str, *, in_thinking: bool = False, tools: Sequence[Mapping[str, Any]] = ()) -> Answer:
    """Return what a whole answer consists of, by the same parser."""
    parser = AnswerParser(form, in_thinking=in_thinking, tools=tools)
    return joined([*parser.push(text), *parser.finish()])
