"""Texts far beyond what a model can read: told by a beginning of theirs, for to encode all of a long one takes seconds."""

from collections.abc import Callable

SURE = 1 << 12  # characters behind a token that settle it, whatever the rest of the text: no token is nearly as long
JOINED = 64  # tokens at a text's edge that may be fewer where another text stands before it
LIKELY, GROWTH = 5, 1.5  # characters a token, for the first beginning; how much longer the next one is at least


class TooManyTokens(Exception):
    """What is to be encoded has more tokens than may be; it says how many there are, as far as that is known ("more than 8192 tokens")."""


def refuse_long(text: str, most: int, offsets: Callable[[str], list[tuple[int, int]]], swallowed: bool) -> None:
    """Raise TooManyTokens where a beginning of a text is enough to see that the whole has more than `most` tokens.

    `offsets` returns where each token of a text begins and ends; with `swallowed`, a token may take in all blanks before it. Each beginning is as long
    as what may be read is likely to be, by the one before; only the tokens count that nothing behind it can change. A text that is not much longer
    than the first passes: to encode it costs no more, and tells how many tokens there are.
    """
    size = SURE + LIKELY * (most + JOINED)
    while size * GROWTH < len(text):
        settled = size - SURE
        if swallowed:
            settled = len(text[:settled].rstrip())
        tokens = sum(end <= settled for _, end in offsets(text[:size]))
        if tokens > most + JOINED:
            raise TooManyTokens(f"more than {most} tokens")
        size = SURE + max(int(size * GROWTH), int(1.1 * settled / max(tokens, 1) * (most + JOINED)))
