"""How a chat template writes tool calls, found out by rendering a call and two."""

from __future__ import annotations

import json
import os.path
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...data.chat import ending, prompt_text
from ...data.errors import UserError
from ...data.form import SAMPLE_TOOL, SENTINEL, sample_call
from ...data.template import render

USER = {"role": "user", "content": "?"}
KEYS, VALUES = ("Seodang7key", "Seodang7second"), ("Seodang7value", "Seodang7last")
ARGUMENTS = dict(zip(KEYS, VALUES, strict=True))
ID = sample_call({})["id"]
NUMBER = "7070707"
NUMBERED_ID = f"functions.{SENTINEL}:{NUMBER}"  # Kimi's: it stands where others have the name
LONG_ID = "call_0123456789abcdef01234567"


@dataclass(frozen=True)
class ParameterForm:
    """How a parameter is written: `opening key middle value closing`."""

    opening: str
    middle: str
    closing: str
    python_constants: bool = False  # True, False and None, where JSON has true, false and null


@dataclass(frozen=True)
class CallForm:
    """How calls are written: `opening` call (`between` call)* `closing`, and a call as `head name middle arguments tail`.

    `between` is None where a turn has one call alone. What is outside of a call may hold the name (SENTINEL) and an id (ID) of its own.
    Arguments are a JSON object, in one that has the name as well where there are `keys`, or one text a parameter.
    """

    opening: str
    head: str
    middle: str
    tail: str
    between: str | None
    closing: str
    keys: tuple[str, str] | None = None  # of the name and of the arguments
    name_last: bool = False  # a call is `head arguments middle name tail`
    parameters: ParameterForm | None = None

    def texts(self) -> Iterator[str]:
        """All fixed texts."""
        yield from (self.opening, self.head, self.middle, self.tail, self.between or "", self.closing)
        if self.parameters:
            yield from (self.parameters.opening, self.parameters.middle, self.parameters.closing)


def attempt(tokenizer: PreTrainedTokenizerBase, message: dict | None, tools: list | None = None) -> str | None:
    """Render a question and the message behind it; None where the template refuses them, from which nothing can be learned."""
    try:
        return render(tokenizer, [USER, message] if message else [USER], tools, add_generation_prompt=False)
    except UserError:
        return None


def sample_tool() -> dict[str, Any]:
    """A tool of the sentinel's name."""
    return {**SAMPLE_TOOL, "function": {**SAMPLE_TOOL["function"], "name": SENTINEL}}


def find_calls(tokenizer: PreTrainedTokenizerBase, thinking_closing: str) -> tuple[CallForm | None, bool]:
    """Return how the template writes calls, None where it writes none in a form that is known, and whether it refuses long ids."""
    for tools, id in product(([sample_tool()], None), (ID, NUMBERED_ID)):  # with tools first: without, a template may leave calls out
        written = Written(tokenizer, tools, thinking_closing, id)
        if SENTINEL in (one := written.calls(ARGUMENTS)):
            form = _in_json(one) or _with_json(one) or _by_parameter(one, written)
            short_ids = SENTINEL not in replace(written, id=LONG_ID).calls(ARGUMENTS) and id == ID
            return form and _of_two(form, one, written.calls(ARGUMENTS, ARGUMENTS)), short_ids
    return None, False


@dataclass(frozen=True)
class Written:
    """What a template writes for calls."""

    tokenizer: PreTrainedTokenizerBase
    tools: list | None
    thinking_closing: str
    id: str

    def calls(self, *arguments: Mapping[str, Any]) -> str:
        """The text of calls with these arguments, from where it differs from content to the end of the turn; nothing where it is refused."""
        answer = {"role": "assistant", "content": "", "tool_calls": [{**sample_call(each), "id": self.id} for each in arguments]}
        text, plain = (attempt(self.tokenizer, message, self.tools) or "" for message in (answer, {"role": "assistant", "content": SENTINEL}))
        try:
            prompt = prompt_text(self.tokenizer, [USER], self.tools)
        except UserError:
            prompt = ""
        begin = len(_whole_tags(os.path.commonprefix([text, plain])))
        if text.startswith(prompt):
            begin = max(begin, len(prompt))
        text = text[begin:]
        if self.thinking_closing and self.thinking_closing in text.partition(SENTINEL)[0]:
            text = text.partition(self.thinking_closing)[2]
        last = max(text.rfind(SENTINEL), text.rfind(VALUES[-1]))
        stops = [at for stop in ending(self.tokenizer).stops if (at := text.find(stop, max(last, 0))) >= 0]
        return text[: min(stops, default=len(text))].rstrip()


