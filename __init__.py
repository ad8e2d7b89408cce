"""Teach a language model by teacher forcing, then let it speak."""

__version__ = "0.1.0"
