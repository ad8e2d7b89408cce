"""Regular expressions for calls of given tools in a form, free in white space where the form has any."""

from __future__ import annotations

import json
from functools import lru_cache

import regex

from ...data.form import SENTINEL
from .call_form import ID, NUMBER, CallForm

_STRING = r'"(?:[^"\\]|\\.)*+"'
_OBJECT = rf'(?P<whole>\{{(?:[^{{}}"]++|{_STRING}|(?&whole))*+\}})'
_SPACED = regex.compile(r"\s*([{}\[\]:,])\s*|(?<=>)\s*(?=<)|\s+")
_EDGE = r"\s*"


class CallPatterns:
    """What is taken for the beginning of a call, its parts and its end; what is taken has white space before it, and none behind."""

    def __init__(self, form: CallForm, names: tuple[str, ...]):
        self.form = form
        self.names = {spelling: name for name in names for spelling in (name, json.dumps(name)[1:-1])}
        any_name = "|".join(map(regex.escape, self.names))
        self._any_name = f"(?:{any_name})"
        name = f"(?P<name>{any_name})"
        parameters = form.parameters
        ends = [self._text(each) for each in (form.between, form.closing) if each]
        self.parameter = self.value_end = self.last_value_end = self.tail = None
        if parameters:
            opening = self._text(parameters.opening)
            follows = f"(?={'|'.join(f'{_EDGE}{each}' for each in (opening, *ends))})"
            begin = name + _EDGE + self._text(form.middle) + follows
            self.parameter = compiled(rf"{opening}\s*(?P<key>.+?)\s*{self._text(parameters.middle)}")
            closing = self._text(parameters.closing)
            self.value_end = regex.compile(closing + follows)
            self.last_value_end = regex.compile(rf"{closing}\s*\Z")
        elif form.keys:
            begin, tail = self._json(name, *form.keys)
            self.tail = compiled(tail)
        else:
            begin = name + _EDGE + self._text(form.middle) + r"\s*(?=\{)"
        self.marker = regex.compile(self._text(form.opening)) if form.opening.strip() else None
        self.begin = compiled(self._text(form.opening) + _EDGE + begin)
        self.again = compiled(self._text(form.between) + _EDGE + begin) if form.between else None
        self.closing = compiled(self._text(form.closing)) if form.closing else None

    def _text(self, text: str) -> str:
        """A fixed text, in which a name may be any of the tools' and an id any."""
        return lenient(text).replace(SENTINEL, self._any_name).replace(ID, r"[\w.:-]+").replace(NUMBER, r"(?P<number>\d+)")

    @staticmethod
    def _json(name: str, name_key: str, arguments_key: str) -> tuple[str, str]:
        """A JSON object up to its arguments (or whole, where they come first or are left out), and what may follow them."""
        name_key, arguments_key = (rf"{regex.escape(json.dumps(key))}\s*:\s*" for key in (name_key, arguments_key))
        other = rf'(?!{name_key}|{arguments_key}){_STRING}\s*:\s*(?:{_STRING}|[\w.+-]+)'
        others, behind = rf"(?:{other}\s*,\s*)*", rf"(?:\s*,\s*{other})*\s*\}}"
        named = rf'{name_key}"{name}"'
        last = rf"{arguments_key}{_OBJECT}\s*,\s*{others}{named}{behind}"
        return rf"\{{\s*{others}(?:{named}(?:\s*,\s*{others}{arguments_key}(?=\{{)|(?P<bare>{behind}))|{last})", behind


def lenient(text: str) -> str:
    """A pattern for a text with any white space where it has some, between tags and around JSON's punctuation; none at its ends."""
    pieces, at = [], 0
    text = text.strip()
    for found in _SPACED.finditer(text):
        pieces += [regex.escape(text[at : found.start()]), _EDGE]
        pieces += [regex.escape(found[1]), _EDGE] if found[1] else []
        at = found.end()
    return "".join([*pieces, regex.escape(text[at:])]).removeprefix(_EDGE).removesuffix(_EDGE).replace(_EDGE * 2, _EDGE)


@lru_cache(256)
def compiled(pattern: str) -> regex.Pattern:
    """The pattern behind any white space."""
    return regex.compile(_EDGE + pattern, regex.DOTALL)


def leading_space(text: str) -> str:
    """The white space that a text begins with."""
    return text[: len(text) - len(text.lstrip())]


def trailing_space(text: str) -> str:
    """The white space that a text ends with."""
    return text[len(text.rstrip()) :]
