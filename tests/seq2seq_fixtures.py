"""Tokenizers of encoder-decoders, tiny: the fixtures of every test of sources and targets."""

import pytest
from transformers import T5Tokenizer

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
