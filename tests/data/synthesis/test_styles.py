import json
from random import Random

import pytest

from seodang.data.errors import UserError
from seodang.data.synthesis import styles
from seodang.data.synthesis.seeds import FIELDS, Seed
from seodang.data.synthesis.styles import said_in, schema_of

SEEDS = [Seed(f"Do task {letter}.", "" if letter in "ab" else f"in {letter}", f"out {letter}", f"line {letter}") for letter in "abcdefghij"]
MADE = [Seed(f"Made {n}.", "", f"says {n}", f"attempt {n}") for n in range(5)]


def test_self_instruct_shows_six_seeds_and_two_records_made_before():
    style = styles.self_instruct(SEEDS, 8, 2, "ko")
    for attempt in range(20):
        ask = style.ask(attempt, Random(attempt), MADE)
        assert len(ask.shown) == 8 and len(ask.made) == 2 and {each.where for each in ask.made} <= {each.where for each in MADE}
        assert len({each.where for each in ask.shown}) == 8 and sum(each in SEEDS for each in ask.shown) == 6
        assert [json.loads(line) for line in ask.prompt.split("\n") if line.startswith("{")] == [each.told() for each in ask.shown]
        assert "Write it in Korean." in ask.prompt
    assert style.ask(0, Random(7), MADE) == style.ask(0, Random(7), MADE) != style.ask(0, Random(8), MADE)
    first = style.ask(0, Random(0), [])
    assert len(first.shown) == 8 and not first.made  # nothing was made yet: seeds in their place
    assert len(style.ask(0, Random(0), MADE[:1]).made) == 1


def test_personas_ask_one_after_another():
    style = styles.persona(["a baker", "a nurse"], [], 8, 2)
    asks = [style.ask(attempt, Random(attempt), []) for attempt in range(3)]
    assert [ask.persona for ask in asks] == ["a baker", "a nurse", "a baker"] and "You are a nurse." in asks[1].prompt
    assert len(styles.persona(["a baker"], SEEDS, 3, 1).ask(0, Random(0), MADE).shown) == 3


REVIEWS = [Seed("Good or bad?", f"{word} {thing}", output, f"line {word} {thing}") for output, word in (("+", "fine"), ("-", "dull")) for thing in "abcd"]


def test_the_output_is_given_and_its_input_is_found():
    style = styles.output_first(REVIEWS, 3, 1, "ko", {"+": "a review by one who liked it"})
    for attempt in range(8):
        output, word = [("+", "fine"), ("-", "dull")][attempt % 2]
        ask = style.ask(attempt, Random(attempt), [Seed("Good or bad?", "made", "+", "attempt 1")])
        lines = [json.loads(line) for line in ask.prompt.split("\n") if line.startswith("{")]
        assert lines == [{"input": each.input} for each in ask.shown] and {each.output for each in (*ask.shown, ask.source)} == {output}
        assert len(ask.shown) == 3 and len(ask.made) == (output == "+")
        what = "a review by one who liked it" if output == "+" else 'the input of a task whose right output is "-"'
        assert ask.prompt.startswith(f"Each line below is {what}. Continue") and "Write it in Korean." in ask.prompt
        assert style.record(ask, {"input": " new "}, "attempt 9") == Seed("Good or bad?", "new", output, "attempt 9")
        # asked again it is shown records of every output: those of one would give the answer away
        assert sorted(each.output for each in ask.beside) == ["+", "-"] and "made" not in {each.input for each in ask.beside}
        again = [json.loads(line) for line in styles.again_prompt(Seed("Good or bad?", "new", output), ask).split("\n") if line.startswith("{")]
        assert again == [each.told() for each in ask.beside]
    bare = styles.output_first([Seed(f"Say {n}.", "", "yes") for n in range(4)], 3, 0)
    ask = bare.ask(0, Random(0), [])
    assert bare.fields == ("instruction",) and bare.record(ask, {"instruction": "Agree."}, "") == Seed("Agree.", "", "yes")


@pytest.mark.parametrize(
    ("seeds", "meanings", "message"),
    [
        ([*REVIEWS, Seed("Say yes.", "", "+")], {}, "8 of 9 seeds have an input: give seeds that all have one, or none"),
        (REVIEWS, {"*": "nothing"}, r"no seed has the output '\*': there are '\+', '-'"),
    ],
)
def test_seeds_that_say_no_output_first_are_refused(seeds, meanings, message):
    with pytest.raises(UserError, match=message):
        styles.output_first(seeds, 3, 0, None, meanings)


def test_a_record_said_anew_keeps_what_was_not_to_be_written():
    style = styles.rephrase(SEEDS, ("instruction",))
    ask = style.ask(12, Random(0), [])
    assert ask.source == SEEDS[2] and json.dumps(SEEDS[2].told()) in ask.prompt and 'Say the "instruction" of this task' in ask.prompt
    assert style.record(ask, {"instruction": " Try c. "}, "attempt 13") == Seed("Try c.", "in c", "out c", "attempt 13")

    style = styles.translate(SEEDS, FIELDS, "en", "ko")
    said = {"instruction": "a를 하라.", "input": "넣어라", "output": "밖"}
    ask = style.ask(0, Random(0), [])
    assert "from English to Korean" in ask.prompt
    assert style.record(ask, said, "attempt 1") == Seed("a를 하라.", "", "밖", "attempt 1")  # what has no input gets none
    assert style.record(style.ask(2, Random(0), []), said, "") == Seed("a를 하라.", "넣어라", "밖")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"output": "a", "input": "b"}', {"output": "a"}), (' {"output": "a"}\n', {"output": "a"}), ('{"output": "a', None), ("a", None), ('["output"]', None),
        ('{"output": 3}', None), ('{"input": "a"}', None), ('{"output": "\\ud800"}', None), ("[" * 5000, None),
    ],
)  # fmt: skip
def test_what_is_no_object_of_the_texts_is_no_record(text, found):
    assert said_in(text, ["output"]) == found


def test_the_schema_bounds_the_texts():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(schema_of(FIELDS, 5))
    valid = lambda **texts: jsonschema.Draft202012Validator(schema).is_valid({"instruction": "a", "input": "", "output": "b", **texts})
    assert valid() and valid(output="가나다라마")
    assert not valid(output="가나다라마바") and not valid(instruction="") and not valid(more="x") and not valid(output=None)
    assert json.loads(schema_of(["output"], 0))["properties"] == {"output": {"type": "string"}}
