import json
import tracemalloc

import numpy as np
import pytest

from seodang.data.errors import UserError
from seodang.data.text import documents, store
from seodang.data.text.documents import Part
from seodang.data.text.store import FACTS, TOKENS, TokenStore, text_key, token_store, write_store


@pytest.fixture
def lines(tmp_path):
    (tmp_path / "lines.txt").write_text("The little model\n\n영화가 [MASK] 정말\nThe little model\n", encoding="utf-8")
    return [str(tmp_path / "lines.txt")]


def test_a_store_holds_the_documents_tokens_as_the_tokenizer_makes_them_of_each_alone(text_tokenizer, lines, tmp_path):
    tokenizer = text_tokenizer("wordpiece")
    made, _ = token_store(lines, tokenizer, tmp_path / "cache", documents="line", words=True)
    spans = made.spans()
    found = [made.tokens[a:b].tolist() for a, b in zip(spans, spans[1:])]
    first, second = (tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in ("The little model", "영화가 [MASK] 정말"))
    assert found == [first, second, first]
    assert tokenizer.mask_token_id not in second  # what only looks like a control token is text
    assert made.word_starts[spans[1] : spans[2]].sum() == 5  # 영화가, [, MASK, ], 정말
    assert made.documents[:, store.BYTES].tolist() == [16, 23, 16]
    assert made.counts.lines() == [
        "documents       4 read, 3 kept",
        f"text            45 characters, 55 bytes, {len(sum(found, [])):,} tokens ({55 / len(sum(found, [])):.2f} bytes a token)",
        "empty           1 documents have no tokens, nothing but blanks is in them",
        "warning         1 documents were read before, word for word, kept all the same",
        *([f"unknown         {made.counts.unknown:,} tokens stand for what the tokenizer cannot say ({made.counts.unknown / made.counts.tokens:.2%})"] * bool(made.counts.unknown)),
    ]


def test_a_second_run_reuses_it_and_another_text_tokenizer_or_setting_does_not(text_tokenizer, lines, tmp_path):
    tokenizer, cache = text_tokenizer("wordpiece"), tmp_path / "cache"
    first, was_there = token_store(lines, tokenizer, cache, documents="line")
    again, is_there = token_store(lines, tokenizer, cache, documents="line")
    assert (was_there, is_there) == (False, True) and again.folder == first.folder and again.content == first.content
    tokenizer("x", truncation=True, max_length=2, padding="max_length")  # how it was called last is no part of it
    keys = {
        text_key(lines, tokenizer, documents="line", words=False): None,
        text_key(lines, tokenizer, documents="file", words=False): None,
        text_key(lines, text_tokenizer("bytes"), documents="line", words=False): None,
    }
    assert first.folder.name == f"text-{next(iter(keys))}" and len(keys) == 3
    with open(lines[0], "a") as file:
        file.write("more\n")
    assert token_store(lines, tokenizer, cache, documents="line")[1] is False


def test_what_a_kill_or_a_full_disk_left_is_made_anew(text_tokenizer, lines, tmp_path, monkeypatch):
    tokenizer, cache = text_tokenizer("bytes"), tmp_path / "cache"

    def fails(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store._Writer, "seal", fails)
        with pytest.raises(UserError, match=r"cannot be written in .*cache \(No space left on device\): make room"):
            token_store(lines, tokenizer, cache, documents="line")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
    made, _ = token_store(lines, tokenizer, cache, documents="line")
    tokens = made.tokens.tolist()
    for damage in (lambda: (made.folder / FACTS).unlink(), lambda: (made.folder / FACTS).write_text("{"), lambda: (made.folder / TOKENS).write_bytes(b"\0\0")):
        damage()
        anew, was_there = token_store(lines, tokenizer, cache, documents="line")
        assert not was_there and anew.tokens.tolist() == tokens


def test_a_cache_that_cannot_be_written_is_refused_and_read_where_the_text_is_there(text_tokenizer, lines, tmp_path, monkeypatch):
    tokenizer, cache = text_tokenizer("bytes"), tmp_path / "cache"
    with pytest.raises(UserError, match=r"cannot be written in .*lines.txt \(File exists\): make room, or name another folder, --text_cache"):
        token_store(lines, tokenizer, tmp_path / "lines.txt", documents="line")

    def read_only(path, what):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(store, "alone", read_only)
        with pytest.raises(UserError, match=r"cannot be written in .*cache \(Permission denied\)"):
            token_store(lines, tokenizer, cache, documents="line")
    made, _ = token_store(lines, tokenizer, cache, documents="line")
    monkeypatch.setattr(store, "alone", read_only)
    found, was_there = token_store(lines, tokenizer, cache, documents="line")
    assert was_there and found.tokens.tolist() == made.tokens.tolist()


def test_text_without_text_is_refused(text_tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(UserError, match=r"empty.txt: there is no text, none of the documents \(1\)"):
        token_store([str(tmp_path / "empty.txt")], text_tokenizer("bytes"), tmp_path / "cache")


def test_a_document_in_parts_is_one_document(text_tokenizer, tmp_path, monkeypatch):
    tokenizer, text = text_tokenizer("wordpiece"), "The little model learns.\n" * 9
    (tmp_path / "a.txt").write_text(text)
    whole, _ = token_store([str(tmp_path / "a.txt")], tokenizer, tmp_path / "whole")
    monkeypatch.setattr(documents, "PART", 60)
    parts, _ = token_store([str(tmp_path / "a.txt")], tokenizer, tmp_path / "parts")
    assert parts.counts.in_parts == 1 and whole.counts.in_parts == 0
    assert parts.tokens.tolist() == whole.tokens.tolist() and parts.content == whole.content


def read(count):
    return (Part(f"line {i}", f"어제 본 영화 {i} was little") for i in range(count))


def peak_of(tokenizer, folder, count):
    """The most bytes that Python and numpy held while so many documents were encoded."""
    folder.mkdir()
    tracemalloc.start()
    try:
        write_store(read(count), tokenizer, folder)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_ten_times_the_documents_take_no_more_memory(text_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BATCH", 1 << 12)
    few, many = (peak_of(text_tokenizer("wordpiece"), tmp_path / str(count), count) for count in (400, 4000))
    assert many < 1.3 * few + 4000 * 8  # the digests, sorted at the end, eight bytes a document


@pytest.mark.full
def test_a_million_documents_take_no_more_memory_than_their_numbers(text_tokenizer, tmp_path):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "million").mkdir()
    write_store(read(1_000_000), text_tokenizer("wordpiece"), tmp_path / "million")
    made = TokenStore(tmp_path / "million")
    assert len(made) == 1_000_000 and made.size > 20e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000  # KiB


def test_ids_beyond_two_bytes_are_kept_whole(text_tokenizer, tmp_path, monkeypatch):
    tokenizer = text_tokenizer("wordpiece")
    known = tokenizer.get_vocab()
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: {**known, "far": 70_000})
    made, _ = token_store_of(tokenizer, tmp_path)
    assert json.loads((made.folder / FACTS).read_text())["dtype"] == "uint32" and made.tokens.dtype == np.uint32
    monkeypatch.undo()
    assert token_store_of(tokenizer, tmp_path / "small")[0].tokens.tolist() == made.tokens.tolist()


def token_store_of(tokenizer, folder):
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_text("The little model")
    return token_store([str(folder / "a.txt")], tokenizer, folder / "cache")
