"""Texts as words and back: a vocabulary of words as they stand in the data, and canvases on which some words are given."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ...data.errors import UserError

PAD, END, UNKNOWN = SPECIAL = "[PAD]", "[END]", "[UNK]"
SPACE = "▁"  # what a space before a word is in its token
BLANK = "_"  # a position of a template that is to be filled in
WORD = re.compile(r"(\s*)(\w+|[^\w\s])")

Canvas = list[int | None]  # ids, None where a word is to be found


def split(text: str) -> list[str]:
    """The tokens of a text: words and signs, those behind a space, and the first, with a mark before them.

    >>> split("Lucy's hat, really?")
    ['▁Lucy', "'", 's', '▁hat', ',', '▁really', '?']
    """
    return [(SPACE if match[1] or not match.start() else "") + match[2] for match in WORD.finditer(text)]


def train_words(texts: Iterable[str], min_count: int = 1) -> PreTrainedTokenizerFast:
    """A tokenizer of the words that occur at least so often, the commonest first; what is rarer is [UNK], as in the paper.

    transformers' own class: loaded elsewhere, it gives the ids that `ids_of` gives.
    """
    if min_count < 1:
        raise UserError(f"min_count must be at least 1, got {min_count}")
    counts = Counter(token for text in texts for token in split(text))
    common = sorted((token for token, count in counts.items() if count >= min_count), key=lambda token: (-counts[token], token))
    if not common:
        raise UserError(f"no word occurs {min_count} times: lower --min_count")
    tokenizer = Tokenizer(models.WordLevel({token: id for id, token in enumerate((*SPECIAL, *common))}, unk_token=UNKNOWN))
    pieces = pre_tokenizers.Split(Regex(rf"{SPACE}?\w+|{SPACE}?[^\w\s{SPACE}]"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(SPACE, "always"), pieces])
    tokenizer.decoder = decoders.Metaspace(SPACE, "always")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def ids_of(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text's words; what looks like a special token is a text."""
    known, unknown = tokenizer.get_vocab(), tokenizer.unk_token_id
    return [known.get(token, unknown) for token in split(text)]


def word_id(word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of one word: as it stands behind a space, else as it stands without. Raises UserError for more than one, and for an unknown one."""
    tokens, known = split(word), tokenizer.get_vocab()
    if len(tokens) != 1:
        raise UserError(f"{word!r} is {len(tokens)} words, give one")
    for token in (tokens[0], tokens[0].removeprefix(SPACE)):
        if token in known:
            return known[token]
    raise unknown_word(word, "")


def canvas_of(template: str, tokenizer: PreTrainedTokenizerBase) -> Canvas:
    """The ids of a text that has `_` where words are to be found: as many words as it has, and no more.

    Raises UserError for a word outside the vocabulary, which the model could not keep.
    """
    known, canvas = tokenizer.get_vocab(), []
    for token in split(template):
        word = token.removeprefix(SPACE)
        if word != BLANK and token not in known:
            raise unknown_word(word, f" of {template!r}")
        canvas.append(None if word == BLANK else known[token])
    if not canvas:
        raise UserError(f"the template {template!r} has no words: give some, {BLANK} where one is to be found")
    return canvas


def unknown_word(word: str, where: str) -> UserError:
    """What is said of a word that the model has no embedding for."""
    return UserError(f"the word {word!r}{where} is outside the model's vocabulary: use a word of the text that it was trained on")


def filled(canvas: Sequence[int | None], length: int, tokenizer: PreTrainedTokenizerBase) -> Canvas:
    """A canvas with the end behind it, filled up to the model's length. Raises UserError where there is no room for that."""
    if len(canvas) >= length:
        raise UserError(f"{len(canvas)} words and their end are longer than the model, which has {length} positions: shorten the text")
    return [*canvas, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * (length - len(canvas) - 1)]


def text_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of a row up to its end; a word that was too rare to learn stays [UNK]."""
    return tokenizer.decode(before_end(ids, tokenizer)).replace(PAD, "").strip()


def before_end(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids before the first end."""
    ids = list(ids)
    return ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
