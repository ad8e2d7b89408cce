"""The text that chooses 4 bits: read from a file, as rows of ids."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.errors import UserError
from .sensitivity import EIGHT, FOUR

TOKENS, LEAST = 16_384, 2_048  # that are read, and that a text must have
LENGTH = 512  # of a row

Calibration = str | os.PathLike | Sequence[str]  # a file of plain text, or texts


def check_choice(weights: str | None, calibration: Calibration | None, bits: float | None) -> None:
    """Raise UserError, before any model is read, for a calibration or `bits` where they choose nothing, for a file that is not there or no plain text, and for
    `bits` that weights cannot have."""
    if calibration is None:
        if bits is not None:
            raise UserError(f"bits={bits} says how many matrices a calibration keeps in 8 bits: give calibration=FILE, or leave bits out")
        return
    if weights != "int4":
        raise UserError(f"calibration is for weights=int4, got weights={weights}: leave calibration out")
    if bits is not None and not (isinstance(bits, int | float) and FOUR <= bits <= EIGHT):
        raise UserError(f"bits must be {FOUR} to {EIGHT}, what 4 and 8 bits take a weight with their scales, got {bits!r}")
    if isinstance(calibration, str | os.PathLike):
        from ...data.files.sources import READERS, kind_of  # not for those who load without
        from ...data.text.documents import check_text_source

        name = os.fspath(calibration)
        if not Path(name).is_file():
            raise UserError(f"calibration needs a file of plain text, and {name!r} is no file")
        if kind_of(Path(name)) in READERS:
            raise UserError(f"calibration needs a file of plain text, and {name} holds records: write their texts into a .txt file")
        check_text_source(name)
    elif not (isinstance(calibration, Sequence) and all(isinstance(text, str) for text in calibration)):
        raise UserError(f"calibration needs a file of plain text, or a list of texts, got {str(calibration)[:60]}")


def calibration_rows(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, calibration: Calibration) -> Tensor:
    """Return the ids of the first TOKENS tokens of a file of plain text, or of texts, end to end in rows of LENGTH or as long as the model takes: [rows, length].

    Raises UserError for fewer than LEAST tokens, and for ids that the model has no embedding for.
    """
    ids: list[int] = []
    for text in _texts(calibration):
        ids += tokenizer(text)["input_ids"]
        if len(ids) >= TOKENS:
            break
        if tokenizer.eos_token_id is not None:
            ids.append(tokenizer.eos_token_id)
    what = f"{os.fspath(calibration)} has" if isinstance(calibration, str | os.PathLike) else "the texts have"
    if len(ids) < LEAST:
        raise UserError(f"calibration needs {LEAST:,} tokens of text, and {what} {len(ids):,}: give a longer text, or leave calibration out")
    length = min(LENGTH, getattr(model.config, "max_position_embeddings", None) or LENGTH)
    rows = torch.tensor(ids[: min(len(ids), TOKENS) // length * length]).view(-1, length)
    if (most := int(rows.max())) >= (known := model.get_input_embeddings().weight.shape[0]):
        raise UserError(f"calibration: the text has the id {most}, and the model embeddings for {known}: use the model's own tokenizer, or another text")
    return rows


def _texts(calibration: Calibration) -> Iterable[str]:
    if not isinstance(calibration, str | os.PathLike):
        return calibration
    from ...data.text.documents import read_documents

    return (part.text for part in read_documents([os.fspath(calibration)]))
