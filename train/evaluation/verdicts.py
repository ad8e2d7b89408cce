"""Which of two answers is better, by a judge that is asked both ways round: its place in the question must not decide."""

import json
import re
from collections.abc import Sequence
from typing import Any

from ...data.formats import Message
from ..rewards.ranking import TWO_ANSWERS, filled_in, prompt_as_text

LETTERS = ("A", "B")
FORM = {"type": "object", "properties": {"better": {"enum": [*LETTERS]}}, "required": ["better"], "additionalProperties": False}
IN_FORM = f'{TWO_ANSWERS} Reply with JSON alone: {{"better": "A"}} or {{"better": "B"}}.'
_BARE = re.compile(r"[\s\"'*(]*([AB])[\s\"'*).]*")


def questions(prompt: str | Sequence[Message], answer: str, other: str) -> list[list[Message]]:
    """What a judge is asked of two answers: with the one first, then with the other."""
    request = prompt if isinstance(prompt, str) else prompt_as_text(prompt)
    return [[{"role": "user", "content": filled_in(IN_FORM, request, *pair)}] for pair in ((answer, other), (other, answer))]


def verdict_in(text: str) -> str | None:
    """The letter that a judge's reply names: as JSON of `FORM`, or alone. None for a reply out of form.

    >>> [verdict_in(text) for text in ('{"better": "B"}', " A.", "Both are fine.")]
    ['B', 'A', None]
    """
    try:
        value: Any = json.loads(text)
    except ValueError:
        bare = _BARE.fullmatch(text)
        return bare[1] if bare else None
    said = value.get("better") if isinstance(value, dict) else value
    return said if isinstance(said, str) and said in LETTERS else None


def points(one_way: str | None, other_way: str | None) -> float | None:
    """What the answer wins that stood first the one way and second the other: 1, 0, or 0.5 where the ways disagree. None where a verdict is missing.

    >>> points("A", "B"), points("B", "A"), points("A", "A"), points("A", None)
    (1.0, 0.0, 0.5, None)
    """
    if one_way is None or other_way is None:
        return None
    return ((one_way == "A") + (other_way == "B")) / 2


def points_of_scores(score: float, other: float) -> float:
    """What the answer of a score wins against another's: 1, 0, or 0.5 where they are equal."""
    return (float(score > other) + float(score >= other)) / 2
