"""Metrics of an answer's form: JSON, JSON of a schema, a regular expression, a grammar. The share of all answers that have it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...data.errors import UserError
from ...infer.constraints.form import in_grammar
from ...infer.remote.answers import read_json
from ..rewards.rules import format_match
from .case import Case
from .metric import ANSWERS, Metric, mean_metric

Fits = Callable[[str], bool]


def is_json(text: str) -> bool:
    """Whether a text, white space around it aside, is JSON: without NaN and Infinity, which Python's reader takes."""
    return _value(text) is not _NONE


_NONE = object()


def _value(text: str) -> Any:
    try:
        return read_json(text.encode())
    except ValueError:
        return _NONE


def of_schema(path: str) -> Fits:
    """What tells JSON of the schema in a file; raises UserError for a file that holds none, and without the library."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for
    except ImportError:
        raise UserError("metric schema needs the package jsonschema: pip install 'seodang[eval]'") from None
    schema = _value(_read("schema", path))
    if not isinstance(schema, dict | bool):
        raise UserError(f"metric schema: {path} holds no JSON Schema, which is an object")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise UserError(f"metric schema: {path} is no JSON Schema: {error.message}") from None
    validator = kind(schema)

    def fits(text: str) -> bool:
        value = _value(text)
        return value is not _NONE and validator.is_valid(value)

    return fits


def of_regex(pattern: str) -> Fits:
    """What tells texts that a regular expression matches as a whole, as the reward `format` does."""
    reward = format_match(pattern)
    return lambda text: reward([], [text])[0] == 1


# by name what stands behind the colon, and what tells from it which answers have the form
FORMS: dict[str, tuple[str, Callable[[str], Fits]]] = {
    "json": ("", lambda nothing: is_json),
    "regex": ("PATTERN", of_regex),
    "schema": ("FILE.json", of_schema),
    "grammar": ("FILE.lark", lambda path: in_grammar(_read("grammar", path))),
}


def form_metric(name: str, behind: str) -> Metric:
    """The metric `name:behind`, the share of the answers to a record that have the form. Raises UserError for what makes none."""
    fits = FORMS[name][1](behind)

    def share(case: Case) -> float | None:
        return sum(map(fits, case.answers)) / len(case.answers) if case.answers else None

    return mean_metric(name, (ANSWERS,), share)


def _read(name: str, path: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"metric {name}: there is no file {path}: give it as {name}:{FORMS[name][0]}")
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"metric {name}: {path} is not UTF-8") from None
