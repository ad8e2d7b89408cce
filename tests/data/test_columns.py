import json
import unicodedata
from itertools import combinations

import pytest

from seodang.data.columns import KEYS, NEEDS, Columns, certain_names, parse_columns
from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.formats import SHAPES, Text
from seodang.data.preferences import PREFERENCE_SHAPES, PROMPT_SHAPES, UNPAIRED_SHAPES

TEACHING, PAIRS, JUDGED, PROMPTS = (tuple(shapes) for shapes in (SHAPES, PREFERENCE_SHAPES, {**UNPAIRED_SHAPES, **PREFERENCE_SHAPES}, PROMPT_SHAPES))
ALL = (*JUDGED, *TEACHING, *PROMPTS)
PAIR = {"prompt": "question", "completion": "answer"}


def lines(path, *records):
    path.write_text("".join((record if isinstance(record, str) else json.dumps(record, ensure_ascii=False)) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "shapes, columns, names",
    [
        (TEACHING, "question answer", PAIR),
        (TEACHING, "question answer id source", PAIR),
        (ALL, "question answer", PAIR),
        (TEACHING, "query response", {"prompt": "query", "completion": "response"}),
        (TEACHING, "prompt response", {"completion": "response"}),
        (TEACHING, "prompt answer system", {"completion": "answer"}),
        (TEACHING, "instruction response", {"prompt": "instruction", "completion": "response"}),
        (TEACHING, "Instruction Output", {"instruction": "Instruction", "output": "Output"}),
        (TEACHING, "Instruction INPUT Output", {"instruction": "Instruction", "input": "INPUT", "output": "Output"}),
        (TEACHING, "Question Answer", {"prompt": "Question", "completion": "Answer"}),
        (TEACHING, "Messages", {"messages": "Messages"}),
        (TEACHING, "질문 답변", {"prompt": "질문", "completion": "답변"}),
        (TEACHING, "지시 출력", {"prompt": "지시", "completion": "출력"}),
        (TEACHING, "지시 입력 출력", {"instruction": "지시", "input": "입력", "output": "출력"}),
        (TEACHING, "instruction output", {}),
        (TEACHING, "instruction output question answer", {}),  # what fits as it stands is read as before
        (TEACHING, "text question completion prompt", {}),
        (TEACHING, "instruction output Output", {}),
        (TEACHING, "question", {}),
        (TEACHING, "instruction result", {}),
        (TEACHING, "source target", {}),
        (("triplet",), "question answer", {"instruction": "question", "output": "answer"}),
        (("question",), "question answer", {}),
        (PAIRS, "question chosen rejected", {"prompt": "question"}),
        (PAIRS, "prompt Chosen Rejected", {"chosen": "Chosen", "rejected": "Rejected"}),
        (TEACHING, "id system_prompt question response", {"prompt": "question", "completion": "response", "system": "system_prompt"}),  # OpenOrca
        (TEACHING, "instruction output system_prompt system", {}),
        (TEACHING, "messages system_prompt", {}),
        (PROMPTS, "prompt system_prompt", {}),
        (PAIRS, "question responses ranks", {"prompt": "question"}),
        (JUDGED, "question response label", {"prompt": "question", "completion": "response"}),
        (PROMPTS, "question answer", {}),
        (PROMPTS, "query answer", {"prompt": "query"}),
        (PROMPTS, "질문 정답", {"prompt": "질문"}),
        (PROMPTS, "Question Answer", {"question": "Question", "answer": "Answer"}),
        (PROMPTS, "prompt Answer", {}),  # a reward may read the column as it is called
    ],
)
def test_columns_are_taken_for_what_they_can_only_be(shapes, columns, names):
    assert certain_names(tuple(columns.split()), shapes, True) == names


def test_a_table_without_names_is_not_read_as_if_its_first_record_were_some(tmp_path):
    (tmp_path / "a.csv").write_text("서울은?,한국\n부산은?,남쪽\n", encoding="utf-8")
    with pytest.raises(UserError, match="a.csv line 2: .*; the first row must name the columns: where it is a record already, put one above it; then"):
        read(tmp_path / "a.csv")


def test_sides_that_may_hold_the_prompt_themselves_are_left_as_they_are():
    assert certain_names(("question", "chosen", "rejected"), PAIRS, plain_sides=False) == {}


def test_spaces_around_a_name_do_not_count_and_names_are_told(tmp_path):
    (tmp_path / "a.csv").write_text("Instruction ,Output \nQ,A\n", encoding="utf-8")
    [example] = read(tmp_path / "a.csv")
    assert [message["content"] for message in example.messages] == ["Q", "A"] and example.taken == "'Instruction ' as instruction, 'Output ' as output"
    [example] = read(lines(tmp_path / "c.jsonl", {"question": "Q", "answer": "A", "배경": "B", "id": 1}))
    assert example.taken == "question as prompt, answer as completion (not read: 배경, id)"
    [example] = read(lines(tmp_path / "b.jsonl", {"instruction": "Q", "output": "A"}))
    assert example.taken == ""


@pytest.mark.parametrize(
    "record, told",
    [
        ({"instruction": "Q", "context": "C", "response": "A"}, "instruction, context, response can be meant in several ways: .* --columns input=context output=response"),
        ({"question": "Q", "choices": ["a"], "answer": "A"}, "--columns instruction=question input=choices output=answer"),
        ({"question": "Q", "answer": "A", "response": "B"}, "question, answer, response can be meant .* --columns prompt=question completion=answer"),
        ({"question": "Q", "answer": "A", "label": 1}, "question, label, answer can be .* --columns prompt=question completion=answer"),
        ({"question": "Q", "text": "T", "answer": "A"}, "can be .* \\(--shape text takes the text alone\\): .* --columns prompt=question completion=answer"),
        ({"instruction": "Solve.", "question": "Q", "answer": "A"}, "--columns input=question output=answer"),
        ({"질의": "Q", "답안": "A"}, "no known shape has the keys 질의, 답안: .* --columns prompt=질의 completion=답안"),
        ({"response": "A", "topic words": "Q"}, "--columns 'prompt=topic words' completion=response"),
        ({"a": "Q", "b": "A", "c": "C"}, "--columns prompt=COLUMN completion=COLUMN"),
        ({"instruction": "Q", "result": "A"}, "'output' is missing .*: --columns output=result"),
    ],
)
def test_what_is_not_certain_is_refused_with_the_option_to_give(tmp_path, record, told):
    with pytest.raises(UserError, match=f"a.jsonl line 1: .*{told}$"):
        read(lines(tmp_path / "a.jsonl", record))


def test_the_option_that_a_refusal_gives_is_taken_and_loses_no_question():
    names = ["prompt", "completion", "instruction", "input", "output", "question", "answer", "context", "label", "text", "history", "chosen", "rejected"]
    refused = 0
    for shapes in (ALL, TEACHING, ("triplet",), ("prompt_completion",), PAIRS, JUDGED):
        for record in (dict.fromkeys(some, "T") for count in (2, 3, 4) for some in combinations(names, count)):
            try:
                Columns({}, tuple(shapes), {}).taken(record)
            except UserError as error:
                given = parse_columns(str(error).rpartition("--columns ")[2].split())
                taken, _ = Columns(given, tuple(shapes), {}).taken(record)
                refused += 1
                assert any(NEEDS[shape] <= {*taken} for shape in shapes if shape in NEEDS), (shapes, record, given)
    assert refused > 100


def test_the_option_that_a_refusal_gives_has_the_columns_as_they_are_called_in_the_file(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"Q": "How?", "context": "C", "answer": "So."})
    with pytest.raises(UserError, match="prompt, context, answer can be .* --columns instruction=Q input=context output=answer$"):
        read(path, columns={"prompt": "Q"})
    [example] = read(path, columns={"instruction": "Q", "input": "context", "output": "answer"})
    assert [message["content"] for message in example.messages] == ["How?\n\nC", "So."]