def _whole_tags(text: str) -> str:
    """The text without a tag or a word that is torn at its end."""
    return re.sub(r"[^\s>\]]*\Z", "", re.sub(r"<[^<>\s]*\Z", "", text))


def _objects(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[dict, int, int]]:
    """Every JSON object that begins between two places, with where it begins and ends."""
    for found in re.finditer(r"\{", text[:end]):
        if found.start() >= start:
            try:
                value, behind = json.JSONDecoder().raw_decode(text, found.start())
            except ValueError:
                continue
            yield value, found.start(), behind


def _arguments(text: str, start: int = 0) -> tuple[int, int] | None:
    return next(((begin, end) for value, begin, end in _objects(text, start) if value == ARGUMENTS), None)


def _in_json(text: str) -> CallForm | None:
    """A JSON object of name and arguments."""
    name = text.find(SENTINEL)
    for value, begin, end in _objects(text, 0, name):
        keys = tuple(next((key for key, each in value.items() if each == wanted), None) for wanted in (SENTINEL, ARGUMENTS))
        if all(keys) and (span := _arguments(text, begin + 1)):
            first, last = sorted([(name, name + len(SENTINEL)), span])
            inside = text[begin : first[0]], text[first[1] : last[0]], text[last[1] : end]
            return CallForm(text[:begin], *inside, None, text[end:], keys=keys, name_last=span < (name,))
    return None


def _with_json(text: str) -> CallForm | None:
    """A name, and the arguments as a JSON object."""
    span = _arguments(text)
    name = text.rfind(SENTINEL, 0, span[0]) if span else -1
    if span is None or name < 0 or not text[name + len(SENTINEL) : span[0]]:
        return None
    return CallForm(text[:name], "", text[name + len(SENTINEL) : span[0]], "", None, text[span[1] :])


def _by_parameter(text: str, written: Written) -> CallForm | None:
    """A name, and one text a parameter."""
    places = [text.find(each) for each in (KEYS[0], VALUES[0], KEYS[1], VALUES[1])]
    name, empty = text.rfind(SENTINEL, 0, max(places[0], 0)), written.calls({})
    if min(places) < 0 or places != sorted(places) or name < 0 or SENTINEL not in empty:
        return None
    behind, behind_empty = text[name + len(SENTINEL) :], empty[empty.rfind(SENTINEL) + len(SENTINEL) :]
    middle = _whole_tags(os.path.commonprefix([behind, behind_empty]))
    opening = behind[len(middle) :].partition(KEYS[0])[0]
    between = text[places[1] + len(VALUES[0]) : places[2]]
    closing = between.removesuffix(opening)
    rest = text[places[3] + len(VALUES[1]) :]
    inner = text[places[0] + len(KEYS[0]) : places[1]]
    if not (middle and opening.strip() and closing.strip() and between.endswith(opening) and rest.startswith(closing)):
        return None
    form = ParameterForm(opening, inner, closing, "True" in written.calls({KEYS[0]: True}))
    return CallForm(text[:name], "", middle, "", None, rest[len(closing) :], parameters=form)


def _of_two(form: CallForm, one: str, two: str) -> CallForm:
    """The form with what stands between two calls, where the template writes two; else it is as it was."""
    first = one[: len(one) - len(form.closing)]
    call = first[len(form.opening) :]
    rest = two[len(first) :]
    at = rest.find(call)
    if not two.startswith(first) or at < 0 or not rest[at + len(call) :].startswith(form.closing):
        return form
    return replace(form, between=rest[:at])
