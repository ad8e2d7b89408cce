"""Results as one text and back: exactly, whatever they hold; of what a model wrote, a result or an error a task."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seodang.data import Task, parse_tasks, render_tasks
from seodang.data.errors import UserError
from seodang.data.tasks.forms import CUT, FORMATS, parse_answer, strict_json
from seodang.data.tasks.records import kind_of

LETTERS = st.sampled_from([*"#\\ \n\r:\"'{}[],ab", "한", "글", "\u2028", "\x85", "\x00", "\t", "\x7f"])
AWKWARD = ["", "### a", "\\### a", "\\\\###", "<|im_end|>", "\n\n### b\n", "a: b", "b:", "null", "\\n", "\n", " ", '{"a": 1}']
TEXTS = st.text(LETTERS | st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(AWKWARD)
PLAIN = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = PLAIN | st.lists(PLAIN | TEXTS | st.none(), max_size=3) | st.dictionaries(TEXTS, TEXTS | PLAIN | st.lists(TEXTS, max_size=2), max_size=3)


def tasks_of(outputs) -> list[Task]:
    return [Task(name, "?", output, kind_of(output)) for name, output in zip(["a", "b", "이름 셋"], outputs, strict=False)]


@pytest.mark.parametrize("task_format", FORMATS)
@settings(max_examples=150, deadline=None)
@given(st.lists(TEXTS | VALUES, min_size=1, max_size=3))
@example(["### a\n\n### b\n", "\\### ", "x\n\n"])
def test_what_is_written_is_read_back_exactly_and_a_cut_loses_but_what_it_cuts(task_format, outputs):
    tasks = tasks_of(outputs)
    text = render_tasks(tasks, outputs, task_format)
    read = parse_tasks(text, tasks, task_format)
    assert [(each.output, each.error) for each in read.results] == [(output, None) for output in outputs] and not read.unexpected
    whole = 0
    for length in range(len(text)):
        found = parse_tasks(text[:length], tasks, task_format, complete=False).results
        assert all(each.error == CUT or each.output == output for each, output in zip(found, outputs, strict=True))  # never half a result
        kept = sum(each.error is None for each in found)
        assert kept >= whole  # what was whole stays
        whole = kept
    assert whole >= len(outputs) - 1


def test_each_form_is_written_as_it_is_said():
    tasks, outputs = [Task("mood", "?"), Task("이름", "?")], ["a: b\n### c\\", {"사람": ["김"]}]
    assert render_tasks(tasks, outputs, "json") == '{"mood": "a: b\\n### c\\\\", "이름": {"사람": ["김"]}}'
    assert render_tasks(tasks, outputs, "keyed") == 'mood: a: b\\n### c\\\\\n이름: {"사람": ["김"]}'
    assert render_tasks(tasks, outputs, "text") == '### mood\na: b\n\\### c\\\n\n### 이름\n{"사람": ["김"]}'
    with pytest.raises(UserError, match="task_format must be json, text or keyed, got 'yaml'"):
        render_tasks(tasks, outputs, "yaml")


TWO = [Task("mood", "?", kind="text"), Task("names", "?", kind="json")]
GOOD = {"mood": "sad", "names": ["Kim"]}


@pytest.mark.parametrize(
    "task_format, text, complete, mood, names, unexpected",
    [
        ("json", '{"names":["Kim"],"mood":"sad"}', True, "sad", ["Kim"], []),  # another order
        ("json", '{"mood": "sad"}', True, "sad", "! no key 'names' in the answer", []),
        ("json", '{"mood": "sad", "names": [1], "names": [1]}', True, "sad", "! 'names' is there 2 times", []),
        ("json", '{"mood": "sad", "names": {"a": 1, "a": 2}}', True, "sad", "! not JSON: the key 'a' is there twice", []),
        ("json", '{"mood": "sad", "names": [NaN]}', True, "sad", "! not JSON: NaN is no number", []),
        ("json", '{"mood": 3, "names": null, "more": "x"}', True, "! must be a text, got 3", None, ["more"]),
        ("json", '{"mood": "sad", "names": ["Kim"', False, "sad", f"! {CUT}", []),
        ("json", '{"mood": "sad", "names": ["Kim"', True, "sad", "! no key 'names' in the answer: not JSON: ", []),
        ("json", '{"mood": "sad", "names": 12', False, "sad", f"! {CUT}", []),  # of 123, perhaps
        ("json", '{"mood": "sad", "names": ["Kim"]', False, "sad", ["Kim"], []),
        ("json", '{"mood": "sad", "names": ["Kim"]} so', True, "sad", ["Kim"], ["so"]),
        ("json", "Sure!", True, "! no key 'mood' in the answer: not JSON: { expected at character 1", "! no key 'names'", []),
        ("json", '{"mood": "sad" "names": []}', True, "sad", "! no key 'names' in the answer: not JSON: , or } expected at character 16", []),
        ("json", "[" * 100_000, True, "! no key 'mood' in the answer: not JSON: ", "! no key", []),
        ("json", '{"mood": "sad", "names": ' + "[" * 100_000, True, "sad", "! no key 'names' in the answer: not JSON: ", []),
        ("json", '{"mood": "sad\\ud800", "names": []}', True, "! not JSON: the text has the lone surrogate U+D800", [], []),
        ("json", '{"mood": "sad", "\\ud800": 1, "names": []}', True, "sad", "! no key 'names' in the answer: not JSON: ", []),
        ("json", "{}", True, "! no key 'mood' in the answer", "! no key 'names' in the answer", []),
        ("text", '### mood\nsad\n\n### names\n["Kim"]', True, "sad", ["Kim"], []),
        ("text", 'Well.\n### mood\nsad\n### names\n["Kim"]\n\n### age\n3', True, "sad", ["Kim"], ["Well.", "age"]),
        ("text", "### mood\nsad\n\n### mood\ngay\n\n### names\nKim", True, "! 'mood' is there 2 times", "! not JSON: ", []),
        ("text", "### mood\nsad\n\n### names\n", False, "sad", f"! {CUT}", []),
        ("text", "### mood", True, "", "! no heading ### names", []),  # a template takes blanks off the end
        ("keyed", 'mood: sad\nnames: ["Kim"]', True, "sad", ["Kim"], []),
        ("keyed", 'mood:\n\nage: 3\nwell\nnames: ["Kim"]\n', True, "", ["Kim"], ["age: 3", "well"]),
        ("keyed", "mood: s\\ad\nnames: [] []", True, "! the backslash in '\\\\a' means nothing", "! not JSON: Extra data", []),
        ("keyed", "mood: sad\nmood: sad\nnames: [", False, "! 'mood' is there 2 times", f"! {CUT}", []),
        ("keyed", "mood: sad\n", False, "sad", f"! {CUT}", []),
        ("keyed", "mood: sad\\", True, "! the backslash in '\\\\' means nothing", "! no line names:", []),
    ],
)
def test_of_what_a_model_wrote_each_task_has_its_result_or_its_own_error(task_format, text, complete, mood, names, unexpected):
    read = parse_tasks(text, TWO, task_format, complete)
    for result, wanted in zip(read.results, (mood, names), strict=True):
        if isinstance(wanted, str) and wanted.startswith("! "):
            assert result.error.startswith(wanted[2:]) and result.output is None
        else:
            assert (result.output, result.error) == (wanted, None)
    assert read.unexpected == unexpected


def test_an_answer_alone_is_what_it_says_or_json_where_its_tasks_have_json():
    assert parse_answer(" 12 ", TWO[0]).output == " 12 " and parse_answer(" [12] ", TWO[1]).output == [12]
    assert parse_answer("sad", TWO[0], complete=False).error == CUT
    assert parse_answer('{"a": 1, "a": 1}', TWO[1]).error == "not JSON: the key 'a' is there twice"
    assert parse_answer("12", Task("mood", "?")).output == "12"  # of no known kind: a text
    for text in ("nul", "1e", "[1, Infinity]", "1" * 5000):
        with pytest.raises(ValueError):
            strict_json(text)


def test_the_forms_agree_with_json_itself():
    text = render_tasks(TWO, [*GOOD.values()], "json")
    assert json.loads(text) == GOOD and re.fullmatch(r"\{.*\}", text)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "[1, {\"x\": 1e999}]"])
def test_a_number_that_no_file_could_hold_is_an_error_of_its_task(number):
    names = Task("a", "?", kind="json"), Task("b", "?", kind="text")
    first, second = parse_tasks(f'{{"a": {number}, "b": "so"}}', names, "json").results
    assert "the number" in first.error and "is too great" in first.error and (second.output, second.error) == ("so", None)
    assert "is too great" in parse_answer(number, names[0]).error
    assert parse_answer("1e308", names[0]).output == 1e308
