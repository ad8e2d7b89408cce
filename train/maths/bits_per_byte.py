"""How well a model foresees text, so that models of different tokenizers, and compressors, compare."""

from math import log, log2


def bits_per_byte(nats: float, size: int, *, uncoded: int = 0, vocab_size: int = 1) -> float:
    """Bits that a code by the model takes for each byte of text: (nats / ln 2 + uncoded x log2(vocab_size)) / size.

    `nats` is the negative log-likelihood of all tokens together, the mean a token times their number, ends of text included; `size` counts the text's
    own bytes, in UTF-8, ends not among them. `uncoded` tokens are given without being predicted, the first of each document where the tokenizer puts
    nothing before it: each is coded as one of `vocab_size` equally likely ones. Raises ValueError for a text without bytes.

    >>> bits_per_byte(log(256), 1)
    8.0
    """
    if size < 1:
        raise ValueError(f"a text has at least one byte, got {size}")
    return (nats / log(2) + uncoded * log2(vocab_size)) / size
