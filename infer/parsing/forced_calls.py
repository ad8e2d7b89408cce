"""Grammars under which an answer is calls of given tools, in the form that the model was trained to write."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.form import SENTINEL
from .call_form import ID, NUMBER, CallForm
from .form import AnswerForm, answer_form
from .values import Alternative, alternatives

GAP = "GAP?"  # white space that a model may write around its thinking, and between the marker of a call and the call
ANY = "/(?s:.*)/"
CLOSING_KEYS = ("additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf")


def call_grammar(
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Mapping[str, Any]],
    *,
    name: str | None = None,
    parallel: bool = True,
    thinking: bool = False,
    in_thinking: bool = False,
) -> str:
    """Return the Lark grammar of answers that call one or more of the tools (with `name` that one, once), for `SamplingParams(grammar=...)`.

    Arguments satisfy the tool's schema, and have no properties besides those that it names unless it says that they may.
    thinking: whether the answer may think first; in_thinking: the prompt has opened the thinking, which has to be closed first.
    Raises UserError where the template writes no calls, no tool has the name, or a schema has what is not supported.
    """
    lark = Lark(tokenizer)
    if name is not None and name not in (names := [tool["function"]["name"] for tool in tools]):
        raise UserError(f"no tool is named {name!r}: the tools are {', '.join(names) or 'none'}")
    chosen = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    if not chosen:
        raise UserError("a call is asked for, and there are no tools: give some")
    thought = lark.thinking(thinking, in_thinking)
    opening = lark.call.opening.lstrip() if thought else lark.call.opening
    return lark.written(f"{thought} {lark.calls(chosen, dict.fromkeys(range(len(chosen)), True), parallel and name is None, opening)}")


def strict_grammar(
    tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]], *, thinking: bool = False, in_thinking: bool = False
) -> str:
    """Return the Lark grammar of answers that may call: free text, and calls whose arguments obey the schema of tools with `strict`.

    Raises UserError where no marker tells a call from text.
    """
    lark = Lark(tokenizer)
    opening = lark.call.opening.strip()
    if not opening or SENTINEL in opening or lark.form.content_header:
        given = next((tool["function"]["name"] for tool in tools if tool["function"].get("strict")), None)
        what = "is strict, but nothing in the chat template's form tells a call from text"
        raise UserError(f"the tool {given!r} {what}: leave out strict, or require a call")
    functions = [tool["function"] for tool in tools]
    text, lead = lark.text_before(opening)
    calls = lark.calls(functions, {at: bool(each.get("strict")) for at, each in enumerate(functions)}, True, "")
    return lark.written(f"{lark.thinking(thinking, in_thinking)} ({text} | {lead} {GAP} {calls} {text})")


class Lark:
    """The rules of a grammar as they come together, for a tokenizer and its template's form of calls."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.form: AnswerForm = answer_form(tokenizer)
        if self.form.calls is None:
            raise UserError("the chat template writes no tool calls in a form that is known: use another template, or tool_choice='none'")
        self.call: CallForm = self.form.calls
        self._controls = {tokenizer.convert_ids_to_tokens(id): id for id in self.form.control_ids}
        fixed = [*sorted(self._controls, key=len, reverse=True), ID, NUMBER]
        self._pieces = re.compile(f"({'|'.join(map(re.escape, fixed))})")
        self._rules = [r"GAP: /[ \n]{1,2}/"]

    def written(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", *self._rules, ""])

    def rule(self, body: str, terminal: bool = False, lazy: bool = False) -> str:
        """The name of a new rule."""
        name = f"{'T' if terminal else 'r'}{len(self._rules)}"
        self._rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def literal(self, text: str) -> str:
        """A fixed text: control tokens by their ids, ids of calls by what they consist of."""
        known = {ID: "/[0-9A-Za-z]{9}/", NUMBER: "/[0-9]{1,2}/"} | {token: f"<[{id}]>" for token, id in self._controls.items()}
        return " ".join(known.get(piece) or json.dumps(piece) for piece in self._pieces.split(text) if piece)

    def up_to(self, content: str, end: str) -> str:
        """Text of a terminal's language up to the first place where `end` begins, and `end`."""
        first = next(filter(None, self._pieces.split(end)))
        if first in self._controls:
            return f"{self.rule(content, terminal=True)} {self.literal(end)}"
        terminal = self.rule(f"({content} & ~{containing(first.strip())}) {json.dumps(first)}", terminal=True)
        return f"{self.rule(terminal, lazy=True)} {self.literal(end[len(first) :])}"

    def text_before(self, opening: str) -> tuple[str, str]:
        """Free text in which no call begins, and such text with the opening of a call behind it."""
        marker = opening.split()[0]  # whose white space may be another
        first = next(filter(None, self._pieces.split(marker)))
        inside = ANY if first in self._controls else f"{ANY} & ~{containing(first)}"
        return f"{self.rule(inside, terminal=True)}?", f"{self.up_to(ANY, marker)} {self.literal(opening.removeprefix(marker))}"

    def thinking(self, may: bool, opened: bool) -> str:
        """The thinking before an answer: what is left of it where it is open, else it may be missing."""
        if self.form.thinking is None or not (may or opened):
            return ""
        opening, closing = self.form.thinking
        block = self.up_to(ANY, closing)
        return f"{block} {GAP}" if opened else f"({GAP} {self.literal(opening)} {block})? {GAP}"

    def calls(self, functions: Sequence[Mapping[str, Any]], strict: Mapping[int, bool], parallel: bool, opening: str) -> str:
        """Calls of these functions, one or more where `parallel` and the form allow it, behind `opening`."""
        arguments = [self.rule(self.arguments(function, strict[at])) for at, function in enumerate(functions)]

        def any_of(before: str) -> str:
            return self.rule(" | ".join(self.one_call(before, each["name"], rule) for each, rule in zip(functions, arguments, strict=True)))

        more = f"{any_of(self.call.between)}*" if parallel and self.call.between else ""
        return f"{any_of(opening)} {more} {self.literal(self.call.closing)}"

    def one_call(self, before: str, name: str, arguments: str) -> str:
        """A call of a function behind what begins it."""
        call, before = self.call, before.replace(SENTINEL, name)
        texts = (before + call.head, call.middle + name + call.tail) if call.name_last else (before + call.head + name + call.middle, call.tail)
        return f"{self.literal(texts[0])} {arguments} {self.literal(texts[1])}"

    def arguments(self, function: Mapping[str, Any], strict: bool) -> str:
        """A function's arguments."""
        schema = function.get("parameters") or {"properties": {}}
        if self.call.parameters is None:
            return json_rule(closed(schema) if strict else {"type": "object"})
        required, properties = schema.get("required", ()), schema.get("properties") or {}
        if strict:
            known = {key: self.parameter(key, alternatives(node, schema, self.call.parameters.python_constants)) for key, node in properties.items()}
            return " ".join(rule if key in required else f"{rule}?" for key, rule in known.items()) or '""'
        free = [self.parameter(key, [Alternative(pattern=ANY)]) for key in properties]
        return f"({' | '.join(free)})*" if free else '""'

    def parameter(self, key: str, values: Sequence[Alternative]) -> str:
        """One parameter, whose value is one of the alternatives."""
        form = self.call.parameters
        bodies = [
            self.up_to(value.pattern, form.closing)
            if value.pattern
            else f"{json_rule(value.schema) if value.literal is None else json.dumps(value.literal)} {self.literal(form.closing)}"
            for value in values
        ]
        return self.rule(f"{self.literal(form.opening + key + form.middle)} ({' | '.join(bodies)})")


def containing(text: str) -> str:
    """A terminal of the texts that contain this one."""
    escaped = "".join(f"\\x{{{ord(char):x}}}" if char.isspace() or char == "/" else re.escape(char) for char in text)
    return f"/(?s:.*){escaped}(?s:.*)/"


def json_rule(schema: Mapping[str, Any]) -> str:
    """The JSON texts of a schema."""
    return f"%json {json.dumps(schema, ensure_ascii=False)}"


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of objects that has no properties but those that it names, unless it says that there may be others."""
    more = {} if "properties" not in schema or any(key in schema for key in CLOSING_KEYS) else {"additionalProperties": False}
    return {"type": "object", **schema, **more}
