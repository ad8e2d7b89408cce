"""Making room for an answer: context goes from the left, the answer and the system turn stay whole."""

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .conversation import Conversation, Turn
from .formats import systems

TOO_LONG = "answer longer than max_length"
NO_ROOM = "no room for the answer beside the system turn and the template"


@dataclass
class Shortened:
    """A turn behind as much context as fits, that context, and the first message kept of the dialogue."""

    turn: Turn
    context: list[dict]
    kept: int


def shorten(talk: Conversation, kept: int, index: int, max_length: int) -> Shortened | str:
    """The turn at `index` with as much context as fits, or the reason why it cannot fit.

    The oldest whole exchanges after the system turn are dropped first, then tokens on the left of the last exchange's user
    or tool texts. Everything is rendered anew, so that the prompt is what generation sees for the shorter messages.
    """
    messages, answer = talk.messages, talk.messages[index]
    head = messages[: systems(messages)]
    starts = [at for at in range(max(kept, len(head)), index) if messages[at].get("role") == "user"]
    for start in starts[1:]:
        context = head + messages[start:index]
        turn = talk.turn(context, answer)
        if len(turn) <= max_length:
            return Shortened(turn, context, start)
    start = starts[-1] if starts else max(kept, len(head))
    found = _with_shorter_text(talk, head, messages[start:index], answer, max_length)
    if isinstance(found, tuple):
        return Shortened(*found, start)
    return TOO_LONG if found >= max_length else NO_ROOM


def _with_shorter_text(talk: Conversation, head: list[dict], exchange: list[dict], answer: dict, max_length: int) -> tuple[Turn, list[dict]] | int:
    """The turn behind an exchange whose longest text lost what is too much, and its context; the answer's length where that is not enough."""
    turn = talk.turn(head + exchange, answer)
    if len(turn.answer_ids) >= max_length:
        return len(turn.answer_ids)
    for at in _longest_first(exchange):
        text = exchange[at]["content"]
        cuts = _token_starts(talk.tokenizer, text)
        cut = 0
        while len(turn) > max_length and cut < len(cuts) - 1:
            cut = min(cut + len(turn) - max_length, len(cuts) - 1)
            exchange = [*exchange[:at], {**exchange[at], "content": text[cuts[cut] :]}, *exchange[at + 1 :]]
            turn = talk.turn(head + exchange, answer)
        if len(turn) <= max_length:
            return turn, head + exchange
    return len(turn.answer_ids)


def _longest_first(exchange: list[dict]) -> Iterator[int]:
    texts = [at for at, message in enumerate(exchange) if message.get("role") in ("user", "tool") and isinstance(message.get("content"), str)]
    return iter(sorted(texts, key=lambda at: -len(exchange[at]["content"])))


def _token_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where in the text each token's first character stands; every character's place with a tokenizer that does not tell."""
    if not tokenizer.is_fast:
        return list(range(len(text)))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [start for start, _ in offsets] or [0]
