"""Read a GGUF file, apart from the package that writes it: what it says, and its tensors."""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from ...data.errors import UserError

NUMBERS = dict(enumerate("BbHhIif?", 0)) | {10: "Q", 11: "q", 12: "d"}  # by the type's number in the file
STRING, ARRAY = 8, 9
ALIGNMENT = 32
VERSIONS = (2, 3)
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # what a file has room for of tokens that end a text
REMEDY = "fetch or write it again"


class Held(NamedTuple):
    """Where a tensor lies, from the file's beginning, and how it is kept."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    begin: int

    @property
    def row(self) -> int:
        """The bytes of a row."""
        block, size = GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // block * size

    @property
    def end(self) -> int:
        """Where it ends in the file."""
        return self.begin + prod(self.shape[:-1]) * self.row


class GgufFile:
    """A GGUF file: `values` is what it says, by key; its tensors are mapped into memory, and read where they are asked for.

    Raises UserError for what is no GGUF file of this byte order, and for one that is damaged, cut short or a part of a whole.
    """

    def __init__(self, path: Path):
        self.path, self.values = path, {}
        if path.stat().st_size < 24:
            raise UserError(f"{path} is no GGUF file: {REMEDY}")
        self._bytes = np.memmap(path, np.uint8, "c")
        self._held = self._read_header(_Cursor(memoryview(self._bytes)))
        if (parts := self.values.get("split.count", 1)) > 1:
            raise UserError(f"{path} is one of {parts} parts of a model: join them first, `llama-gguf-split --merge FIRST_PART WHOLE.gguf`")
        if (end := max((held.end for held in self._held.values()), default=0)) > len(self._bytes):
            raise UserError(f"{path} is cut short, it has {len(self._bytes):,} bytes of {end:,}: {REMEDY}")

    def _read_header(self, at: _Cursor) -> dict[str, Held]:
        magic, version, tensors, values = at.take("4sIQQ")
        if magic != b"GGUF":
            raise UserError(f"{self.path} is no GGUF file: {REMEDY}")
        if version not in VERSIONS:
            swapped = int.from_bytes(struct.pack("<I", version), "big") in VERSIONS
            what = "big-endian: write it again without --bigendian" if swapped else f"of version {version}, only 2 and 3 are read: write it again by a newer llama.cpp"
            raise UserError(f"{self.path} is {what}")
        try:
            for _ in range(values):
                key = at.string()
                self.values[key] = at.value(*at.take("I"))
            table = []
            for _ in range(tensors):
                name = at.string()
                shape = at.take(f"{at.take('I')[0]}Q")[::-1]
                table.append((name, shape, GGMLQuantizationType(at.take("I")[0]), at.take("Q")[0]))
            alignment = self.values.get("general.alignment", ALIGNMENT)
            begin = -(-at.place // alignment) * alignment
        except (struct.error, OverflowError, MemoryError, KeyError, ValueError, TypeError, ZeroDivisionError) as error:
            raise UserError(f"{self.path} is damaged or cut short, its header cannot be read ({error}): {REMEDY}") from None
        for name, shape, kind, _ in table:
            if not shape or shape[-1] % GGML_QUANT_SIZES[kind][0]:
                raise UserError(f"{self.path} is damaged, {name} of the shape {list(shape)} is no whole number of {kind.name}'s blocks: {REMEDY}")
        return {name: Held(shape, kind, begin + offset) for name, shape, kind, offset in table}

    @property
    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._held)

    def kind(self, name: str) -> GGMLQuantizationType:
        """Return in what a tensor is kept."""
        return self._held[name].kind

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._held[name].shape

    def blocks(self, name: str) -> np.ndarray:
        """Return a tensor as it is kept, uint8 [..., bytes of a row], without a copy."""
        held = self._held[name]
        return self._bytes[held.begin : held.end].reshape(*held.shape[:-1], held.row)

    def tensor(self, name: str) -> np.ndarray:
        """Return a tensor in float32, of its shape."""
        return quants.dequantize(np.asarray(self.blocks(name)), self.kind(name)).reshape(self.shape(name))


class _Cursor:
    """A place in a file's bytes, which moves on with what is read."""

    def __init__(self, held: memoryview):
        self.held, self.place = held, 0

    def take(self, form: str) -> tuple:
        found = struct.unpack_from("<" + form, self.held, self.place)
        self.place += struct.calcsize("<" + form)
        return found

    def string(self) -> str:
        (length,) = self.take("Q")
        end = self.place + length
        if end > len(self.held):
            raise struct.error(f"a text of {length} bytes")
        text = bytes(self.held[self.place : end]).decode()
        self.place = end
        return text

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.take(NUMBERS[kind])[0]
        inner, count = self.take("IQ")
        if inner in NUMBERS:
            return list(self.take(f"{count}{NUMBERS[inner]}"))
        return [self.value(inner) for _ in range(count)]
