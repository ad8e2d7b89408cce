import json

import pytest

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.synthesis.personas import built_in, personas_in
from seodang.data.synthesis.seeds import SHAPES, Seed


def seeds_of(tmp_path, *records, **how):
    path = tmp_path / "seeds.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return read(str(path), shapes=SHAPES, **how)


def test_every_shape_of_one_question_and_its_answer_is_a_seed(tmp_path):
    talk = [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "The Han."}]
    for record, wanted in (
        ({"instruction": "Add.", "input": "1 1", "output": "2", "task": "sum"}, ("Add.", "1 1", "2")),
        ({"instruction": "Add.", "output": "2"}, ("Add.", "", "2")),
        ({"prompt": "안녕?", "completion": "그래."}, ("안녕?", "", "그래.")),
        ({"question": "Who?", "answer": "I."}, ("Who?", "", "I.")),
        ({"messages": talk}, ("Name a river.", "", "The Han.")),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, ("Hi", "", "Ho")),
    ):
        [seed] = seeds_of(tmp_path, record)
        assert (seed.instruction, seed.input, seed.output) == wanted and seed.where == "seeds.jsonl line 1"
    assert Seed("Add.", "1 1", "2").question == "Add.\n\n1 1" and Seed("Add.", "", "2").question == "Add."
    [seed] = seeds_of(tmp_path, {"ask": "Who?", "says": "I."}, columns={"instruction": "ask", "output": "says"})
    assert seed.told() == {"instruction": "Who?", "input": "", "output": "I."}


def test_each_instance_of_self_instructs_tasks_is_a_seed(tmp_path):
    task = {"id": "t", "instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "0"}], "is_classification": False}
    seeds = seeds_of(tmp_path, task)
    assert [(seed.instruction, seed.input, seed.output, seed.where) for seed in seeds] == [
        ("Add.", "1 1", "2", "seeds.jsonl line 1, example 1"), ("Add.", "", "0", "seeds.jsonl line 1, example 2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"instruction": "Add.", "input": "1"}, "line 1: the key 'output' is missing (keys found: instruction, input)"),
        ({"prompt": "Add."}, "line 1: the key 'completion' is missing"),
        ({"text": "a", "title": "b"}, "no shape wanted here has the keys text, title: use"),
        ({"instruction": "Add.", "instances": []}, "instances must be a list of {input, output}, got []"),
        ({"instruction": "Add.", "output": "2", "history": [["a", "b"]]}, "history: a seed is one question and its answer"),
        ({"messages": [{"role": "user", "content": "a"}]}, "a seed is one question and its answer, got the turns user"),
        ({"instruction": 3, "output": True}, "output must be a text, got True"),
    ],
)
def test_a_record_that_is_no_seed_is_refused_with_its_line(tmp_path, record, said):
    with pytest.raises(UserError) as caught:
        seeds_of(tmp_path, record)
    assert said in str(caught.value)


def test_personas_come_from_a_file_or_are_put_together(tmp_path):
    lines, records = tmp_path / "people.txt", tmp_path / "people.jsonl"
    lines.write_text("a baker\n\n 의사 \n", encoding="utf-8")
    records.write_text('{"persona": "a baker"}\n{"persona": "의사"}\n', encoding="utf-8")
    assert personas_in(str(lines)) == personas_in(str(records)) == ["a baker", "의사"]
    assert len({*built_in()}) == len(built_in()) == 18 * 7 * 7 and built_in() == built_in()
    records.write_text('{"name": "x"}\n', encoding="utf-8")
    lines.write_text("\n", encoding="utf-8")
    for path, said in ((records, "a persona is a text under the key 'persona' (found: name)"), (lines, "has no persona"), (tmp_path / "no.txt", "there is no such file")):
        with pytest.raises(UserError) as caught:
            personas_in(str(path))
        assert said in str(caught.value)
