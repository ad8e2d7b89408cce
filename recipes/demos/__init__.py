"""Demonstrations: each trains a model on real input and shows what it came to."""
