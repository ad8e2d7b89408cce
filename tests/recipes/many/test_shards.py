"""Shards on the disk: the prompts in them are those that one process reads, and a file is whole or not there."""

import json
import os

import pytest

from seodang.data.errors import UserError
from seodang.recipes.many.shards import Facts, Shard, Shards, prompts_in
from seodang.recipes.prompts.prompt_files import Asked, Prompts, Reading, read_prompts, stream_prompts
from seodang.recipes.run.same_run import prompts_fingerprint

JSONL = [
    {"prompt": "so be it", "answer": "be"},
    {"instruction": "Translate.", "input": "나무\u2028", "output": "tree"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    "Say hi",
    {"prompt": "go on", "prefix": "It was"},
    {"source": "so be it\r\n", "target": "be"},
]
SAID = {"options": {}, "answers_each": 1, "shard_rows": 2, "checked": False}


def manifest(facts: Facts) -> dict:
    return {**SAID, "prompts": facts.prompts, "fingerprint": facts.fingerprint, "references": facts.references}


def files(folder) -> list[tuple[str, bytes]]:
    return [
        ("of.jsonl", "\n\n".join(json.dumps(record, ensure_ascii=False) for record in JSONL).encode()),
        ("of.txt", "one\n\n  two \r\nthree".encode()),
        ("of.json", json.dumps(JSONL[:3]).encode()),
        ("of.csv", "prompt,answer\nso,be\n,\nit,\n".encode()),
        ("translation.jsonl", json.dumps({"translation": {"en": "tree", "ko": "나무"}}).encode()),
    ]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("references", [False, True])
def test_the_prompts_of_shards_are_those_that_are_read_at_once(number, references, tmp_path):
    name, data = files(tmp_path)[number]
    path = tmp_path / name
    path.write_bytes(data)
    reading = Reading(False, references, *(("en", "ko") if "translation" in name else ()))
    whole = lambda: read_prompts([str(path)], False, reading=reading)
    try:
        want = whole()
    except UserError as error:  # a .txt has no references; it is told by whoever counts them
        assert "references" in str(error)
        reading = Reading()
        want = whole()
    unit, prompts = stream_prompts([str(path)], None, None, reading)
    shards = Shards(tmp_path / "shards", 2)
    shards.folder.mkdir()
    facts = shards.begin(prompts, manifest)
    parts = [prompts_in(shards.prompts(shard), unit) for shard in shards.of(facts.prompts)]
    assert [prompt for part in parts for prompt in part.prompts] == want.prompts and {part.unit for part in parts} == {want.unit}
    assert [number for part in parts for number in part.numbers] == want.numbers
    for field in ("references", "prefixes"):
        told = {2 * place + index: value for place, part in enumerate(parts) for index, value in getattr(part, field).items()}
        assert told == getattr(want, field)
    assert {2 * place + index for place, part in enumerate(parts) for index in part.sources} == want.sources
    count = len(want.prompts)
    assert facts == Facts(count, len(want.references), want.translated, prompts_fingerprint(want, count))
    assert shards.found(stream_prompts([str(path)], None, None, reading)[1]) == (facts, None)


def made(folder, count: int = 5) -> tuple[Shards, list[Shard]]:
    shards = Shards(folder / "shards", 2)
    shards.folder.mkdir()
    shards.begin(((2 * number + 1, Asked(f"say {number}")) for number in range(count)), manifest)
    return shards, shards.of(count)


def answers(shard: Shard, error: str | None = None) -> bytes:
    lines = [{"line": 2 * index + 1, "choice": choice, "text": "\r\u2028", "error": error} for index in range(shard.first, shard.first + shard.count) for choice in (0, 1)]
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


def test_so_many_prompts_are_laid_into_shards_of_so_many_rows(tmp_path):
    shards, all_of_them = made(tmp_path)
    assert all_of_them == [Shard(0, 0, 2), Shard(1, 2, 2), Shard(2, 4, 1)]
    assert [shards.numbers(shard) for shard in all_of_them] == [[1, 3], [5, 7], [9]]
    assert prompts_in(shards.prompts(all_of_them[1]), "line") == Prompts(["say 2", "say 3"], [5, 7], "line")


def test_a_write_that_is_cut_short_leaves_the_shard_unanswered(tmp_path, monkeypatch):
    """Killed before the file has its name, whatever was written: the shard is answered again."""
    shards, (first, *_) = made(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shards.answered(first, answers(first))
    assert not shards.is_answered(first) and not shards.has_answers() and list(shards.folder.glob("answers-*"))
    shards.answered(first, answers(first))
    assert shards.is_answered(first)


@pytest.mark.parametrize("change", ["twice", "missing", "swapped", "cut", "other"])
def test_what_is_joined_has_each_answer_of_each_prompt_once_and_in_order(change, tmp_path):
    shards, all_of_them = made(tmp_path)
    for shard in all_of_them:
        shards.answered(shard, answers(shard, "broken" if shard.number == 2 else None))
    output = tmp_path / "out.jsonl"
    assert shards.join(output, all_of_them, 2, "line") == 1  # one prompt, both of whose answers failed
    whole = output.read_bytes()
    assert whole == b"".join(answers(shard, "broken" if shard.number == 2 else None) for shard in all_of_them)
    lines = answers(all_of_them[1]).splitlines(keepends=True)
    changed = {
        "twice": [*lines[:2], *lines], "missing": lines[1:], "swapped": [lines[1], lines[0], *lines[2:]], "cut": [*lines[:-1], lines[-1][:-1]],
        "other": [*answers(all_of_them[0]).splitlines(keepends=True)],
    }  # fmt: skip
    shards.answered(all_of_them[1], b"".join(changed[change]))
    with pytest.raises(UserError, match="answers-00001.jsonl is not what was written there"):
        shards.join(output, all_of_them, 2, "line")
    assert output.read_bytes() == whole


def test_a_link_to_the_output_stays_one(tmp_path):
    shards, all_of_them = made(tmp_path, 1)
    shards.answered(all_of_them[0], answers(all_of_them[0]))
    (tmp_path / "link").symlink_to(tmp_path / "there")
    shards.join(tmp_path / "link", all_of_them, 2, "line")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_bytes() == answers(all_of_them[0])


def test_what_somebody_else_keeps_in_the_folder_stays(tmp_path):
    shards, _ = made(tmp_path)
    (shards.folder / "notes").write_text("mine", encoding="utf-8")
    shards.remove()
    assert [path.name for path in shards.folder.iterdir()] == ["notes"]
