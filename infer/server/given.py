"""The beginning of an answer that a client gives: how many tokens it takes, and what of the answer's text it is."""

from __future__ import annotations

from ...data.literal import literal_ids
from ...data.seq2seq.encoding import beginning_ids
from ..requests.request import Request
from ..text.detokenise import whole_text
from .served import Served


def tokens_before(served: Served, prefix: str) -> int:
    """Return how many tokens the client's own beginning of an answer takes."""
    tokenizer = served.tokenizer
    if served.encoder_decoder:
        return len(beginning_ids(tokenizer, prefix, first=()))
    return len(literal_ids(tokenizer, prefix))


def written_of(prefix: str, request: Request) -> str:
    """Return what of a given beginning the answer's text begins with: as its tokens say it, or, where the answer spells its end again, all of it."""
    return prefix if request.params.token_healing else whole_text(request.tokenizer, request.prefix_ids, request.prompt_ids)


class Skipping:
    """Takes a given beginning off an answer's text: as many characters as its tokens say, and of blanks at its end that they do not say (a tokenizer may
    leave them to the next word) those that the answer then begins with."""

    def __init__(self, prefix: str, written: str):
        self._left = len(written)
        self._blanks = max(len(prefix) - len(prefix.rstrip()) - (len(written) - len(written.rstrip())), 0)

    def behind(self, text: str) -> str:
        """The text without what is skipped of it."""
        text, self._left = text[self._left :], max(self._left - len(text), 0)
        while text and self._blanks and not self._left:
            self._blanks = self._blanks - 1 if text[0].isspace() else 0
            text = text[text[0].isspace() :]
        return text
