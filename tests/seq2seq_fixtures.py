"""Tokenizers of encoder-decoders, tiny: the fixtures of every test of sources and targets."""

import pytest
from transformers import MBartTokenizer, NllbTokenizer, T5Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz:0123456789나무가자란다."
PIECES = ["<pad>", "</s>", "<unk>", "▁", *LETTERS, "▁ab", "bc"]


def build_t5_tokenizer() -> T5Tokenizer:
    """SentencePiece's way with T5's special tokens: a letter each but for "▁ab" and "bc", which are likelier than their letters; two sentinels behind them."""
    scores = {"▁": -2.0, "▁ab": -2.5, "bc": -2.5, **dict.fromkeys(PIECES[:3], 0.0)}
    return T5Tokenizer(vocab=[(piece, scores.get(piece, -3.0)) for piece in PIECES], extra_ids=2)


@pytest.fixture
def t5_tokenizer():
    """A T5 tokenizer of one's own."""
    return build_t5_tokenizer()


ROBERTAS = ["<s>", "<pad>", "</s>", "<unk>", "▁", *LETTERS]


@pytest.fixture
def nllb_tokenizer():
    """A tokenizer of NLLB's of one's own, of a letter each: its languages stand before a source and before a target."""
    languages = ["eng_Latn", "fra_Latn", "kor_Hang"]
    return NllbTokenizer(vocab={piece: id for id, piece in enumerate(ROBERTAS)}, merges=[], src_lang="fra_Latn", extra_special_tokens=languages)


@pytest.fixture
def mbart_tokenizer():
    """A tokenizer of the first mBART's of one's own, of a letter each: its languages stand behind a source and behind a target."""
    return MBartTokenizer(vocab=[(piece, -2.0) for piece in ROBERTAS], src_lang="en_XX")
