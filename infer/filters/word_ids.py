"""Texts that filters speak of, as ids."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from functools import partial

from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.literal import continuing
from ...data.template import remember
from .penalties import DEFAULT_BREAKERS

KEPT = 64  # sets of breakers that a tokenizer remembers


def word_ids(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> list[list[int]]:
    """Return the ids of each word as it stands behind a space, in the middle of a word, and at the beginning of a text.

    The ids are those of the tokenizer's own way to write the word; a model that spells it with other tokens is not stopped.
    """
    plain = partial(tokenizer.encode, add_special_tokens=False)
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        for ids in (plain(word), continuing(plain, word), continuing(plain, " " + word)):
            if ids:
                found[tuple(ids)] = None
    return [list(ids) for ids in found]


def breaker_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> frozenset[int]:
    """Return the ids of all tokens that contain one of the texts.

    llama.cpp also finds a text that runs over several tokens; such a text, which no token contains, is refused by UserError.
    """
    texts = tuple(texts)
    known: OrderedDict[tuple[str, ...], frozenset[int]] = remember(tokenizer, "breakers", OrderedDict, of_template=False)
    if texts not in known:
        known[texts] = _breaker_ids(tokenizer, texts)
        if len(known) > KEPT:
            known.popitem(last=False)
    known.move_to_end(texts)
    return known[texts]


def _breaker_ids(tokenizer: PreTrainedTokenizerBase, texts: tuple[str, ...]) -> frozenset[int]:
    tokens = remember(tokenizer, "token texts", partial(token_texts, tokenizer), of_template=False)
    found: set[int] = set()
    for text in texts:
        having = [id for id, token in enumerate(tokens) if text in token]
        if not having and text not in DEFAULT_BREAKERS:  # nobody asked for these by name
            raise UserError(f"dry_sequence_breakers has {text!r}, which no token contains: give a shorter one")
        found.update(having)
    return frozenset(found)


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text of every token, by its id."""
    return tokenizer.batch_decode([[id] for id in range(len(tokenizer))], clean_up_tokenization_spaces=False)
