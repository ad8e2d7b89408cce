import copy
import json
import re

import pytest
from rich.console import Console

from seodang.data.formats import Dialogue
from seodang.data.labels import prepare
from seodang.data.preference_rows import prepare_preferences, prepare_prompts, prepare_unpaired
from seodang.data.preferences import PromptExample, RankedPreference, UnpairedPreference
from seodang.data.preview import MASKED, TITLE, TRAINED, length, length_lines, parts, pieces, preview, summary
from seodang.data.preview_page import to_html
from seodang.recipes.preview import main

TALK = Dialogue([{"role": "user", "content": "수원은 <b>어디</b>?"}, {"role": "assistant", "content": "한국 😀 & <i>여기</i>."}])


@pytest.fixture(scope="module")
def smol(_tokenizer):
    return copy.deepcopy(_tokenizer)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.jsonl"
    records = [{"instruction": "수원은 어디에?", "output": "한국."}, {"instruction": "긴 " * 200, "output": "답."}, {"instruction": "Q", "output": "A " * 200}]
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def test_pieces_are_whole_characters_that_join_to_the_rows_text(smol):
    [row], counts = prepare([TALK], smol, max_length=512)
    found = list(pieces(row, smol))
    assert "".join(piece.text for piece in found) == smol.decode(row["input_ids"])
    assert not any("\ufffd" in piece.text for piece in found)
    assert any(len(piece.ids) > 1 for piece in found)  # some characters are spread over tokens
    assert [id for piece in found for id in piece.ids] == row["input_ids"]
    assert "".join(piece.text for piece in found if piece.trained) == "한국 😀 & <i>여기</i>.<|im_end|>"
    assert sum(len(piece.ids) for piece in found if piece.trained) == counts.trained_tokens


def test_bytes_that_are_no_character_end_the_row_all_the_same(smol):
    broken = smol("수")["input_ids"][:1]
    found = list(pieces({"input_ids": broken, "labels": [-100]}, smol))
    assert [piece.ids for piece in found] == [tuple(broken)]


def test_the_terminal_shows_trained_and_masked_text_in_their_styles(smol):
    rows, _ = prepare([TALK], smol, max_length=512)
    console = Console(width=100, record=True, force_terminal=True, color_system="truecolor", file=open("/dev/null", "w"))
    console.print(preview([("a.jsonl line 1", rows), ("a.jsonl line 2", [])], smol))
    panel = preview([("a.jsonl line 1", rows)], smol).renderables[0]
    styles = {panel.renderable.plain[span.start : span.end]: span.style for span in panel.renderable.spans}
    assert styles["국"] == TRAINED and styles["assistant" if "assistant" in styles else "user"] == MASKED
    text = console.export_text()
    assert "a.jsonl line 1" in text and "dropped" in text and f"{len(rows[0]['input_ids'])} tokens" in text


def test_without_colours_trained_tokens_stand_between_brackets(smol):
    rows, _ = prepare([TALK], smol, max_length=512)
    body = preview([("a.jsonl line 1", rows)], smol, colours=False).renderables[0].renderable.plain
    assert re.findall("【(.*?)】", body, re.DOTALL) == ["한국 😀 & <i>여기</i>.<|im_end|>"]
    assert re.sub("[【】]", "", body) == preview([("a.jsonl line 1", rows)], smol).renderables[0].renderable.plain


def test_the_page_escapes_what_it_shows_and_loads_nothing(smol):
    rows, counts = prepare([TALK], smol, max_length=512)
    page = to_html([("<script>alert(1)</script>", rows)], smol, counts, [len(rows[0]["input_ids"])], title="<T>")
    assert "<script" not in page and "<b>" not in page and "<i>" not in page and "<T>" not in page
    assert not re.search(r"(src|href)=|@import|url\(|https?:", page)
    assert "prefers-color-scheme: dark" in page and '<html lang="en">' in page and 'charset="utf-8"' in page
    assert page.count("<mark>") == page.count("</mark>") == 2  # the legend, and the one answer
    marked = re.findall(r"<mark>(.*?)</mark>", page, re.S)[1]
    assert re.sub(r"<[^>]+>", "", marked) == "한국 😀 &amp; &lt;i&gt;여기&lt;/i&gt;.&lt;|im_end|&gt;"
    assert "text-decoration: underline" in page  # not by colour alone


