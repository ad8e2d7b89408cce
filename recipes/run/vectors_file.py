"""A file of vectors that grows a block at a time: .npy, .safetensors (one tensor, "vectors") or .jsonl, and can be gone on with.

It is written beside its place, as NAME.partial, whose head says what it is made of; whole, it gets its name. The head of an array has a fixed
length, and how many rows there are is written into it at the end.
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from seodang.data.errors import UserError
from seodang.recipes.run.one_writer import refuse_second_writer

KINDS = (".npy", ".safetensors", ".jsonl")
HEAD = 256  # bytes before the first row of an array
RESUME = "--resume goes on from there, --resume false begins anew"


class VectorsFile:
    """A file of vectors of `size` numbers in float32, made as `identity` says; a context manager.

    `done` is how many rows are there from an interrupted run that is gone on with (`resume` True); with None such a run is refused rather than lost,
    and with False it is. Raises UserError for another kind of file, for another run's rows, and where another process is writing.
    """

    def __init__(self, path: str, size: int, identity: Mapping[str, Any], resume: bool | None):
        self.path, self.size, self._identity = Path(path), size, json.loads(json.dumps(dict(identity)))
        kind(path)
        self._partial, self._note = (self.path.with_name(f"{self.path.name}.{end}") for end in ("partial", "partial.json"))
        self._row = None if self.path.suffix == ".jsonl" else 4 * size
        self.done = self._to_go_on_with(resume)
        self._file: BinaryIO = self._partial.open("r+b" if self.done else "wb")
        try:
            refuse_second_writer(self._file.fileno(), self._partial, "name another --output")
            self._note.write_text(json.dumps(self._identity, ensure_ascii=False), encoding="utf-8")
            self._begin()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "VectorsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self.done:  # nothing that could be gone on with
            self._partial.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)

    def write(self, vectors: Tensor, places: Sequence[str]) -> None:
        """Write the vectors of some more texts, [n, size], in a file of lines each with the place of its record."""
        if self._row is None:
            lines = ({"record": place, "vector": vector} for place, vector in zip(places, vectors.tolist(), strict=True))
            self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
        else:
            self._file.write(vectors.float().contiguous().numpy().astype("<f4").tobytes())
        self._file.flush()
        self.done += len(vectors)

    def finish(self) -> None:
        """Say that all rows are there: the file gets its name."""
        if self._row is not None:
            self._file.seek(0)
            self._file.write(head(self.path.suffix, self.done, self.size))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self.path)
        self._note.unlink()

    def _to_go_on_with(self, resume: bool | None) -> int:
        """How many rows of an interrupted run stay."""
        there = self._partial.is_file() and self._note.is_file()
        if resume and not there:
            raise UserError(f"resume: there is no {self._partial.name} that could be gone on with: leave --resume out")
        if not there or resume is False:
            return 0
        if resume is None:
            raise UserError(f"{self._partial} holds the rows of a run that was interrupted: {RESUME}, over them")
        then = json.loads(self._note.read_text(encoding="utf-8"))
        if different := [name for name in self._identity if then.get(name) != self._identity[name]]:
            name = different[0]
            raise UserError(f"{self._partial} was made with {name} {then.get(name)}, now {self._identity[name]}: use the same, or --resume false begins anew")
        if self._row is not None:
            return max(0, self._partial.stat().st_size - HEAD) // self._row
        with open(self._partial, "rb") as file:
            return sum(line.endswith(b"\n") for line in file)

    def _begin(self) -> None:
        """Have the file end where its last whole row does."""
        if self._row is not None:
            if not self.done:
                self._file.write(head(self.path.suffix, 0, self.size))
            end = HEAD + self.done * self._row
        else:
            end = 0
            for _ in range(self.done):
                end += len(self._file.readline())
        self._file.truncate(end)
        self._file.seek(end)


def kind(path: str) -> str:
    """The ending of a file of vectors; raises UserError for one that is none."""
    ending = Path(path).suffix
    if ending not in KINDS:
        raise UserError(f"output {path}: vectors are written to {', '.join(KINDS[:-1])} or {KINDS[-1]}, choose one of these endings")
    return ending


def head(ending: str, rows: int, size: int) -> bytes:
    """What an array of so many rows in float32 begins with, `HEAD` bytes."""
    if ending == ".npy":  # version 1.0 of the format
        told = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {size}), }}"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", HEAD - 10) + told.ljust(HEAD - 11).encode() + b"\n"
    told = json.dumps({"vectors": {"dtype": "F32", "shape": [rows, size], "data_offsets": [0, 4 * rows * size]}})
    return struct.pack("<Q", HEAD - 8) + told.ljust(HEAD - 8).encode()
