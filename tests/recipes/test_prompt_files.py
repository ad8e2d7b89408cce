"""Files of prompts of `seodang generate` that are tables, packed, or in other encodings."""

import gzip

import pytest

from seodang.data.errors import UserError
from seodang.recipes.prompts.prompt_files import Prompts, Reading, read_prompts


def test_prompts_are_read_from_tables_and_packed_files_in_other_encodings_and_columns(tmp_path):
    (tmp_path / "a.csv").write_bytes("질문,답변\n수원은?,한국\n부산은?,\n".encode("cp949"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress('{"물음말": "수원은?"}\n\n{"물음말": "부산은?"}\n'.encode()))
    (tmp_path / "c.txt").write_bytes("수원은?\n부산은?".encode("utf-16"))
    asked = ["수원은?", "부산은?"]
    assert read_prompts([str(tmp_path / "a.csv")], True, "cp949") == Prompts(asked, [1, 2], "record")
    assert read_prompts([str(tmp_path / "b.jsonl.gz")], True, columns={"prompt": "물음말"}) == Prompts(asked, [1, 2], "record")
    assert read_prompts([str(tmp_path / "c.txt")], True) == Prompts(asked, [1, 2], "line")
    with pytest.raises(UserError, match="there is no column '물음' among 물음말: did you mean prompt=물음말?"):
        read_prompts([str(tmp_path / "b.jsonl.gz")], True, columns={"prompt": "물음"})
    assert read_prompts(["Say a.csv"], True) == Prompts(["Say a.csv"], [1])  # no file of that name
    for text in ("Say " * 80 + "a.csv", "~nobody-of-that-name says a.csv"):  # nor can there be one
        assert read_prompts([text], True) == Prompts([text], [1])
    with pytest.raises(UserError, match=f"prompts {tmp_path} is a folder: name a file in it"):
        read_prompts([str(tmp_path)], True)


def test_references_are_read_from_the_columns_that_mean_them(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("질문,답변,gold\n수원은?,한국,Korea\n부산은?,,Busan\n나?,너,\n", encoding="utf-8")
    assert read_prompts([str(path)], True, reading=Reading(True, references=True)).references == {0: "한국", 2: "너"}
    assert read_prompts([str(path)], True, columns={"answer": "gold"}, reading=Reading(True, references=True)).references == {0: "Korea", 1: "Busan"}
    assert read_prompts([str(path)], True).references == {}
    path.write_text("translation\n\"{\"\"ko\"\": \"\"나\"\", \"\"en\"\": \"\"I\"\"}\"\n", encoding="utf-8")
    found = read_prompts([str(path)], False, reading=Reading(references=True, source_lang="ko", target_lang="en"))
    assert (found.prompts, found.references, found.sources, found.translated) == ([[{"role": "user", "content": "나"}]], {0: "I"}, {0}, True)
    with pytest.raises(UserError, match="a.csv line 2: translation holds ko, en: say which is read and which is written"):
        read_prompts([str(path)], False)
