"""The constraints as one filter, with the settings that ask for them; `constraints` makes what they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..requests.options import CONFIG, Command, file_or_text, option, options_of, settings
from ..requests.params import RequestParams, as_texts
from ..requests.rules import listed, mapping, text, texts, whole, yes_or_no
from ..requests.sequence import TokenSequence
from ..requests.written import by_place, lines_or_texts, texts_by_place
from .spec import FilterSpec, given, row_by_row


def constrained(sequence: TokenSequence, scores: Tensor) -> Tensor:
    """What a sequence's constraints leave of its scores, [1, vocab]: grammars, forced texts and the like; raises what they raise."""
    for constraint in sequence.constraints:
        scores = constraint.mask(sequence, scores)
    return scores


def by_places(given: Any) -> Any:
    """Texts by positions, which JSON writes as texts; raises UserError for one that is written twice."""
    return by_place("forced_text", given.items()) if isinstance(given, Mapping) else given


def ids_in(forced: Mapping[int, str | int]) -> list[int]:
    """What of forced texts is given in ids."""
    return [each for each in forced.values() if not isinstance(each, str)]


@settings
class Constraints:
    forced_text: Mapping[int, str | int] | None = option(
        None, "Texts, in JSON also ids, by the positions in the answer where they stand (0=Yes).", mapping, example={3: " so"},
        command=Command(list[str], read=partial(texts_by_place, "forced_text")), from_json=by_places, ids=ids_in,
    )  # fmt: skip
    trie: Sequence[str | Sequence[int]] = option(
        (), "Texts of which the answer is one, or a file of them, one a line; in Python also sequences of ids.", listed, example=("yes", "no"),
        command=Command(list[str], read=partial(lines_or_texts, "trie")),
    )  # fmt: skip
    regex: str | None = option(None, "The answer matches this regular expression.", text("a regular expression"), example="a+")
    json_schema: Mapping | str | None = option(
        None, "The answer is JSON of this schema (a file, or the schema itself).", example="{}", command=Command(str | None, read=file_or_text)
    )
    choice: Sequence[str] = option((), "The answer is one of these.", texts, example=("yes", "no"), convert=as_texts)
    grammar: str | None = option(
        None, "The answer follows this Lark grammar (a file, or the grammar itself).", text("a Lark grammar"), example='start: "a"',
        command=Command(str | None, read=file_or_text),
    )  # fmt: skip
    thinking_budget: int | None = option(
        None, "The thinking, with which the answer begins, is ended after so many tokens.", whole(0), example=8
    )
    token_healing: bool = option(False, "Let the end of the prompt be written in other tokens.", yes_or_no, example=True, same_in=(CONFIG,))


CONSTRAINTS = tuple(options_of(Constraints))
IN_ANY_ORDER = ("forced_text", "choice", "trie")  # which say of each position by itself what may stand there, given the others


@settings
class Text:
    """What belongs to the constraints and asks for none."""

    prefix: str | None = option(None, "The answer begins with this.", text("a text"), example="Yes")
    thinking_end: str = option("</think>", "What ends the thinking.", example="</thought>", part_of="thinking_budget")


def begins_twice(params: RequestParams) -> str | None:
    """The refusal of a beginning that two settings give, and of tokens that may not come where one is given. A forced first token stands before a prefix."""
    if params.prefix and params.begin_suppress_tokens:
        return f"prefix={params.prefix!r} begins the answer, so begin_suppress_tokens={params.begin_suppress_tokens} has no place: drop one of them"
    if params.target_lang and params.forced_bos_token_id is not None:
        return f"target_lang={params.target_lang!r} and forced_bos_token_id={params.forced_bos_token_id} both begin the answer: drop one of them"
    return None


CONSTRAINING = FilterSpec(
    "constraints", "constraint", constrained, Constraints, row_by_row(constrained),
    asks=lambda params: params.json_schema is not None or given(*CONSTRAINTS)(params),  # a schema of {}, too
    asked_by=tuple((name,) for name in CONSTRAINTS), check=begins_twice,
    looks_back=lambda params: [name for name in CONSTRAINTS if name not in IN_ANY_ORDER and name in params.given],
)  # fmt: skip
