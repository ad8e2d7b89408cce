"""Half characters are refused where texts enter, by their place."""

import json

import pytest

from seodang.data import PromptExample, prepare, prepare_preferences, prepare_prompts, prompt_ids, read, text_ids
from seodang.data.errors import UserError
from seodang.data.formats import Dialogue, Text
from seodang.data.preferences import PROMPT_SHAPES, RankedPreference
from seodang.data.surrogates import refuse_surrogates

HALF = "수\ud800"


@pytest.mark.parametrize(
    "value, place",
    [
        (HALF, "here has the lone surrogate U+D800 as character 2: it is half a character"),
        ({"a": [{"b": "fine"}, {"b": ("fine", HALF)}]}, "here: a[1].b[1] has the lone surrogate U+D800 as character 2"),
        ({"a": {HALF: 1}}, "here: a key of a has the lone surrogate U+D800"),
        ("수원\udcec", "here has the byte 0xEC, which is not UTF-8, as character 3: convert the text to UTF-8"),
    ],
    ids=ascii,
)
def test_the_place_of_a_half_character_is_named(value, place):
    with pytest.raises(UserError) as refused:
        refuse_surrogates(value, "here")
    assert str(refused.value).startswith(place)


def test_whole_characters_and_what_is_no_text_pass():
    refuse_surrogates({"a": ["서울 👨‍👩‍👧 \U0010ffff \ufffd \ue000", 3, None, 0.5, b"\xff"]})


def test_a_record_read_from_a_file_is_refused_by_its_line(tmp_path):
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n\n" + json.dumps({"instruction": "a", "output": HALF}) + "\n")
    with pytest.raises(UserError, match=r"^talks.jsonl line 3: output has the lone surrogate U\+D800 as character 2"):
        read(path)
    path.write_text(json.dumps({"prompt": "a", "answer": HALF}) + "\n")
    with pytest.raises(UserError, match=r"^talks.jsonl line 1: answer has"):  # a column for the rewards
        read(path, shapes=PROMPT_SHAPES)


def test_examples_made_by_hand_are_refused_too(tiny_tokenizer):
    user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": HALF}
    with pytest.raises(UserError, match=r"^mine: messages\[1\].content has the lone surrogate"):
        prepare([Dialogue([user, answer], where="mine")], tiny_tokenizer, max_length=64)
    with pytest.raises(UserError, match="^text has the lone surrogate"):
        prepare([Text(HALF)], tiny_tokenizer, max_length=64)
    with pytest.raises(UserError, match=r"^prompt\[0\].content has the lone surrogate"):
        prepare_prompts([PromptExample([{"role": "user", "content": HALF}])], tiny_tokenizer, max_prompt_length=64)
    with pytest.raises(UserError, match=r"^answers\[0\].content has the lone surrogate"):
        prepare_preferences([RankedPreference([user], [answer, {**answer, "content": "b"}], [0, 1])], tiny_tokenizer, max_length=64)


def test_texts_given_for_their_ids_are_refused_too(tiny_tokenizer):
    for literal in (False, True):
        with pytest.raises(UserError, match="^the text has the lone surrogate U\\+D800 as character 2"):
            text_ids(tiny_tokenizer, HALF, literal)
        with pytest.raises(UserError, match="^the prompt has the lone surrogate U\\+D800 as character "):
            prompt_ids(tiny_tokenizer, [{"role": "user", "content": HALF}], literal=literal)
