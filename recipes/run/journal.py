"""What lies beside a results file: a line that says what its run was asked, and answers that wait for their turn."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from seodang.data.errors import UserError
from seodang.infer.checkpoint.manifest import flush_to_disk

FORMAT = "answers of seodang generate"
HEADER = {"options": dict, "prompts": int, "fingerprint": str, "answers_each": int}
LEAST_DEAD = 1000  # lines that are no longer waited for, before the file is written anew without them


class Journal(MutableMapping[int, bytes]):
    """Lines by the places of their answers, kept in a file: in memory there is but where each begins.

    A line that is taken out stays in the file until it is written anew, before which `moved` is called: what was taken must be on the disk elsewhere.
    `header` is what the file's first line says, None where there is no file. Raises UserError for a file of that name that is something else.
    """

    def __init__(self, path: Path, moved: Callable[[], Any]):
        self.path, self.header, self._moved = path, None, moved
        self.places: dict[int, int] = {}  # the offset of each line
        self._file: BinaryIO | None = None  # to write at its end
        self._size = self._dead = 0
        self.reader: BinaryIO | None = None
        if path.exists():
            with writing(path):
                self.reader = path.open("rb")
            self.header = header_in(self.reader.readline())
            if self.header is None:
                raise UserError(f"{path} would say what is asked for the file beside it, and is something else: move it away, or name another --output")

    def scan(self, place: Callable[[bytes, str], int | None]) -> None:
        """Find what is in the file; `place` tells the place of a line's answer, and is told where the line stands."""
        for number, (offset, line) in enumerate(self.lines(), 2):
            if (found := place(line, f"{self.path} line {number}")) is not None:
                self.places[found] = offset

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Each whole line behind the first, with its offset."""
        if self.reader is not None:
            self.reader.seek(0)
            yield from lines_in(self.reader, len(self.reader.readline()))

    def begin(self, header: Mapping[str, Any], kept: Mapping[int, tuple[BinaryIO, int]], before: Callable[[], Any] = lambda: None) -> None:
        """Write the file anew, as one step: with this header, and of other files, or of what it was, the lines that begin there.

        `before` is called when it is sure that there will be a file. Raises UserError where there cannot be one: nothing has changed then.
        """
        partial, places = partial_of(self.path), {}
        with writing(self.path):
            with partial.open("wb") as file:
                size = file.write(json.dumps({"format": FORMAT, **header}, ensure_ascii=False).encode() + b"\n")
                for place, (source, offset) in kept.items():
                    places[place] = size
                    size += file.write(line_at(source, offset))
                file.flush()
                os.fsync(file.fileno())
            before()
            partial.replace(self.path)
            flush_to_disk(self.path.parent)
            self.close()
            self.header, self.places, self._size, self._dead = dict(header), places, size, 0
            self._file, self.reader = self.path.open("ab", buffering=0), self.path.open("rb")

    def sync(self) -> None:
        """Have the system put on the disk what was written."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what is in it stays."""
        for file in filter(None, (self._file, self.reader)):
            file.close()

    def __setitem__(self, place: int, line: bytes) -> None:
        if self._dead > max(LEAST_DEAD, len(self.places)):
            self._moved()
            self.begin(self.header, {each: (self.reader, offset) for each, offset in self.places.items()})
        self.places[place] = self._size
        self._size += append(self._file, self._size, line, self.path)

    def __getitem__(self, place: int) -> bytes:
        return line_at(self.reader, self.places[place])

    def __delitem__(self, place: int) -> None:
        del self.places[place]
        self._dead += 1

    def __contains__(self, place: object) -> bool:
        return place in self.places

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def header_in(line: bytes) -> dict[str, Any] | None:
    """What a first line says; None where it is none of ours."""
    try:
        header = json.loads(line)
        ours = header.pop("format") == FORMAT and all(isinstance(header[name], kind) for name, kind in HEADER.items())
        return header if ours else None
    except (ValueError, TypeError, AttributeError, KeyError):
        return None


def partial_of(path: Path) -> Path:
    """Where a journal is written before it has its name."""
    return path.with_name(f"{path.name}.partial")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a UserError in place of what a disk, a folder or a file's owner does not allow."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written any further ({error.strerror}): mend that, and go on with --resume") from None


def lines_in(file: BinaryIO, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each line of a file, and where it begins; not the last where it was cut short."""
    file.seek(start)
    for line in file:
        if line.endswith(b"\n"):
            yield start, line
        start += len(line)


def line_at(file: BinaryIO, offset: int) -> bytes:
    """The line that begins there."""
    file.seek(offset)
    return file.readline()


def write_whole(file: BinaryIO, line: bytes) -> None:
    """Write a line, of which the system may take a part at a time."""
    while line:
        line = line[os.write(file.fileno(), line) :]


def append(file: BinaryIO, size: int, line: bytes, path: Path) -> int:
    """Write a line at the end of a file of so many bytes, whole or not at all; return how many it has. Raises UserError where it cannot be written."""
    with writing(path):
        try:
            write_whole(file, line)
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise
    return len(line)
