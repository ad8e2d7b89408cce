"""The tokens of documents on disk, mapped into memory: encoded once, whole or not there, and read by any number of runs and processes."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..files.lock import alone
from ..literal import literal_encodings
from ..surrogates import refuse_surrogates
from .counts import TextCounts
from .documents import Part, digest_number, new_digest, read_documents, text_files
from .word_starts import word_starts

FORMAT = 1  # of the files; another number encodes anew
BATCH = 1 << 18  # characters encoded at a time
TOKENS, STARTS, DOCUMENTS, FACTS = "tokens.bin", "word_starts.bin", "documents.bin", "facts.json"
END, BYTES, DIGEST = range(3)  # columns of a document: where its tokens end, its bytes in UTF-8, what tells its text from others


class TokenStore:
    """The tokens of documents in a folder, read from disk where they are asked for."""

    def __init__(self, folder: Path):
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.folder, self.counts, self.content = folder, TextCounts(**facts["counts"]), facts["content"]
        self.highest: int = facts["highest"]  # of all ids
        self.documents = _mapped(folder / DOCUMENTS, np.int64).reshape(-1, 3)
        self.tokens = _mapped(folder / TOKENS, np.dtype(facts["dtype"]))
        self.word_starts = _mapped(folder / STARTS, np.bool_) if (folder / STARTS).is_file() else None
        self.size = sum((folder / name).stat().st_size for name in (TOKENS, STARTS, DOCUMENTS) if (folder / name).is_file())

    def __len__(self) -> int:
        return len(self.documents)

    def spans(self) -> np.ndarray:
        """Where each document's tokens begin, and at last where the last one's end: [documents + 1]."""
        return np.append(0, self.documents[:, END])


def token_store(
    sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, cache: Path, *, words: bool = False, **reading: Any
) -> tuple[TokenStore, bool]:
    """The tokens of the documents that `read_documents` reads from the sources, with where words begin if `words`; and whether they were there already.

    They lie in a folder of `cache` that is named by what the files hold, the tokenizer and the settings: where it stands it is used, else it is
    written aside and renamed. One process writes, others wait for it. Memory does not grow with the text. Raises UserError for no text at all,
    for what `read_documents` refuses, and where nothing can be written.
    """
    key = text_key(sources, tokenizer, words=words, **reading)
    folder = cache / f"text-{key}"
    if found := _complete(folder):  # also where nothing may be written, and no lock laid
        return found, True
    with contextlib.ExitStack() as held:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            sign = held.enter_context(alone(cache / f"text-{key}.lock", "encoding the text"))
        except OSError as error:
            raise _unwritten(cache, error) from None
        if found := _complete(folder):  # by another process, meanwhile
            return found, True
        aside = cache / f"text-{key}.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            write_store(_signed(read_documents(sources, **reading), sign), tokenizer, aside, words=words, names=", ".join(map(str, sources)))
            shutil.rmtree(folder, ignore_errors=True)  # one that is damaged
            aside.rename(folder)
        except OSError as error:
            raise _unwritten(cache, error) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return TokenStore(folder), False


def _signed(documents: Iterable[Part], sign: Callable[[], None]) -> Iterator[Part]:
    """The documents, each of them a sign for those who wait."""
    for part in documents:
        sign()
        yield part


def _unwritten(cache: Path, error: OSError) -> UserError:
    return UserError(f"the encoded text cannot be written in {cache} ({error.strerror or error}): make room, or name another folder, --text_cache")


def text_key(sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    """Sixteen hexadecimal digits that tell what files hold, the tokenizer and the settings from others; datasets on the hub are known by their names."""
    told = hashlib.sha256(json.dumps([FORMAT, tokenizer_digest(tokenizer), settings], sort_keys=True).encode())
    for name in sources:
        for file in text_files(name) or [Path(os.path.expanduser(name.partition("#")[0]))]:
            told.update(f"\0{file.name}\0{name.partition('#')[2]}\0".encode(errors="surrogateescape"))
            if file.is_file():
                with file.open("rb") as opened:
                    told.update(hashlib.file_digest(opened, "sha256").digest())
    return told.hexdigest()[:16]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Sixteen hexadecimal digits that tell a tokenizer from others that make other tokens of a text."""
    if tokenizer.is_fast:
        says = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}  # how it was called last
    else:
        says = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), repr(tokenizer.init_kwargs)]
    return hashlib.sha256(json.dumps(says, sort_keys=True).encode(errors="surrogatepass")).hexdigest()[:16]


