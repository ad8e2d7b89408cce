"""What is asked of a record round by round: own results in later prompts, and a task's failure its own."""

import pytest

from seodang.data.tasks.asking import Lockstep, TaskAnswer, asked_of, together_schema
from seodang.data.tasks.forms import CUT
from seodang.data.tasks.layouts import Layout
from seodang.data.tasks.records import task_record, with_common_kinds

RECORD = task_record({"input": "Kim.", "tasks": [{"name": name, "instruction": f"{name}?"} for name in "abc"]}, outputs=False)


def walked(layout, answers, record=RECORD, **how):
    """The prompts of every round, each as its last message's text and how many messages there are, and the results."""
    asked = asked_of(record, Layout(layout, **how))
    questions, seen = next(asked), []
    try:
        while True:
            seen.append([(question.messages[-1]["content"], len(question.messages)) for question in questions])
            questions = asked.send([answers[question.place] for question in questions])
    except StopIteration as over:
        return seen, over.value


def test_own_results_are_shown_to_later_tasks():
    answers = [TaskAnswer("x", tokens=2), TaskAnswer("y\n", tokens=3), TaskAnswer("z")]
    seen, found = walked("sequence", answers)
    assert seen == [[("Kim.\n\na?", 1)], [("b?", 3)], [("c?", 5)]]
    assert [each.output for each in found.results] == ["x", "y\n", "z"] and [each.tokens for each in found.answers] == [2, 3, 0]
    seen, _ = walked("cumulative", answers, task_format="keyed")
    assert [text for [(text, _)] in seen] == ["Kim.\n\na?", "Kim.\n\na?\n\na: x\n\nb?", "Kim.\n\na?\n\na: x\n\nb?\n\nb: y\\n\n\nc?"]
    seen, _ = walked("apart", answers)
    assert seen == [[("a?\n\nKim.", 1), ("b?\n\nKim.", 1), ("c?\n\nKim.", 1)]]


@pytest.mark.parametrize("layout", ["sequence", "cumulative"])
def test_a_task_without_a_result_is_left_out_of_what_later_ones_see_and_loses_none_of_them(layout):
    answers = [TaskAnswer("x", complete=False), TaskAnswer("", error="the server is tired"), TaskAnswer("z")]
    seen, found = walked(layout, answers)
    assert [text for [(text, _)] in seen] == ["Kim.\n\na?", "Kim.\n\nb?", "Kim.\n\nc?"]  # as if they had not been asked
    assert [(each.output, each.error) for each in found.results] == [(None, CUT), (None, "the server is tired"), ("z", None)]


def test_an_answer_of_all_tasks_is_parsed_and_its_failure_is_that_of_each():
    _, found = walked("together", [TaskAnswer('{"a": "x", "c": "z", "d": 1}')])
    assert [each.output for each in found.results] == ["x", None, "z"] and found.results[1].error and found.unexpected == ["d"]
    _, found = walked("together", [TaskAnswer("", error="no")])
    assert [each.error for each in found.results] == ["no"] * 3


def test_answers_that_are_json_have_a_schema_and_its_kinds_come_from_all_records_of_a_name():
    pairs = [("x", ["Kim"], "x"), ("y", {"a": 1}, 3), (None, None, None)]
    records = [
        {"input": "k", "tasks": [{"name": name, "instruction": "?", "output": output} for name, output in zip("abc", outputs, strict=True)]} for outputs in pairs
    ]
    read = with_common_kinds([task_record(each, outputs=False) for each in records])
    assert [[task.kind for task in record.tasks] for record in read] == [["text", "json", None]] * 3  # of c they differ
    assert together_schema(read[2]) == {
        "type": "object", "properties": {"a": {"type": "string"}, "b": {}, "c": {}}, "required": ["a", "b", "c"], "additionalProperties": False,
    }  # fmt: skip
    for layout, schemas in (("apart", [None, {}, None]), ("together", [together_schema(read[2])])):
        assert [question.schema for question in next(asked_of(read[2], Layout(layout)))] == schemas
        assert all(question.schema is None for question in next(asked_of(read[2], Layout(layout), grammar=False)))
    assert next(asked_of(read[2], Layout("together", "keyed")))[0].schema is None


def test_records_go_through_their_rounds_together_whatever_the_order_of_answers():
    short = task_record({"input": "Lee.", "tasks": [{"instruction": "a?"}]}, outputs=False)
    rounds = []

    def ask(questions):
        rounds.append([(index, question.place) for index, question in questions])
        yield from ((index, question.place, TaskAnswer(f"{index}{question.place}")) for index, question in reversed(questions))

    found = dict(Lockstep([(4, RECORD), (7, short), (9, RECORD)], Layout("cumulative")).run(ask))
    assert rounds == [[(4, 0), (7, 0), (9, 0)], [(9, 1), (4, 1)], [(4, 2), (9, 2)]]
    assert [*found] == [7, 9, 4] and [each.output for each in found[9].results] == ["90", "91", "92"]
