"""The words of a text in any script."""

from unicodedata import normalize

import regex

# Words of letters, their marks and digits; in scripts that put no spaces between words, each character with its marks.
ALONE = r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}]"
_WORD = regex.compile(rf"{ALONE}\p{{M}}*|(?:(?!{ALONE})[\p{{L}}\p{{M}}\p{{N}}])+")


def words_of(text: str) -> list[str]:
    """The words of a text, in small letters.

    >>> words_of("Don't! 나무가 자란다. 木が育つ")
    ['don', 't', '나무가', '자란다', '木', 'が', '育', 'つ']
    """
    return _WORD.findall(normalised(text))


def normalised(text: str) -> str:
    """A text in small letters, each composed of as few characters as it can be: a Mac may write 한 as ㅎㅏㄴ."""
    return normalize("NFC", text).lower()
