"""Parts of a prompt that no token may see, named by tokens, by characters or by message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ...data.chat import prompt_text
from ...data.errors import UserError
from ...data.formats import Dialogue
from ...data.literal import literal_text
from ...data.template import render
from .detokenise import PATIENCE

UNITS = ("tokens", "characters", "messages")


@dataclass(frozen=True)
class Span:
    """A part of a prompt from `start` up to, not including, `end`; `by` says what is counted.

    "tokens" counts the prompt's ids (those of the chat template included), "characters" the prompt's text as the model sees
    it (a token of which any character is named is meant whole), "messages" whole messages with their marks.
    """

    start: int
    end: int
    by: str = "tokens"

    def __post_init__(self):
        if self.by not in UNITS:
            raise UserError(f"a span is by {', '.join(UNITS[:-1])} or {UNITS[-1]}, got {self.by!r}")
        if not 0 <= self.start < self.end:
            raise UserError(f"a span runs from a start of at least 0 to an end behind it, got {self.start} to {self.end}")


def positions_to_mask(
    tokenizer: PreTrainedTokenizerBase, prompt, ids: list[int], spans: Sequence[Span | str], mask: Sequence[int] | None, name: str
) -> tuple[int, ...]:
    """Return the positions of the prompt's ids that its later tokens do not see, in order.

    A text among the spans means itself wherever it stands in the prompt as the model sees it. `mask` has a 0 for each such id, as
    transformers' attention_mask. Raises UserError for a part that is not there, and where the last id is hidden, which the answer
    continues.
    """
    masked: set[int] = set()
    if mask is not None:
        try:
            bits = [int(bit) for bit in mask]
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"the attention_mask of {name} must be a list of {len(ids)} numbers, 0 or 1, got {mask!r}") from None
        if len(bits) != len(ids) or not set(bits) <= {0, 1}:
            raise UserError(f"the attention_mask of {name} must be {len(ids)} numbers, 0 or 1, got {len(bits)}: one for each id of the prompt")
        masked.update(place for place, bit in enumerate(bits) if not bit)
    texts = [span for span in spans if isinstance(span, str)]
    if texts:
        masked.update(places_of_texts(tokenizer, ids, texts, name))
    for span in spans:
        if not isinstance(span, str):
            masked.update(places_of(tokenizer, prompt, ids, span, name))
    if len(ids) - 1 in masked:
        raise UserError(f"the last token of {name} is hidden, but the answer continues it: leave it out of hide and attention_mask")
    return tuple(sorted(masked))


def places_of(tokenizer: PreTrainedTokenizerBase, prompt, ids: list[int], span: Span, name: str) -> range | list[int]:
    """Return which ids of the prompt a span means; raises UserError for one that reaches beyond the prompt."""
    if span.by == "tokens":
        within(span, len(ids), name)
        return range(span.start, span.end)
    start, end = span.start, span.end
    if span.by == "messages":
        start, end = characters_of_messages(tokenizer, prompt, span, name)
    extents, text = characters(tokenizer, ids, name)
    if isinstance(prompt, str):  # what the tokenizer puts before a text does not count
        before = text.find(prompt)
        if before < 0:
            raise UserError(f"this tokenizer rewrites the text of {name}, so no part of it can be found by characters: hide by tokens")
        start, end = start + before, end + before
    if span.by == "characters":
        within(span, len(prompt) if isinstance(prompt, str) else len(text), name)
    return [place for place, (begin, stop) in enumerate(extents) if begin < end and stop > start]


def places_of_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int], texts: Sequence[str], name: str) -> list[int]:
    """Return which ids of the prompt have a character of one of the texts, wherever it stands; raises UserError for one that stands nowhere."""
    extents, whole = characters(tokenizer, ids, name)
    hidden = bytearray(len(whole))  # 1 for each character of a text
    for text in texts:
        found = [match.start() for match in re.finditer(re.escape(text), whole)]
        if not found:
            raise UserError(f"hide={text!r} stands nowhere in {name}: give a text as it stands there")
        for at in found:
            hidden[at : at + len(text)] = b"\1" * len(text)
    return [place for place, (begin, stop) in enumerate(extents) if 1 in hidden[begin:stop]]


def within(span: Span, length: int, name: str) -> None:
    """Raise UserError for a span that ends beyond the `length` units that there are; `name` is the prompt's."""
    if span.end > length:
        raise UserError(f"the span {span.start} to {span.end} of {name} counts {span.by}, of which there are {length}: end it there at the latest")


def characters_of_messages(tokenizer: PreTrainedTokenizerBase, prompt, span: Span, name: str) -> tuple[int, int]:
    """Return where the span's messages begin and end in the prompt's text; raises UserError for a prompt or a template in which they cannot be found."""
    messages, tools = (prompt.messages, prompt.tools) if isinstance(prompt, Dialogue) else (prompt, None)
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        raise UserError(f"{name} has no messages: name what to hide by characters or by tokens")
    within(span, len(messages), name)
    text = prompt_text(tokenizer, messages, tools)
    edges = []
    for count in (span.start, span.end):
        beginning = render(tokenizer, messages[:count], tools, add_generation_prompt=False) if count else ""
        if not text.startswith(beginning):
            raise UserError(f"the chat template writes the first {count} messages of {name} otherwise when others follow: hide by characters")
        edges.append(len(beginning))
    return edges[0], edges[1]


def characters(tokenizer: PreTrainedTokenizerBase, ids: list[int], name: str) -> tuple[list[tuple[int, int]], str]:
    """Return from where to where each id's characters reach in the prompt's text, and the text; ids that share a character reach alike.

    Raises UserError for a tokenizer whose tokens do not join to the text; `name` is the prompt's.
    """
    extents: list[tuple[int, int]] = []
    held: list[int] = []
    text = ""
    for place, id in enumerate(ids, 1):
        held.append(id)
        part = literal_text(tokenizer, held)
        if part.endswith("\ufffd") and len(held) < PATIENCE and place < len(ids):
            continue
        extents += [(len(text), len(text) + len(part))] * len(held)
        text, held = text + part, []
    if text != literal_text(tokenizer, ids):
        raise UserError(f"this tokenizer's tokens have no characters of their own, so no part of {name} can be found by them: hide by tokens")
    return extents, text