@pytest.mark.parametrize("more", ["context", "history", "input"])
def test_more_of_the_question_beside_preferences_is_not_dropped(tmp_path, more):
    path = lines(tmp_path / "a.jsonl", {"question": "Q", more: "C", "chosen": "A", "rejected": "B"})
    with pytest.raises(UserError, match=f"the columns question, {more} can be meant in several ways: .* --columns prompt=question$"):
        read(path, shapes=PREFERENCE_SHAPES)
    [example] = read(path, shapes=PREFERENCE_SHAPES, columns={"prompt": "question"})
    assert example.taken == f"question as prompt (not read: {more})"


def test_a_later_record_with_more_columns_is_not_cut_short(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"question": "Q", "answer": "A", "context": None}, {"question": "Q", "answer": "A", "context": "C"})
    with pytest.raises(UserError, match="a.jsonl line 2: the columns question, context, answer can be meant in several ways"):
        read(path)


@pytest.mark.parametrize(
    "record, shapes, columns, taken",
    [
        ({"질의": "Q", "배경": "C", "답": "A"}, None, {"instruction": "질의", "input": "배경", "output": "답"}, "질의 as instruction, 배경 as input, 답 as output"),
        ({"question": "Q", "답": "A"}, None, {"completion": "답"}, "답 as completion, question as prompt"),  # the rest is certain
        ({"instruction": "A", "output": "Q"}, None, {"instruction": "output", "output": "instruction"}, "output as instruction, instruction as output"),
        ({"q": "Q", "good": "A", "bad": "B"}, PREFERENCE_SHAPES, {"prompt": "q", "chosen": "good", "rejected": "bad"}, "q as prompt, good as chosen, bad as rejected"),
        ({"q": "Q", "a": "A", "ok": True}, UNPAIRED_SHAPES, {"prompt": "q", "completion": "a", "label": "ok"}, "q as prompt, a as completion, ok as label"),
    ],
)
def test_columns_that_are_named_are_read_under_their_keys(tmp_path, record, shapes, columns, taken):
    [example] = read(lines(tmp_path / "a.jsonl", record), shapes=shapes, columns=columns)
    said = [message["content"] for message in (example.messages if shapes is None else example.prompt)]
    assert said[0] == ("Q\n\nC" if "배경" in record else "Q") and example.taken == taken
    answers = [example.messages[-1]] if shapes is None else getattr(example, "answers", None) or [example.answer]
    assert [answer["content"] for answer in answers] == ["A", "B"][: len(answers)]