def test_lengths_are_counted_in_equal_spans():
    assert length_lines([1, 2, 2, 8], bins=2) == [
        "lengths         1 to 8 tokens, half up to 2, nine in ten up to 8",
        "     1 to 4       ████████████████████████ 3",
        "     5 to 8       ████████ 1",
    ]
    assert length_lines([]) == []


def test_the_command_prints_records_and_totals_and_writes_the_page(file, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main([str(file), "--rows", "2", "--max_length", "64", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "a.jsonl line 1" in out and "a.jsonl line 2" in out and "a.jsonl line 3" not in out
    assert "한국.<|im_end|>" in out
    assert "records         3 read, 2 kept in 2 rows" in out and "1 rows lost context" in out and "1 x answer longer than max_length" in out
    assert page.read_text(encoding="utf-8").count("<section>") == 2


ASKED = [{"role": "user", "content": "수도는?"}]
GOOD, BAD, WORSE = ({"role": "assistant", "content": text} for text in ("서울 😀.", "<b>부산</b>", "몰라."))


def texts(row, tokenizer):
    return [(part.title, "".join(piece.text for piece in part.pieces), {piece.trained for piece in part.pieces}) for part in parts(row, tokenizer)]


def test_a_prompt_is_shown_once_and_then_its_answers_the_best_first(smol):
    rows, _ = prepare_preferences([RankedPreference(ASKED, [BAD, GOOD], [1, 0]), RankedPreference(ASKED, [WORSE, BAD, GOOD], [2, 1, 0])], smol, max_length=256)
    (_, prompt, masked), *two = texts(rows[0], smol)
    assert prompt == smol.decode(rows[0]["prompt_ids"]) and masked == {False}
    assert two == [("chosen", "서울 😀.<|im_end|>", {True}), ("rejected", "<b>부산</b><|im_end|>", {True})]
    assert [title for title, *_ in texts(rows[1], smol)] == ["", "rank 0", "rank 1", "rank 2"]
    sizes = [len(branch) for branch in rows[0]["branches"]]
    assert summary(rows[0]) == f"prompt {len(rows[0]['prompt_ids'])} tokens, chosen {sizes[1]}, rejected {sizes[0]}"
    assert length(rows[0]) == len(rows[0]["prompt_ids"]) + max(sizes)


def test_judged_answers_and_prompts_alone_are_shown(smol):
    [bad], _ = prepare_unpaired([UnpairedPreference(ASKED, WORSE, False)], smol, max_length=256)
    assert texts(bad, smol)[1:] == [("bad", "몰라.<|im_end|>", {True})]
    [asked], _ = prepare_prompts([PromptExample(ASKED)], smol, max_prompt_length=256)
    assert texts(asked, smol) == [("", smol.decode(asked["prompt_ids"]), {False})] and length(asked) == len(asked["prompt_ids"])


def test_the_terminal_and_the_page_name_the_better_answer(smol):
    rows, counts = prepare_preferences([RankedPreference(ASKED, [GOOD, BAD], [0, 1])], smol, max_length=256)
    body = preview([("a.jsonl line 1", rows)], smol).renderables[0].renderable
    styles = {body.plain[span.start : span.end]: span.style for span in body.spans}
    assert styles[" chosen "] == styles[" rejected "] == TITLE and styles["서"] == styles["산"] == TRAINED and styles["수"] == MASKED
    assert body.plain.endswith("assistant\n chosen  서울 😀.<|im_end|>\n rejected  <b>부산</b><|im_end|>")
    page = to_html([("a.jsonl line 1", rows)], smol, counts, [length(row) for row in rows])
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["chosen", "rejected"] and "<b>" not in page
    marked = [re.sub(r"<[^>]+>", "", text) for text in re.findall(r"<mark>(.*?)</mark>", page, re.S)]
    assert marked[1:] == ["서울 😀.&lt;|im_end|&gt;", "&lt;b&gt;부산&lt;/b&gt;&lt;|im_end|&gt;"]
    assert "1 pairs of 2 answers" in page


@pytest.mark.parametrize(
    "record, shape, shown",
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, None, ["chosen  【A<|im_end|>】", "rejected  【B<|im_end|>】", "1 pairs of 2 answers"]),
        ({"prompt": "Q", "responses": ["A", "B", "C"], "ranks": [1, 0, 2]}, None, ["rank 0  【B<|im_end|>】", "3 pairs of 3 answers"]),
        ({"prompt": "Q", "completion": "A", "label": False}, None, ["bad  【A<|im_end|>】", "0 good and 1 bad answers"]),
        ({"prompt": "Q", "completion": "A", "label": False}, "prompt_completion", ["A<|im_end|>", "trained ("]),
        ({"question": "Q", "answer": "A"}, None, ["A<|im_end|>", "trained (", "columns         question as prompt, answer as completion, in 1 records"]),
        ({"question": "Q", "answer": "A"}, "question", ["prompt 3", "records         1 read, 1 kept in 1 rows"]),
        ({"Question": "Q", "chosen": "A", "rejected": "B"}, None, ["chosen  【A<|im_end|>】", "columns         Question as prompt, in 1 records"]),
        ({"prompt": "Q", "chosen": "A", "rejected": "A"}, None, ["dropped", "1 x identical answers"]),
    ],
)
def test_the_command_tells_records_by_their_keys_or_by_the_shape_named(smol, tmp_path, capsys, monkeypatch, record, shape, shown):
    monkeypatch.setattr("seodang.recipes.preview.load_tokenizer", lambda model: copy.deepcopy(smol))
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert main([str(tmp_path / "a.jsonl"), *(["--shape", shape] if shape else [])]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in shown)


PAIR, LABEL, PROMPT = {"prompt": "Q", "chosen": "A", "rejected": "B"}, {"prompt": "Q", "completion": "A", "label": True}, {"question": "Q"}


@pytest.mark.parametrize(
    "first, second, named",
    [
        ({"text": "T"}, PAIR, "b.jsonl line 1: ranked answers behind records to teach"),
        (PAIR, {"text": "T"}, "b.jsonl line 1: records to teach behind ranked answers"),
        (PAIR, LABEL, "b.jsonl line 1: judged answers behind ranked answers"),
        (LABEL, PROMPT, "b.jsonl line 1: prompts alone behind judged answers"),
    ],
)
def test_records_of_different_stages_are_not_counted_together(tmp_path, capsys, first, second, named):
    for name, record in (("a", first), ("b", second)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    assert main([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]) == 2
    error = capsys.readouterr().err
    assert named in error and "preview them one after the other" in error


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["nothere.jsonl"], "there is no file or folder nothere.jsonl"),
        ([], "data is missing"),
        (["FILE", "--max_lenght", "3"], "did you mean max_length"),
        (["FILE", "--rows", "-1"], "rows must not be below zero, got -1"),
        (["FILE", "--html", "/nothere/page.html"], "there is no folder /nothere"),
        (["FILE", "--chat_template", "vicunna"], "neither a file nor one of chatml"),
        (["FILE", "--shape", "alpaca"], "shape must be one of"),
        (["FILE", "--train_on", "user"], "train_on must be one of"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(file, capsys, arguments, named):
    assert main([str(file) if word == "FILE" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1 and error.startswith("error: ")
