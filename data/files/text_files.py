"""Text files as people have them: compressed or plain, in the encoding that their first bytes name, in UTF-8, or in the one that the user names."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from ..errors import UserError

COMPRESSED = (".gz", ".zst")
BLOCK = 1 << 16  # bytes looked at before a file is read, and as many from where it cannot be decoded
MARKS = [  # byte order marks: who begins with one says what follows; UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
]  # fmt: skip
OTHERS = [  # what begins so is no text, and what to do about it
    (b"PK\x03\x04", "a zip archive: an Excel workbook is read as .xlsx, of another take the files out"),
    (b"\xd0\xcf\x11\xe0", "an old or a protected Excel workbook: save it as .xlsx without a password"),
    (b"\x1f\x8b", "compressed by gzip: end its name in .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: end its name in .zst"),
    (b"PAR1", "a Parquet file: end its name in .parquet"),
]
LIKELY = {"cp949": "Korean Windows and Excel", "cp932": "Japanese", "gb18030": "Chinese", "cp1252": "Western European"}


def lines_of(path: Path, encoding: str | None = None, newline: str | None = None) -> Iterator[str]:
    """The lines of a text file, read as they are asked for.

    A byte order mark decides the encoding, else `encoding` does where the file is not UTF-8. Raises UserError for what is no text, or not in that
    encoding, with those that it looks like and the option that names them; and for a compressed file that is cut short.
    """
    try:
        with _bytes_of(path) as file:
            name = _encoding_of(file.peek(BLOCK)[:BLOCK], path, encoding)
            with io.TextIOWrapper(file, encoding=name, newline=newline) as text:
                yield from text
    except UnicodeError:  # UnicodeDecodeError, and of UTF-16 what is cut in the middle
        raise _undecodable(path, name) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path.name} is cut short or damaged ({error}): fetch or pack it anew") from None
    except OSError as error:
        if path.suffix.lower() == ".zst" and error.strerror is None:  # Arrow's own
            raise UserError(f"{path.name} is cut short or damaged ({error}): fetch or pack it anew") from None
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def checked_encoding(encoding: str) -> str:
    """An encoding's name as Python has it. Raises UserError for one that there is not."""
    try:
        "".encode(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, UnicodeError):
        raise UserError(f"encoding {encoding!r} is not known: cp949 is Korean Windows', others are utf-8, utf-16, cp932, gb18030, cp1252") from None


def _bytes_of(path: Path) -> io.BufferedReader:
    if path.suffix.lower() == ".zst":
        import pyarrow  # takes a while, and few need it

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"), BLOCK)
    return io.BufferedReader(gzip.GzipFile(path) if path.suffix.lower() == ".gz" else path.open("rb", buffering=0), BLOCK)


def _encoding_of(head: bytes, path: Path, encoding: str | None) -> str:
    """The encoding of a file that begins so. Raises UserError for what is no text, and for an encoding that is certainly another."""
    for mark, name in MARKS:
        if head.startswith(mark):
            return name
    if what := next((what for magic, what in OTHERS if head.startswith(magic)), None):
        raise UserError(f"{path.name} is {what}")
    named = checked_encoding(encoding or "utf-8")
    if b"\0" in head and not named.startswith(("utf-16", "utf-32")):
        odd = head[1::2].count(0) > head[::2].count(0)
        guess = f"utf-16-{'le' if odd else 'be'}"
        if head.count(0) > len(head) // 16 and (text := _decoded(head, guess)) is not None:
            raise UserError(f"{path.name} is not {_title(named)} text: {_looks_like([(guess, 'without a byte order mark', text)])}")
        raise UserError(f"{path.name} holds a NUL byte (byte {head.index(0) + 1}), which no text has: it is damaged, or no text file")
    if named != "utf-8" and not named.startswith(("utf-16", "utf-32")):  # of several files some may be UTF-8
        foreign = [letter for letter in _decoded(_foreign_part(path), "utf-8") or "" if not letter.isascii()]
        by_chance = len(foreign) < 4 and all(letter < "\u0800" for letter in foreign)  # two bytes of Korean Windows' may be one of UTF-8's letters
        named = named if by_chance else "utf-8"
    return "utf-8-sig" if named == "utf-8" else named


