"""Whether a whole text is one of a grammar, as a model that is kept inside it would have written."""

from __future__ import annotations

from collections.abc import Callable

from .grammar import over_bytes, source


def in_grammar(lark: str) -> Callable[[str], bool]:
    """Return what tells the texts of a Lark grammar; raises UserError where the grammar is wrong."""
    matcher = over_bytes("grammar", source("grammar", lark))

    def fits(text: str) -> bool:
        trial = matcher.deep_copy()
        return trial.consume_tokens(list(text.encode())) and trial.is_accepting()

    return fits
