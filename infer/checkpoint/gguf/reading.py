"""Read a GGUF file, apart from the package that writes it: what it says, and its tensors."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from .vocabulary import Vocabulary

NUMBERS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}  # by the type's number in the file
STRING, ARRAY = 8, 9
ALIGNMENT = 32


class GgufFile:
    """A GGUF file: `values` is what it says, by key; its tensors are read one by one."""

    def __init__(self, path: Path):
        self.path, self.values, self._tensors = path, {}, {}
        with path.open("rb") as file:
            magic, _, tensors, values = struct.unpack("<4sIQQ", file.read(24))
            if magic != b"GGUF":
                raise ValueError(f"{path} is no GGUF file")
            for _ in range(values):
                key = _string(file)
                self.values[key] = _value(file, _number(file, "I"))
            for _ in range(tensors):
                name = _string(file)
                shape = [_number(file, "Q") for _ in range(_number(file, "I"))][::-1]
                self._tensors[name] = shape, GGMLQuantizationType(_number(file, "I")), _number(file, "Q")
            self._begin = -(-file.tell() // ALIGNMENT) * ALIGNMENT

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._tensors)

    def kind(self, name: str) -> GGMLQuantizationType:
        """Return in what a tensor is kept."""
        return self._tensors[name][1]

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor in float32, of its shape."""
        shape, kind, offset = self._tensors[name]
        block, size = GGML_QUANT_SIZES[kind]
        rows = (*shape[:-1], shape[-1] // block * size)
        held = np.fromfile(self.path, np.uint8, int(np.prod(rows)), offset=self._begin + offset)
        return quants.dequantize(held.reshape(rows), kind).reshape(shape)

    def vocabulary(self) -> Vocabulary:
        """Return the tokenizer."""
        told = {key.removeprefix("tokenizer.ggml."): value for key, value in self.values.items()}
        return Vocabulary(
            kind=told["model"], tokens=told["tokens"], types=told["token_type"], add_bos=told["add_bos_token"], add_eos=told["add_eos_token"],
            ids={name: value for name, value in told.items() if name.endswith("token_id")}, pre=told["pre"], merges=told.get("merges"),
            scores=told.get("scores"), add_space=told["add_space_prefix"], template=told.get("tokenizer.chat_template"),
        )  # fmt: skip


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack("<" + form, file.read(struct.calcsize("<" + form)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode()


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _string(file)
    if kind != ARRAY:
        return _number(file, NUMBERS[kind])
    inner, count = _number(file, "I"), _number(file, "Q")
    if inner in NUMBERS:
        form = f"<{count}{NUMBERS[inner]}"
        return list(struct.unpack(form, file.read(struct.calcsize(form))))
    return [_value(file, inner) for _ in range(count)]