def test_a_named_column_may_have_spaces_around_it_or_a_macs_spelling(tmp_path):
    (tmp_path / "a.csv").write_text(f"{unicodedata.normalize('NFD', '질의')} , 답\nQ,A\n", encoding="utf-8")
    [example] = read(tmp_path / "a.csv", columns={"prompt": "질의", "completion": "답"})
    assert [message["content"] for message in example.messages] == ["Q", "A"]


def test_a_rewards_columns_may_be_named_too(tmp_path):
    [example] = read(lines(tmp_path / "a.jsonl", {"문제": "1+1?", "정답": 2}), shapes=PROMPT_SHAPES, columns={"prompt": "문제", "answer": "정답"})
    assert example.prompt[0]["content"] == "1+1?" and example.columns == {"answer": 2}


def test_sources_that_have_the_keys_already_are_read_beside_those_that_do_not(tmp_path):
    named, plain = lines(tmp_path / "a.jsonl", {"질의": "Q", "답": "A"}), lines(tmp_path / "b.jsonl", {"prompt": "R", "completion": "B"}, {"prompt": "S", "completion": "C"})
    for streaming in (False, True):
        examples = list(read([named, plain], columns={"prompt": "질의", "completion": "답"}, streaming=streaming))
        assert [example.messages[0]["content"] for example in examples] == ["Q", "R", "S"]
        with pytest.raises(UserError, match="--columns input=배경: there is no column '배경' among prompt, completion"):
            list(read([named, plain], columns={"input": "배경", "prompt": "질의", "completion": "답"}, streaming=streaming))


