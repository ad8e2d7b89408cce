"""Tasks answered by a model in rounds: what asking one prompt after another by hand gives, with a failure that is its task's alone."""

import json

import pytest

from seodang.data import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.engine.several_tasks import generate_tasks

STOPS = SamplingParams(max_new_tokens=24, stop=["a", "e", "o", "t", "3"], temperature=1.0, seed=3)
RECORDS = [
    {"input": text, "tasks": [{"name": name, "instruction": f"{name}?"} for name in names]} for text, names in (("Kim.", "xyz"), ("Lee!", "xy"), ("", "xyz"))
]
ESCAPED = str.maketrans({"\n": "\\n", "\r": "\\r", "\\": "\\\\"})


@pytest.fixture
def model(tiny):
    return tiny("llama", max_position_embeddings=1024)


def by_hand(model, tokenizer, record, layout) -> list[str | None]:
    """The results of a record, None where cut off, each asked by itself."""
    done, found = [], []
    for task in record["tasks"]:
        if layout == "sequence":
            turns = [text for pair in done for text in pair] + [task["instruction"]]
            turns[0] = "\n\n".join(filter(None, (record["input"], turns[0])))
            prompt = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]
        else:
            earlier = [text for (instruction, result), name in zip(done, names(found), strict=True) for text in (instruction, f"{name}: {result.translate(ESCAPED)}")]
            prompt = [{"role": "user", "content": "\n\n".join(filter(None, (record["input"], *earlier, task["instruction"])))}]
        [result] = generate(model, tokenizer, [prompt], STOPS)
        whole = result.finish_reason != "length"
        found.append((task["name"], result.text if whole else None))
        if whole:
            done.append((task["instruction"], result.text))
    return [text for _, text in found]


def names(found) -> list[str]:
    return [name for name, text in found if text is not None]


@pytest.mark.parametrize("layout", ["sequence", "cumulative"])
def test_rounds_give_what_each_prompt_gives_alone(layout, model, tiny_tokenizer):
    found = generate_tasks(model, tiny_tokenizer, RECORDS, layout, "keyed", STOPS, max_rows=2)
    expected = [by_hand(model, tiny_tokenizer, record, layout) for record in RECORDS]
    assert [[each.output for each in record.results] for record in found] == expected
    assert any(text is not None for texts in expected for text in texts)


def test_a_grammar_holds_the_answer_to_all_tasks_to_their_names(model, tiny_tokenizer):
    records = [{**record, "tasks": [{**task, "output": "text"} for task in record["tasks"]]} for record in RECORDS]
    found = generate_tasks(model, tiny_tokenizer, records, "together", params=SamplingParams(max_new_tokens=300, temperature=1.0, seed=1))
    whole = [each for each in found if all(result.error is None for result in each.results)]
    assert whole  # a random model writes no such object by itself
    for each in whole:
        assert json.loads(each.answers[0].text) == {result.name: result.output for result in each.results}
    free = generate_tasks(model, tiny_tokenizer, records, "together", params=SamplingParams(max_new_tokens=40, seed=1), grammar=False)
    assert all(result.error for each in free for result in each.results)


def test_a_prompt_that_is_refused_is_its_tasks_error_and_loses_no_other(model, tiny_tokenizer):
    long = {"input": "Kim.", "tasks": [RECORDS[0]["tasks"][0], {"name": "long", "instruction": "x" * 2000}, RECORDS[0]["tasks"][1]]}
    found, alone = (generate_tasks(model, tiny_tokenizer, records, "cumulative", "keyed", STOPS) for records in ([long, RECORDS[1]], [RECORDS[0], RECORDS[1]]))
    assert "1024" in found[0].results[1].error
    assert [found[0].results[0], found[0].results[2]] == alone[0].results[:2] and found[1] == alone[1]
    with pytest.raises(UserError, match="1024"):  # nothing could be asked at all
        generate_tasks(model, tiny_tokenizer, [{"input": "x" * 2000, "tasks": RECORDS[0]["tasks"]}], "sequence", params=STOPS)


def test_bad_records_and_layouts_are_refused(model, tiny_tokenizer):
    with pytest.raises(UserError, match="tasks must be together"):
        generate_tasks(model, tiny_tokenizer, RECORDS, "all")
    with pytest.raises(UserError, match="the key 'input' is missing"):
        generate_tasks(model, tiny_tokenizer, [{"tasks": []}, {"tasks": [{"instruction": "?"}]}][1:], "apart")
