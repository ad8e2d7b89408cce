"""Where words begin among a text's tokens, as the tokenizer has it.

No mark on a token says so for all tokenizers: WordPiece marks what continues, SentencePiece what begins, byte-level BPE writes a space as one of
its letters, and each of them may have tokens that are parts of a character. What a word is, is said by what the tokenizer cuts a text into before
it looks for tokens; where it cuts nothing (a Unigram model with Metaspace(split=False), a Llama) words are what blanks part.
"""

import numpy as np
from tokenizers import Encoding

_BLANKS = np.zeros(0x110000, dtype=bool)
_BLANKS[[code for code in range(0x10000) if chr(code).isspace()]] = True


def word_starts(encoding: Encoding, text: str) -> np.ndarray:
    """Whether each token of an encoded text begins a word: [tokens] of bool.

    A token does where the tokenizer begins another piece, or behind a blank, with it where that is of the token; a blank that is a token of its own
    belongs to the word behind it. A token that shares a character with the one before it begins none.

    With byte-level BPE "so it is" of the tokens so, Ġi, t, Ġ, is has [True, True, False, True, False].
    """
    if not len(encoding):
        return np.zeros(0, dtype=bool)
    pieces = np.array([-1 if piece is None else piece for piece in encoding.word_ids])  # None is a token that stands for itself
    begin, end = np.array(encoding.offsets).reshape(-1, 2).T
    blank = np.append(_BLANKS[np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)], False)
    blanks = np.append(0, blank.cumsum())  # how many stand before each character
    starts = np.ones(len(encoding), dtype=bool)
    cut = (pieces[1:] != pieces[:-1]) | (pieces[1:] < 0)
    before_is_blank = blanks[end[:-1]] - blanks[begin[:-1]] == end[:-1] - begin[:-1]
    apart = blank[begin[1:] - 1] & ~(before_is_blank & (end[:-1] == begin[1:]))
    starts[1:] = cut | ((begin[1:] >= end[:-1]) & (blank[begin[1:]] | apart))
    return starts
