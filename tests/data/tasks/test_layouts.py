"""Records of several tasks as dialogues: what each layout shows and teaches, to the letter, and what is refused."""

import json
from collections import Counter

import pytest

from seodang.data import IGNORE_INDEX, UserError, prepare, read, task_dialogues
from seodang.data.formats import SHAPES, to_example, triplet
from seodang.data.seq2seq.records import one_exchange, seq2seq_shapes
from seodang.data.tasks.layouts import LAYOUTS, Layout, TaskShapes
from seodang.data.tasks.records import task_record
from seodang.data.tasks.triplets import task_triplets

RECORD = {
    "input": "Kim met Lee.",
    "tasks": [
        {"name": "mood", "instruction": "Which mood?", "output": "plain"},
        {"name": "names", "instruction": "List the names.", "output": ["Kim", "Lee"]},
        {"instruction": "Translate.", "output": "김이 이를 만났다."},
    ],
}


def told(layout, record=RECORD, **how) -> list[list[tuple[str, str]]]:
    return [[(each["role"], each["content"]) for each in dialogue.messages] for dialogue in task_dialogues(record, layout, **how)]


def test_together_is_one_prompt_with_all_tasks_and_one_answer_with_all_results():
    [[asked, answered]] = told("together")
    assert asked == (
        "user",
        "Kim met Lee.\n\nDo all of these tasks with the text above.\nmood: Which mood?\nnames: List the names.\ntask 3: Translate.\n\n"
        "Answer with one JSON object whose keys are the names of the tasks.",
    )
    assert answered == ("assistant", '{"mood": "plain", "names": ["Kim", "Lee"], "task 3": "김이 이를 만났다."}')
    [[_, keyed]] = told("together", task_format="keyed")
    assert keyed[1] == 'mood: plain\nnames: ["Kim", "Lee"]\ntask 3: 김이 이를 만났다.'


def test_sequence_is_a_dialogue_in_which_each_task_follows_the_result_before():
    [turns] = told("sequence")
    assert [role for role, _ in turns] == ["user", "assistant"] * 3
    assert [text for _, text in turns] == [
        "Kim met Lee.\n\nWhich mood?", "plain", "List the names.", '["Kim", "Lee"]', "Translate.", "김이 이를 만났다.",
    ]  # fmt: skip


def test_cumulative_is_a_prompt_a_task_with_the_earlier_results_in_it():
    first, second, third = told("cumulative", task_format="keyed")
    assert first == [("user", "Kim met Lee.\n\nWhich mood?"), ("assistant", "plain")]
    assert second == [("user", "Kim met Lee.\n\nWhich mood?\n\nmood: plain\n\nList the names."), ("assistant", '["Kim", "Lee"]')]
    assert third[0][1].endswith('\n\nList the names.\n\nnames: ["Kim", "Lee"]\n\nTranslate.') and third[0][1].startswith(second[0][1])
    [_, [(_, json_form), _], _] = told("cumulative")
    assert json_form == 'Kim met Lee.\n\nWhich mood?\n\n{"mood": "plain"}\n\nList the names.'
    [_, [(_, text_form), _], _] = told("cumulative", task_format="text")
    assert text_form == "Kim met Lee.\n\nWhich mood?\n\n### mood\nplain\n\nList the names."


def test_apart_is_what_the_triplets_are():
    triplets = [{**each, "output": each["output"] if isinstance(each["output"], str) else json.dumps(each["output"])} for each in task_triplets(RECORD)]
    assert [dialogue.messages for dialogue in task_dialogues(RECORD, "apart")] == [triplet(each).messages for each in triplets]
    assert told("apart")[1] == [("user", "List the names.\n\nKim met Lee."), ("assistant", '["Kim", "Lee"]')]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_prompt_of_a_task_is_the_beginning_of_what_is_taught(layout):
    record, how = task_record(RECORD | {"system": "Be short."}), Layout(layout)
    done = [(task, task.output) for task in record.tasks]
    prompts = [how.all_asked(record)] if layout == "together" else [how.one_asked(record, task, done[:at]) for at, task in enumerate(record.tasks)]
    taught = how.dialogues(record)
    for at, prompt in enumerate(prompts):
        assert prompt[0] == {"role": "system", "content": "Be short."}
        assert (taught[0] if layout == "sequence" else taught[at]).messages[: len(prompt)] == prompt


def test_the_words_around_tasks_are_in_the_language_of_the_instructions_or_in_the_one_that_is_asked_for():
    korean = {"input": "Kim met Lee.", "tasks": [{"name": "기분", "instruction": "기분을 고르라 (mood).", "output": "보통"}]}
    [[(_, asked), _]] = told("together", korean)
    assert asked == "Kim met Lee.\n\n위 글로 다음 과제를 모두 하십시오.\n기분: 기분을 고르라 (mood).\n\n과제 이름을 키로 하는 JSON 객체 하나로 답하십시오."
    assert "Do all of these tasks" in told("together", korean, task_language="en")[0][0][1]
    assert told("together", {**korean, "input": ""}, task_format="text")[0][0][1] == (
        "다음 과제를 모두 하십시오.\n기분: 기분을 고르라 (mood).\n\n과제마다 ### 과제 이름 제목 아래에 답하십시오."
    )
    with pytest.raises(UserError, match="task_language must be en or ko, got 'fr'"):
        told("together", task_language="fr")


