"""Which of llama.cpp's ways to split a text into words a byte-level tokenizer has, found out by its own definition."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ....data.errors import UserError

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPELLED = ("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "'(?i:[sdmt]|ll|ve|re)")  # the same, as others write it
NUMBER, NUMBERS = r"\p{N}", r"\p{N}+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
) + SPACES
MARKED = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + SPACES
# ASCII's letters alone count as small or capital there
ROUGHLY = "llama.cpp splits words of other alphabets than a-z otherwise at capitals and at combining marks: their token ids differ"


@dataclass(frozen=True)
class Split:
    """A way to split: the regular expressions that cut a text one after the other, and what llama.cpp calls it.

    `whole` is its name where a word that is a token stays whole, whatever the merges say; a way has one of the two names or both.
    """

    patterns: tuple[str, ...]
    name: str | None = None
    whole: str | None = None
    note: str | None = None


SPLITS = (
    Split((GPT2,), "gpt-2"),
    Split((NUMBER, GPT2), "smollm"),
    Split((WORDS % r"\p{N}{1,3}",), "smaug-bpe", "llama-bpe"),
    Split((WORDS % NUMBER,), "qwen2"),
    Split((MARKED,), "qwen35"),
    Split((CASED % ("", "", NUMBER),), whole="tekken", note=ROUGHLY),
    Split((CASED % (CONTRACTIONS + "?", CONTRACTIONS + "?", r"\p{N}{1,3}"),), "gpt-4o", note=ROUGHLY),
)


def split_of(definition: Mapping[str, Any] | None) -> Split:
    """Return the way to split that a `pre_tokenizer` of tokenizer.json defines; raises UserError for one that llama.cpp has not."""
    patterns = tuple(_patterns(definition))
    found = next((split for split in SPLITS if split.patterns == patterns), None)
    if found is None:
        raise UserError(f"llama.cpp has no tokenizer that splits a text by {' and then '.join(patterns) or 'nothing'}: export without --gguf")
    return found


def split_named(name: str) -> Split:
    """Return the way to split that llama.cpp knows by this name."""
    return next(split for split in SPLITS if name in (split.name, split.whole))


def _patterns(step: Mapping[str, Any] | None) -> Iterator[str]:
    """The regular expressions whose matches become words, one after the other."""
    kind = (step or {}).get("type")
    if kind == "Sequence":
        for each in step["pretokenizers"]:
            yield from _patterns(each)
    elif kind == "ByteLevel" and not step["add_prefix_space"]:
        if step.get("use_regex", True):
            yield GPT2
    elif kind == "Digits":
        yield NUMBER if step["individual_digits"] else NUMBERS
    elif kind == "Split" and (step["behavior"], step["invert"]) in (("Isolated", False), ("Removed", True)):
        pattern = step["pattern"].get("Regex") or re.escape(step["pattern"]["String"])
        for spelled in SPELLED:
            pattern = pattern.replace(spelled, CONTRACTIONS)
        yield pattern
    else:
        told = "ByteLevel with a space put before the text" if kind == "ByteLevel" else kind
        raise UserError(f"llama.cpp has no tokenizer that splits a text by {told}: export without --gguf")
