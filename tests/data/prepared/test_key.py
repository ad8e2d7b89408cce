import gzip
import json
from types import SimpleNamespace

from seodang.data.files.sources import source_files
from seodang.data.prepared import key
from seodang.data.prepared.key import bytes_of, rows_key, source_key


def test_a_key_hangs_on_tokenizer_template_and_settings(tiny_tokenizer, byte_tokenizer, monkeypatch):
    known = {rows_key(tiny_tokenizer, max_length=80)}

    def changed(tokenizer, **settings):
        found, new = rows_key(tokenizer, **settings), len(known)
        assert rows_key(tokenizer, **settings) == found
        known.add(found)
        return len(known) == new + 1

    assert not changed(tiny_tokenizer, max_length=80)
    tiny_tokenizer("called with a length that cuts", truncation=True, max_length=3)
    assert not changed(tiny_tokenizer, max_length=80)
    assert changed(tiny_tokenizer, max_length=81)
    assert changed(tiny_tokenizer, max_length=80, train_on="all")
    assert changed(byte_tokenizer(140), max_length=80)
    tiny_tokenizer.chat_template += " "
    assert changed(tiny_tokenizer, max_length=80)
    tiny_tokenizer.eos_token = "<|im_start|>"
    assert changed(tiny_tokenizer, max_length=80)

    def on(day):
        monkeypatch.setattr(key.datetime, "date", SimpleNamespace(today=lambda: day))
        return rows_key(tiny_tokenizer, max_length=80)

    assert on("2026-11-30") == on("2026-12-01")
    tiny_tokenizer.chat_template += "{{ strftime_now('%d %b') }}"
    assert on("2026-11-30") != on("2026-12-01")


def test_a_source_is_known_by_what_it_holds_wherever_it_lies(tmp_path):
    folder, line = tmp_path / "folder", json.dumps({"text": "나무"}) + "\n"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(line)
    (folder / "c.jsonl").write_text(line)
    a, b = str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")
    assert source_key([a]) == source_key([b]) == source_key([str(folder)]) == source_key([str(tmp_path / "a*")])
    (folder / "d.jsonl").write_text(line)
    others = [[a], [a, b], [str(folder)], ["owner/name"], ["owner/other"]]
    assert len({source_key(each) for each in others}) == 5
    assert source_files(str(folder)) == [folder / "c.jsonl", folder / "d.jsonl"] and bytes_of([str(folder), a, "owner/name"]) == 3 * len(line.encode())
    before = source_key([a])
    (tmp_path / "a.jsonl").write_text(line.replace(" ", "  "))
    assert source_key([a]) != before
    (tmp_path / "a.json").write_text(line)
    assert source_key([str(tmp_path / "a.json")]) != before  # the same bytes, read otherwise
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line.encode()))
    assert source_files(str(tmp_path / "a.jsonl.gz")) == [tmp_path / "a.jsonl.gz"] and source_files(str(tmp_path / "none*")) == []
