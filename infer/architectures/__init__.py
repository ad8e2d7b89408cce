"""Architectures of Seodang's own, each a readable file: the Transformer as its paper wrote it, and the LSTM encoder-decoder that it replaced."""