def _foreign_part(path: Path) -> bytes:
    """A block of a file from its first byte that is not ASCII on; nothing where all are."""
    with _bytes_of(path) as file:
        while block := file.read(BLOCK):
            if not block.isascii():
                return (block + file.read(BLOCK))[next(place for place, byte in enumerate(block) if byte > 127) :]
    return b""


def _undecodable(path: Path, encoding: str) -> UserError:
    """What to say of a file that is not in an encoding: where that shows, and in which others it can be read."""
    title = _title(encoding)
    if encoding.startswith(("utf-16", "utf-32")):
        return UserError(f"{path.name} is not {title} text to its end: it is damaged, or --encoding should name another")
    foreign = False  # whether lines before said something in this encoding
    with _bytes_of(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                foreign |= not line.decode(encoding).isascii()
            except UnicodeDecodeError as error:
                place = f"{path.name} is not {title} text (line {number}, byte {error.start + 1} of it)"
                if foreign and title == "UTF-8":
                    return UserError(f"{place}, though lines before it are: mend that line, or save the whole file as UTF-8")
                return UserError(f"{place}: {_guesses(b''.join(chain([line], islice(lines, 50)))[:BLOCK], encoding)}")
    return UserError(f"{path.name} is not {title} text: save it as UTF-8")


def _guesses(sample: bytes, failed: str) -> str:
    """Which encodings a sample looks like, and how it would begin in them."""
    texts = {name: _decoded(sample, name) for name in LIKELY if name != failed}
    shares = {name: _share(name, text) for name, text in texts.items() if text is not None}
    likely = [name for name, share in shares.items() if share > 0.5]
    likely = [name for name in likely if shares[name] > 0.9 and name != "gb18030"][:1] or likely  # any pair of bytes is some Chinese character
    if not likely:
        return "save it as UTF-8, or name its encoding with --encoding"
    return _looks_like([(name, LIKELY[name], texts[name]) for name in likely[:2]])


def _looks_like(found: Sequence[tuple[str, str, str]]) -> str:
    named = " or ".join(f"{name} ({where}), in which it reads {_snippet(text)}" for name, where, text in found)
    remedy = " or ".join(f"--encoding {name}" for name, _, _ in found)
    return f"it looks like {named}: if that is right, give {remedy}"


def _snippet(text: str) -> str:
    """The first characters for people, from the first line that says something other than ASCII."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    line = next((line for line in lines if not line.isascii()), lines[0])
    first = next((place for place, letter in enumerate(line) if not letter.isascii()), 0)
    return repr(line[max(first - 10, 0) :][:30])


def _decoded(data: bytes, encoding: str) -> str | None:
    """A sample as text, but for a character that its end cuts; None where it is not in the encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeError:
        return None


def _share(encoding: str, text: str) -> float:
    """How much of what is not ASCII is in the script that the encoding is for."""
    others = [letter for letter in text if not letter.isascii()]
    belongs = {
        "cp949": lambda letter: _is_hangul(letter) or letter in "…·‘’“”「」『』《》",
        "cp932": lambda letter: "\u3000" <= letter <= "\u30ff" or (letter >= "\u4e00" and any("\u3040" <= kana <= "\u30ff" for kana in others)),
        "gb18030": lambda letter: "\u3000" <= letter <= "\u9fff" or letter >= "\uff00",
        "cp1252": lambda letter: letter.isalpha() and len(others) < len(text) / 4 or letter in "‘’“”–—…€£§«»°·¿¡\xa0",
    }[encoding]  # fmt: skip
    return sum(map(belongs, others)) / max(len(others), 1)


def _is_hangul(letter: str) -> bool:
    return "\uac00" <= letter <= "\ud7a3"


def _title(encoding: str) -> str:
    return "UTF-8" if encoding.startswith("utf-8") else encoding
