"""Whether an answer is the expected one, or shares its words, once what does not matter is taken out of both: SQuAD's exact match and F1."""

import string
import unicodedata
from collections import Counter
from collections.abc import Collection

import regex

from ...data.text.words import ALONE

KINDS = ("case", "punctuation", "articles")  # what may be taken out, in this order
_ARTICLES = regex.compile(r"\b(a|an|the)\b")
_PUNCTUATION = regex.compile(rf"[\p{{P}}{regex.escape(string.punctuation)}]")
_TOKEN = regex.compile(rf"{ALONE}\p{{M}}*|(?:(?!{ALONE})\S)+")


def matching(text: str, without: Collection[str] = ()) -> str:
    """A text as it is compared: in Unicode's NFC, white space folded, and without what is named of `KINDS`.

    All three give the normalisation of SQuAD's evaluation (Rajpurkar et al. 2016), whose punctuation is ASCII's: here it is every script's.

    >>> matching("The  Eiffel Tower.", KINDS)
    'eiffel tower'
    """
    text = unicodedata.normalize("NFC", text)
    if "case" in without:
        text = text.lower()
    if "punctuation" in without:
        text = _PUNCTUATION.sub("", text)
    if "articles" in without:
        text = _ARTICLES.sub(" ", text)
    return " ".join(text.split())


def token_f1(answer: str, expected: str) -> float:
    """The harmonic mean of the shares of the answer's and of the expected words that the other has, in [0, 1], as SQuAD counts them.

    Words stand between white space, case, punctuation and articles taken out; in scripts that put no spaces between words each character is one. Of two
    texts without words it is 1, of one 0, as of SQuAD 2.0.

    >>> token_f1("in the city of Paris", "Paris")
    0.4
    """
    ours, theirs = (_TOKEN.findall(matching(text, KINDS)) for text in (answer, expected))
    if not ours or not theirs:
        return float(ours == theirs)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs))
