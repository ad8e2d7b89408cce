"""An answer's text taken apart as it comes: thinking, content and tool calls."""

from __future__ import annotations

import json
import secrets
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex

from .call_patterns import CallPatterns, compiled, leading_space, lenient, trailing_space
from .form import AnswerForm
from .values import as_json_text


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
    """Takes an answer's text in pieces and hands out its parts as soon as they are certain; how the text is cut changes nothing when they are joined.

    What begins like a call and is none of a tool that is known, with arguments, is content.
    """

    def __init__(self, form: AnswerForm, *, in_thinking: bool = False, tools: Sequence[Mapping[str, Any]] = ()):
        """in_thinking: whether the prompt has opened the thinking (`form.begins_in_thinking`); without tools nothing is taken as a call."""
        self._form, self._in_thinking = form, in_thinking
        self._schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
        self._patterns = CallPatterns(form.calls, tuple(self._schemas)) if form.calls and tools else None
        self._text, self._ended, self._count = "", False, 0
        self._out: list[Part] = []
        self._steps = self._answer()

    def push(self, text: str) -> list[Part]:
        """Return the parts that this piece settles. The text holds the control tokens of `form.control_ids` written out."""
        if text:
            self._text += text
            next(self._steps, None)
        out, self._out = self._out, []
        return out

    def finish(self) -> list[Part]:
        """Return what was held back: the answer has ended."""
        self._ended = True
        next(self._steps, None)
        out, self._out = self._out, []
        return out

    # Each step below yields when it needs more text to go on, and goes on with what there is when the answer has ended.

    def _answer(self) -> Iterator[None]:
        patterns, behind = self._patterns, self._in_thinking
        if self._form.thinking:
            opening, closing = map(lenient, self._form.thinking)
            opened = yield from self._take(compiled(opening))
            if opened or self._in_thinking:
                yield from self._until(regex.compile(closing), Thinking, trim=True)
                behind = True
        if self._form.content_header and (yield from self._take(compiled(lenient(self._form.content_header)))):
            behind = True
        if patterns and patterns.marker is None and (yield from self._calls(patterns.begin)):
            behind = True
        while patterns and patterns.marker and (yield from self._until(patterns.marker, Content, trim=behind, keep=True)):
            behind = yield from self._calls(patterns.begin)
            if not behind:  # what began like a call is content
                end = patterns.marker.search(self._text).end()
                self._emit(Content(self._text[:end]))
                self._text = self._text[end:]
        yield from self._until(None, Content, trim=behind)

    def _emit(self, part: Part) -> None:
        if isinstance(part, CallBegun) or part.text:
            self._out.append(part)

    def _take(self, pattern: regex.Pattern) -> Generator[None, None, regex.Match | None]:
        """Take a match from the beginning of the text, white space before it too; None where there is none."""
        while True:
            match = pattern.match(self._text, partial=True)
            if match and not match.partial:
                self._text = self._text[match.end() :]
                return match
            if match is None or self._ended:
                return None
            yield

    def _until(self, pattern: regex.Pattern | None, kind: type, trim: bool, keep: bool = False) -> Generator[None, None, bool]:
        """Hand out the text before the first match and the white space before that, and return whether there is one.

        It is taken unless `keep`. `trim`: no white space comes first.
        """
        while True:
            if trim:
                self._text = self._text.lstrip()
                trim = not self._text
            match = pattern.search(self._text, partial=True) if pattern else None
            found = match is not None and not match.partial
            safe = match.start() if match and (found or not self._ended) else len(self._text)
            if pattern and (found or not self._ended or kind is Thinking):
                safe = len(self._text[:safe].rstrip())
            self._emit(kind(self._text[:safe]))
            self._text = self._text[match.end() if found and not keep else safe :]
            if found or self._ended:
                return found
            yield

    def _calls(self, begin: regex.Pattern) -> Generator[None, None, bool]:
        """Take the calls that the text begins with, and whether there are any."""
        patterns, any_taken = self._patterns, False
        while begin and (match := (yield from self._take(begin))):
            any_taken = True
            name = patterns.names[match["name"]]
            number = match.groupdict().get("number")
            self._emit(CallBegun(self._count, f"functions.{name}:{number}" if number else new_id(self._form.short_ids), name))
            if patterns.parameter:
                yield from self._parameters(self._schemas[name])
            elif match.groupdict().get("whole") or match.groupdict().get("bare"):
                self._emit(CallArguments(self._count, match["whole"] or "{}"))
            else:
                yield from self._object()
                if patterns.tail:
                    yield from self._take(patterns.tail)
            self._count += 1
            begin = patterns.again
        if any_taken and patterns.closing:
            yield from self._take(patterns.closing)
            if self._ended and patterns.closing.fullmatch(self._text, partial=True):
                self._text = ""  # the beginning of what closes the calls, cut off
        return any_taken

    def _object(self) -> Iterator[None]:
        """Hand out a JSON object as it comes."""
        depth, quoted, escaped = 0, False, False
        while True:
            for at, char in enumerate(self._text):
                if escaped:
                    escaped = False
                elif quoted:
                    escaped, quoted = char == "\\", char != '"'
                elif char == '"':
                    quoted = True
                elif char in "{[":
                    depth += 1
                elif char in "}]":
                    depth -= 1
                    if depth == 0:
                        self._emit(CallArguments(self._count, self._text[: at + 1]))
                        self._text = self._text[at + 1 :]
                        return
            self._emit(CallArguments(self._count, self._text))
            self._text = ""
            if self._ended:
                return
            yield

    def _parameters(self, schema: Mapping[str, Any]) -> Iterator[None]:
        """Hand out the parameters as one JSON object, each when it is whole."""
        patterns, written = self._patterns, "{"
        while match := (yield from self._take(patterns.parameter)):
            text, whole = yield from self._value()
            value = as_json_text(text, match["key"], schema, patterns.form.parameters.python_constants, whole)
            self._emit(CallArguments(self._count, f"{written}{json.dumps(match['key'], ensure_ascii=False)}: {value}"))
            if not whole:
                return
            written = ", "
        self._emit(CallArguments(self._count, "{}" if written == "{" else "}"))

    def _value(self) -> Generator[None, None, tuple[str, bool]]:
        """Take the text of a value, and whether it came to its end."""
        patterns, form = self._patterns, self._patterns.form.parameters
        while True:
            match = partial = patterns.value_end.search(self._text, partial=True)
            if match is None or match.partial:
                match = patterns.last_value_end.search(self._text) if self._ended else None
            if match:
                value, self._text = self._text[: match.start()], self._text[match.end() :]
                return value.removeprefix(trailing_space(form.middle)).removesuffix(leading_space(form.closing)), True
            if self._ended:
                value, self._text = self._text[: partial.start() if partial else None], ""
                return value.removeprefix(trailing_space(form.middle)), False
            yield


def new_id(short: bool) -> str:
    """Return an id for a call."""
    return secrets.token_hex(5)[:9] if short else f"call_{secrets.token_hex(12)}"


def joined(parts: Iterable[Part]) -> Answer:
    """Return the answer that the parts are of."""
    answer = Answer()
    for part in parts:
        match part:
            case Thinking(text):
                answer.thinking += text
            case Content(text):
                answer.content += text
            case CallBegun(_, id, name):
                answer.calls.append(Call(id, name))
            case CallArguments(index, text):
                answer.calls[index].arguments += text
    return answer


def parsed(form: AnswerForm, text: str, *, in_thinking: bool = False, tools: Sequence[Mapping[str, Any]] = ()) -> Answer:
    """Return what a whole answer consists of, by the same parser."""
    parser = AnswerParser(form, in_thinking=in_thinking, tools=tools)
    return joined([*parser.push(text), *parser.finish()])
