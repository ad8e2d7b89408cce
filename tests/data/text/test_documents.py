import gzip
import json

import pytest

from seodang.data.errors import UserError
from seodang.data.text import documents as module
from seodang.data.text.documents import check_text_source, read_documents


def texts(*names, **reading):
    return [(part.where, part.text) for part in read_documents([str(name) for name in names], **reading)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b.txt").write_bytes("둘째 글\r\n\r\n\r\n  \nline two\nline three\n\n".encode())
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": 1}\n{"text": null}\n', encoding="utf-8")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.txt.gz").write_bytes(gzip.compress("셋".encode("utf-16")))
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "notes.rst").write_text("not of the folder's kinds")
    return tmp_path


def test_a_folder_gives_each_file_in_order_whatever_kind_it_is(folder):
    whole = "둘째 글\n\n\n  \nline two\nline three\n\n"
    assert texts(folder) == [("a.jsonl line 1", "one"), ("a.jsonl line 2", ""), ("b.txt", whole), ("c.txt.gz", "셋")]


def test_plain_text_is_parted_by_lines_or_by_blank_lines(folder):
    lines = [("b.txt line 1", "둘째 글"), ("b.txt line 2", ""), ("b.txt line 3", ""), ("b.txt line 4", "  ")]
    lines += [("b.txt line 5", "line two"), ("b.txt line 6", "line three"), ("b.txt line 7", "")]
    assert texts(folder / "b.txt", documents="line") == lines
    assert texts(folder / "b.txt", documents="paragraph") == [("b.txt line 1", "둘째 글"), ("b.txt line 5", "line two\nline three")]


def test_a_file_that_is_named_is_text_whatever_its_ending(folder):
    assert texts(folder / "notes.rst") == texts(folder / "*.rst") == [("notes.rst", "not of the folder's kinds")]


def test_columns_name_what_holds_the_text_and_may_join_several(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,completion\n안녕,반가워\n", encoding="utf-8")
    assert texts(tmp_path / "t.csv", columns={"text": "completion"}) == [("t.csv line 2", "반가워")]
    assert texts(tmp_path / "t.csv", columns={"text": "prompt+completion"}) == [("t.csv line 2", "안녕\n반가워")]
    with pytest.raises(UserError, match=r"line 2 has no column 'text', only prompt, completion: .* --columns text=completion$"):
        texts(tmp_path / "t.csv")
    (tmp_path / "numbered.csv").write_text("id,review\n1,반가워\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"only id, review: .* --columns text=review$"):
        texts(tmp_path / "numbered.csv")
    with pytest.raises(UserError, match="plain text has the key text alone"):
        texts(tmp_path / "t.csv", columns={"prompt": "a"})


def test_a_long_document_comes_in_parts_that_join_to_it_cut_where_a_line_or_a_word_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 10)
    text = "ab cd\nefgh ijkl mnopqrstuvwxyz\n\nend"
    (tmp_path / "t.txt").write_text(text)
    parts = list(read_documents([str(tmp_path / "t.txt")]))
    assert "".join(part.text for part in parts) == text
    assert [part.text for part in parts] == ["ab cd\n", "efgh ijkl", " mnopqrstu", "vwxyz\n\nend"]
    assert [part.goes_on for part in parts] == [True] * (len(parts) - 1) + [False]
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": text}))
    assert [part.text for part in read_documents([str(tmp_path / "t.jsonl")])] == [part.text for part in parts]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" * 9, "no text file|is not UTF-8"),
        ("a.txt", "가".encode("cp949") * 40, "--encoding cp949"),
        ("late.txt", b"text\n" * 20_000 + b"\0\0\n", "line 20001 holds a NUL byte"),
        ("a.jsonl", b'{"text": 3}\n', "text holds int, not a text"),
        ("a.jsonl", b"[1]\n", "a record must be a text or hold one, got list"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "lone surrogate"),
        ("a.zip", b"PK\3\4", "take the files out"),
    ],
)
def test_what_is_no_text_is_refused_by_its_place(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says):
        texts(tmp_path / name)


def test_sources_that_are_not_there_are_refused_at_once(tmp_path):
    (tmp_path / "empty").mkdir()
    for name, says in ((tmp_path / "no.txt", "no file or folder"), (tmp_path / "empty", "holds no .txt"), (tmp_path / "*.log", "no file matches")):
        with pytest.raises(UserError, match=says):
            check_text_source(str(name))
    (tmp_path / "bad.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    with pytest.raises(UserError, match="is not UTF-8 text|no text file"):
        check_text_source(str(tmp_path / "bad.txt"))
    with pytest.raises(UserError, match="documents must be file, line or paragraph, got 'word'"):
        texts(tmp_path, documents="word")
