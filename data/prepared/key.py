"""What rows hang on, in a few digits: records, tokenizer, template and settings."""

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..files.sources import kind_of, source_files
from ..text.store import tokenizer_digest
from ..versions import installed_version


def rows_key(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    """Sixteen hexadecimal digits that tell a tokenizer, its template, settings and the versions that make rows from others; a template that asks for the date hangs on it."""
    template = tokenizer.chat_template
    today = str(datetime.date.today()) if "strftime_now" in json.dumps(template) else None
    made_by = [installed_version(name) for name in ("seodang", "transformers", "tokenizers")]
    told = [made_by, tokenizer_digest(tokenizer), template, tokenizer.special_tokens_map, sorted(tokenizer.all_special_ids), today, settings]
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode(errors="surrogatepass")).hexdigest()[:16]


def source_key(sources: Iterable[str]) -> str:
    """Sixteen hexadecimal digits that tell what sources hold: of files their bytes and kind, whatever they are called; a dataset on the hub is known by its name."""
    told = hashlib.sha256()
    for name in sources:
        files = source_files(name)
        told.update(f"\0{len(files)}\0{'' if files else name}\0{name.partition('#')[2]}\0".encode(errors="surrogateescape"))
        for file in files:
            with file.open("rb") as opened:
                told.update(f"\0{kind_of(file)}\0".encode() + hashlib.file_digest(opened, "sha256").digest())
    return told.hexdigest()[:16]


def bytes_of(sources: Iterable[str]) -> int:
    """How many bytes the files of some sources have together; a dataset on the hub has none here."""
    return sum(file.stat().st_size for name in sources for file in source_files(name))


def state_of(sources: Iterable[str]) -> Mapping[Path, tuple[int, int]]:
    """Of each file its bytes and when it was changed last: what is compared where a file might be written while it is read."""
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for name in sources for file in source_files(name)}
