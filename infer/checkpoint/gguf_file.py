"""A GGUF file in a checkpoint's place; what reads it, and the package gguf, are imported where there is one."""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...data.errors import UserError
from .damage import looks_like
from .quantise import as_quantised, is_quantised

if TYPE_CHECKING:
    from ..gguf.reading import GgufFile

logger = logging.getLogger(__name__)

MAGIC = b"GGUF"


def is_gguf(place: str | os.PathLike) -> bool:
    """Whether a path is a GGUF file's, by its name or its beginning."""
    if not os.path.isfile(place):
        return False
    if os.fspath(place).lower().endswith(".gguf"):
        return True
    with open(place, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def can_read() -> bool:
    """Whether the package that knows the kinds of blocks is installed."""
    return importlib.util.find_spec("gguf") is not None


def opened(place: str | os.PathLike) -> GgufFile:
    """Return a GGUF file, read once as long as it stays the same; raises UserError for one that is damaged, and without the package gguf."""
    if not can_read():
        raise UserError(f'{place} is a GGUF file, which needs the package gguf: run pip install "seodang[gguf]"')
    told = os.stat(place)
    with open(place, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UserError(f"{place} is no GGUF file ({looks_like(Path(place)) or 'it does not begin as one'}): fetch or write it again")
    return _opened(os.fspath(place), told.st_size, told.st_mtime_ns)


@lru_cache(maxsize=2)
def _opened(place: str, size: int, changed: int) -> GgufFile:
    from ..gguf.reading import GgufFile

    return GgufFile(Path(place))


def gguf_config(place: str | os.PathLike) -> PretrainedConfig:
    """Return the configuration that a GGUF file's values come to; raises UserError for one that is not covered."""
    from ..gguf.configuration import config_of

    return config_of(opened(place))


def gguf_tokenizer(place: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a GGUF file; raises UserError where it has none."""
    from ..gguf.tokenizing import tokenizer_of

    return tokenizer_of(opened(place))


def gguf_model(place: str | os.PathLike, dtype: torch.dtype, in_blocks: bool, weights: str | None = None) -> PreTrainedModel:
    """Return the model of a GGUF file on the CPU: with `in_blocks` its weights as they are, where kernels multiply such, else written out in a dtype.

    A file of floats is always written out. A model in blocks can speak and be scored, not be trained or saved. Raises UserError for `weights` that are to be in few bits where the file's are already, and as `model_of` does.
    """
    file = opened(place)
    from ..gguf.loading import kinds_in, model_of

    kinds = " and ".join(sorted(kinds_in(file)))
    if weights is not None and kinds:
        raise UserError(f"{place} has its weights in {kinds} already: leave weights out, or make a folder of it first (`seodang export {place} FOLDER`)")
    model = model_of(file, None if in_blocks and kinds else dtype, dtype)
    return as_quantised(model) if is_quantised(model) else model
