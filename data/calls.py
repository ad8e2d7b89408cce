"""Tool calls: the one form that all ways to write them come to, and whether an answer's text holds them."""

import html
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from .errors import UserError
from .json_text import parsed
from .surrogates import refuse_surrogates

_OF_THE_CALL = ("id", "type", "index")  # what stands beside a call's function; all else is the function's

_FOLDED = str.maketrans({"\\": None, "\n": "n", "\t": "t", "\r": "r", "\b": "b", "\f": "f"})


def with_calls(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message, its calls as a list of {type, function: {name, arguments}} under `tool_calls`; without calls it has no such key.

    Calls may be written flat, as JSON text, or one under OpenAI's older `function_call`. Arguments become a mapping: JSON text of an
    object is read, key order and 1.0 kept, and none are {}; any other text stays a text. Raises UserError for a call that is none.

    >>> with_calls({"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "수원"}'}})["tool_calls"]
    [{'type': 'function', 'function': {'name': 'weather', 'arguments': {'city': '수원'}}}]
    """
    if "tool_calls" not in message and "function_call" not in message:
        return dict(message)
    rest = {key: value for key, value in message.items() if key not in ("tool_calls", "function_call")}
    calls, older = message.get("tool_calls"), message.get("function_call")
    if calls and older:
        raise UserError("a message has tool_calls and function_call: leave one of them out")
    if older:
        calls = [{"function": older}]
    if isinstance(calls, str) and calls.strip():
        try:
            calls = parsed(calls)
        except json.JSONDecodeError as error:
            raise UserError(f"tool_calls is not JSON: {error}") from None
    if not calls:
        return rest
    if not isinstance(calls, (list, tuple)):
        raise UserError(f"tool_calls must be a list of calls, got {calls!r:.80}")
    return {**rest, "tool_calls": [_call(call) for call in calls]}


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if function is None and isinstance(call, Mapping):
        function = {key: value for key, value in call.items() if key not in _OF_THE_CALL}
    if not isinstance(function, Mapping):
        raise UserError(f"a tool call must be an object of name and arguments, got {call!r:.80}")
    function = {key: value for key, value in function.items() if value is not None}  # columns of a table fill up with None
    name, arguments = function.pop("name", None), function.pop("arguments", None)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"a tool call must have a name, got {call!r:.80}")
    if arguments is None and function:
        raise UserError(f"the call of {name!r} has {', '.join(map(str, function))} and no arguments: name them arguments")
    beside = {key: call[key] for key in _OF_THE_CALL if call.get(key) is not None}
    return {"type": "function", **beside, "function": {"name": name, "arguments": _arguments(arguments, name), **function}}


def _arguments(value: Any, name: str) -> dict[str, Any] | str:
    if value is None or isinstance(value, str) and not value.strip():
        return {}
    if isinstance(value, str):
        try:
            read = parsed(value, partial(json.loads, parse_constant=_no_json))
        except ValueError:
            return value
        if not isinstance(read, Mapping):
            return value
        refuse_surrogates(read, f"the arguments of {name!r}")
        value = read
    if not isinstance(value, Mapping):
        raise UserError(f"the arguments of {name!r} must be an object or JSON text of one, got {value!r:.80}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the arguments of {name!r} hold what JSON cannot say: {error}") from None
    return dict(value)


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def as_json(arguments: Mapping[str, Any] | str) -> str:
    """Arguments as JSON text, in the letters that they have; a text as it is."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def lost(calls: Sequence[Mapping[str, Any]], text: str, beside: Sequence[str] = ()) -> str:
    """What of the calls does not stand in the text, in words; nothing where all does.

    A name has to stand there once a call, every key and value of the arguments once, in whatever spelling a template has: plain, quoted
    and escaped as in JSON, Python or HTML. What the texts `beside` the calls (content, thinking) say is no call: it does not count.
    """
    texts = {_folded(text), _folded(html.unescape(text))}
    beside = [_folded(said) for said in map(str.strip, beside) if said and said in text]

    def found(value: Any) -> int:
        return max(whole.count(each) - sum(said.count(each) for said in beside) for whole in texts for each in _spellings(value))

    for name, count in Counter(call["function"]["name"] for call in calls).items():
        if found(name) < count:
            return f"{'a' if found(name) > 0 else 'the'} call of {name!r}"
    for call in calls:
        for place, value in _leaves(call["function"]["arguments"]):
            if found(value) < 1:
                return f"the argument {place} of the call of {call['function']['name']!r}"
    return ""


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every key and value that says something, with its place such as `days[0].hour`."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = f"{place}.{key}" if place else str(key)
            if str(key):
                yield inner, str(key)
            yield from _leaves(item, inner)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{place}[{index}]")
    elif not isinstance(value, str) or value.strip():
        yield place or "text", value


def _spellings(value: Any) -> set[str]:
    """How a template may write a leaf, folded."""
    if value is None:
        return {"null", "None", "none", "nil"}
    if not isinstance(value, str):
        return {json.dumps(value), str(value)}
    return {_folded(each) for each in (value, value.strip(), json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1])}


def _folded(text: str) -> str:
    """The text without backslashes, line breaks as the letters that escapes write them with: the same for each way and depth of escaping."""
    return text.translate(_FOLDED)