def write_store(documents: Iterable[Part], tokenizer: PreTrainedTokenizerBase, folder: Path, *, words: bool = False, names: str = "the data") -> None:
    """Encode documents into a folder, the facts last. Raises UserError where none has a text."""
    writer = _Writer(tokenizer, folder, words)
    with writer:
        for batch in _batches(documents):
            writer.add(batch)
    writer.counts.refuse_empty(names)
    writer.seal()


class _Writer(contextlib.ExitStack):
    """Takes batches of documents' parts, in order."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: Path, words: bool):
        super().__init__()
        self.tokenizer, self.folder, self.counts = tokenizer, folder, TextCounts()
        self.dtype = np.dtype(np.uint16 if max(tokenizer.get_vocab().values()) < 1 << 16 else np.uint32)
        self.tokens = self._open(TOKENS)
        self.starts = self._open(STARTS) if words else None
        self.table = self._open(DOCUMENTS)
        self.content, self.highest = hashlib.sha256(), 0
        self._begin()

    def _open(self, name: str) -> BinaryIO:
        return self.enter_context((self.folder / name).open("wb"))

    def _begin(self) -> None:
        """Begin a document: what is known of the one that is being read."""
        self.parts, self.of_document, self.digest = 0, TextCounts(), new_digest()

    def add(self, batch: list[Part]) -> None:
        """Encode and write some parts."""
        for part, (ids, starts) in zip(batch, self._encoded([part.text for part in batch]), strict=True):
            self.parts += 1
            self.digest.update(data := part.text.encode())
            blank = not part.text.strip()
            if not (blank and self.parts == 1 and not part.goes_on):
                self._keep(ids, starts, part.text, len(data))
            if not part.goes_on:
                self._end()

    def _encoded(self, texts: list[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        words = self.starts is not None
        if not self.tokenizer.is_fast and not words:
            ids = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
            return ((np.array(each, dtype=np.int64), np.zeros(0, dtype=bool)) for each in ids)
        encodings = literal_encodings(self.tokenizer, texts, offsets=words)
        nothing = np.zeros(0, dtype=bool)
        return (
            (np.array(each.ids, dtype=np.int64), word_starts(each, text) if words else nothing) for each, text in zip(encodings, texts, strict=True)
        )

    def _keep(self, ids: np.ndarray, starts: np.ndarray, text: str, size: int) -> None:
        data = ids.astype(self.dtype).tobytes()
        self.tokens.write(data)
        self.content.update(data)
        if self.starts is not None:
            self.starts.write(starts.tobytes())
        self.highest = max(self.highest, int(ids.max(initial=0)))
        of = self.of_document
        of.characters, of.bytes, of.tokens = of.characters + len(text), of.bytes + size, of.tokens + len(ids)
        if (unknown := self.tokenizer.unk_token_id) is not None:
            of.unknown += int((ids == unknown).sum())

    def _end(self) -> None:
        counts, of = self.counts, self.of_document
        counts.documents += 1
        if of.tokens:
            for name in ("characters", "bytes", "tokens", "unknown"):
                setattr(counts, name, getattr(counts, name) + getattr(of, name))
            counts.in_parts += self.parts > 1
            digest = digest_number(self.digest)
            row = np.array([counts.tokens, of.bytes, digest], dtype=np.int64).tobytes()
            self.table.write(row)
            self.content.update(row)
        else:
            counts.empty += 1
        self._begin()

    def seal(self) -> None:
        """Write what all of it comes to; with this the folder is complete."""
        digests = np.sort(_mapped(self.folder / DOCUMENTS, np.int64).reshape(-1, 3)[:, DIGEST])
        self.counts.doubled = int((digests[1:] == digests[:-1]).sum())
        sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
        facts = {
            "counts": self.counts.as_dict(), "content": self.content.hexdigest()[:16], "dtype": self.dtype.name, "highest": self.highest, "sizes": sizes,
        }  # fmt: skip
        for path in self.folder.iterdir():
            _flush(path)
        (self.folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
        _flush(self.folder / FACTS)


def _batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Parts, as many at a time as come to BATCH characters, and no more than a few thousand."""
    batch, size = [], 0
    for part in parts:
        refuse_surrogates(part.text, part.where)
        batch.append(part)
        size += len(part.text)
        if size >= BATCH or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _complete(folder: Path) -> TokenStore | None:
    """The store in a folder; None where there is none, or files of it are missing or cut short."""
    try:
        sizes = json.loads((folder / FACTS).read_text(encoding="utf-8"))["sizes"]
        return TokenStore(folder) if all((folder / name).stat().st_size == size for name, size in sizes.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