@pytest.mark.parametrize(
    "columns, told",
    [
        ({"output": "anwser"}, "--columns output=anwser: there is no column 'anwser' among instruction, answer, memo: did you mean output=answer?"),
        ({"ouput": "answer"}, "columns ouput=answer: no shape has a key 'ouput': did you mean output?"),
        ({"answer": "output"}, "columns answer=output: no shape has a key 'answer': did you mean output=answer?"),  # the wrong way round
        ({"chosen": "answer"}, "columns chosen=answer: no shape has a key 'chosen', only completion, conversations, history"),
        ({"memo": "answer"}, "columns memo=answer: no shape has a key 'memo'"),
        ({"instruction": "memo", "output": "answer"}, "a.jsonl line 1: --columns instruction=memo, but there is a column 'instruction' as well: rename or delete one"),
    ],
)
def test_a_mistaken_name_is_said(tmp_path, columns, told):
    with pytest.raises(UserError) as refused:
        read(lines(tmp_path / "a.jsonl", {"instruction": "Q", "answer": "A", "memo": "M"}), columns=columns)
    assert told in str(refused.value)


def test_every_shape_says_what_it_reads_and_one_of_the_callers_own_may_read_anything(tmp_path):
    assert {*ALL} <= KEYS.keys() and {*ALL} - {"prompt", "question", "instruction", "rejected_only"} <= NEEDS.keys()
    assert all(NEEDS[shape] <= {*KEYS[shape]} for shape in NEEDS)
    shapes = {"poem": (("title",), lambda record: Text(f"{record['title']}: {record['lines']}"))}
    [example] = read(lines(tmp_path / "a.jsonl", {"제목": "T", "lines": 3}), shapes=shapes, columns={"title": "제목"})
    assert (example.text, example.taken) == ("T: 3", "제목 as title")


def test_words_of_a_command_line_are_pairs():
    assert parse_columns(["instruction=질문", "output=a = b"]) == {"instruction": "질문", "output": "a = b"} and parse_columns(None) == {}
    for words, told in {
        "output": "columns takes KEY=COLUMN, as instruction=question, got 'output'", "output=": "KEY=COLUMN", "=a": "KEY=COLUMN",
        "output=a output=b": "columns names output twice: 'a' and 'b'", "output=a input=a": "columns gives 'a' to two keys, output and input",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=told):
            parse_columns(words.split())


def test_a_column_of_numbers_is_read_as_it_is_written(tmp_path):
    written = ["3", "0.50", "-1e5", "12345678901234567890.125", "null"]
    records = [f'{{"text": {number}}}' for number in written]
    path = lines(tmp_path / "a.jsonl", *records[:-1])
    assert [example.text for example in read(path)] == written[:-1]
    whole = tmp_path / "a.json"
    whole.write_text(f"[{', '.join(records[:-1])}]")
    assert [example.text for example in read(whole)] == written[:-1]
    prompts = read(lines(tmp_path / "b.jsonl", '{"question": 7, "answer": 3, "level": 0.50}'), shapes=PROMPT_SHAPES)
    assert prompts[0].prompt[0]["content"] == "7" and prompts[0].columns == {"answer": 3, "level": 0.5}  # rewards get numbers


@pytest.mark.parametrize(
    "second, told",
    [
        ("four", "a.jsonl line 2: output is the text 'four', but in a.jsonl line 1 it is the number 3.0: write all of them as texts, in quotes"),
        (True, "a.jsonl line 2: output must be a text, got True: write it as a text, in quotes"),
        (float("nan"), "a.jsonl line 2: output must be a text, got nan"),
        (None, "a.jsonl line 2: the key 'output' holds nothing (null): fill it in, or leave the record out"),
        ([4], "a.jsonl line 2: output is [4], but in a.jsonl line 1 it is the number"),
    ],
)
def test_a_number_among_other_things_is_refused(tmp_path, second, told):
    with pytest.raises(UserError) as refused:
        read(lines(tmp_path / "a.jsonl", {"instruction": "Q", "output": 3.0}, {"instruction": "Q", "output": second}))
    assert told in str(refused.value)


def test_numbers_in_columns_that_no_shape_reads_may_be_mixed(tmp_path):
    examples = read(lines(tmp_path / "a.jsonl", {"instruction": "Q", "output": "A", "text": 1}, {"instruction": "Q", "output": "A", "text": "T"}))
    assert len(examples) == 2