@pytest.mark.parametrize("layout, rows", [("together", 1), ("sequence", 1), ("cumulative", 3), ("apart", 3)])
def test_results_alone_are_learned_through_the_ordinary_path(layout, rows, tiny_tokenizer):
    examples = task_dialogues(RECORD, layout)
    made, _ = prepare(examples, tiny_tokenizer, max_length=4096)
    assert len(made) == rows
    learned = [tiny_tokenizer.decode([id for id in row["labels"] if id != IGNORE_INDEX]) for row in made]
    ended = [text for dialogue in examples for text in [message["content"] for message in dialogue.messages if message["role"] == "assistant"]]
    spelled = [tiny_tokenizer.decode(tiny_tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ended]
    assert "".join(learned) == "".join(f"{text}<|im_end|>" for text in spelled)


def test_records_of_several_tasks_stand_in_files_beside_others_and_are_counted(tmp_path):
    several, plain = tmp_path / "several.jsonl", tmp_path / "plain.csv"
    several.write_text(json.dumps(RECORD) + "\n" + json.dumps(RECORD | {"tasks": json.dumps(RECORD["tasks"][:1])}) + "\n", encoding="utf-8")
    plain.write_text("instruction,output\nSay a.,a\n", encoding="utf-8")
    shapes = TaskShapes(Layout("cumulative"), SHAPES)
    found = list(read([several, plain], shapes=shapes))
    assert Counter(each.where.partition(" ")[0] for each in found) == {"several.jsonl": 4, "plain.csv": 1}
    assert [each.where for each in found[2:4]] == ["several.jsonl line 1, example 3", "several.jsonl line 2"]
    assert shapes.line() == "tasks           cumulative, 4 dialogues of 2 records"
    with pytest.raises(UserError, match="tasks apart: no record has several tasks"):
        TaskShapes(Layout("apart"), SHAPES).line()


def test_an_encoder_decoder_reads_the_prompt_and_writes_the_result(tmp_path):
    path = tmp_path / "several.jsonl"
    path.write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
    found = list(read(path, shapes=TaskShapes(Layout("cumulative"), seq2seq_shapes(), one_exchange)))
    assert [(each.source, each.target) for each in found[:1]] == [([{"role": "user", "content": "Kim met Lee.\n\nWhich mood?"}], "plain")]
    assert [each.target for each in found[1:]] == ['["Kim", "Lee"]', "김이 이를 만났다."]


ONE = {"instruction": "?", "output": "x"}


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"tasks": []}, "tasks must be a list of {instruction, output}, one at least, got \\[\\]"),
        ({"tasks": "so"}, "tasks must be a list"),
        ({"tasks": None}, "the key 'tasks' holds nothing"),
        ({"tasks": [ONE, "so"]}, "tasks\\[1\\] must be an object with instruction and output, got 'so'"),
        ({"tasks": [{"instruction": "?"}]}, "tasks\\[0\\]: the key 'output' is missing"),
        ({"tasks": [{**ONE, "instruction": " "}]}, "tasks\\[0\\]: the instruction is empty"),
        ({"tasks": [{**ONE, "instruction": 3}]}, "tasks\\[0\\]: instruction must be a text, got 3"),
        ({"tasks": [ONE, {**ONE, "name": "task 1"}]}, "two tasks are called 'task 1'"),
        *[({"tasks": [{**ONE, "name": name}]}, "could not be read back") for name in ("a:b", "a\nb", " a", "", "a\u2028")],
        ({"tasks": [{**ONE, "output": {"a": float("nan")}}]}, "tasks\\[0\\]: the output is no JSON"),
        ({"tasks": [{**ONE, "output": {1: "a"}}]}, "tasks\\[0\\]: the output {1: 'a'} is no JSON"),
        ({"input": 3}, "input must be a text, got 3"),
        ({"input": None}, "the key 'input' holds nothing"),
    ],
)
def test_a_record_that_could_not_be_read_back_is_refused_with_its_task(changed, message):
    with pytest.raises(UserError, match=message):
        task_dialogues({"input": "x", "tasks": [ONE], **changed}, "together")


def test_the_input_must_be_there_and_the_layout_be_named():
    with pytest.raises(UserError, match="the key 'input' is missing \\(keys found: tasks\\)"):
        task_dialogues({"tasks": [ONE]}, "together")
    with pytest.raises(UserError, match="tasks must be together, sequence, cumulative or apart, got 'both'"):
        task_dialogues(RECORD, "both")
    with pytest.raises(UserError, match="--tasks together, sequence, cumulative or apart"):
        to_example(RECORD)
