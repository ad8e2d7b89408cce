"""Which script a text is written in: what can be told of its language by its letters alone."""

import regex

# By a language's code the scripts that it is written in. Languages of one script are not told apart.
SCRIPTS = {
    "ko": ("Hangul",), "ja": ("Hiragana", "Katakana", "Han"), "zh": ("Han",), "ru": ("Cyrillic",), "ar": ("Arabic",), "hi": ("Devanagari",),
    **dict.fromkeys(("en", "de", "es", "fr", "it", "pt", "vi"), ("Latin",)),
}  # fmt: skip
_LETTER = regex.compile(r"\p{L}")


def script_share(text: str, language: str) -> float:
    """The share of a text's letters that are of the language's scripts, in [0, 1]; 0 of a text without letters.

    >>> script_share("서울 Seoul!", "ko"), script_share("12 + 3", "en")
    (0.2857142857142857, 0.0)
    """
    own = regex.compile("".join(["[", *(rf"\p{{Script={script}}}" for script in SCRIPTS[language]), "]"]))
    letters = _LETTER.findall(text)
    return sum(own.match(letter) is not None for letter in letters) / max(len(letters), 1)
