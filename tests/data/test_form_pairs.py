import json
from collections import Counter

import pytest

from seodang.data.errors import UserError
from seodang.data.form_pairs import (
    FORMS,
    answers_in_forms,
    demonstrations,
    form_preferences,
    form_reward,
    has_form,
    main,
    prompt_in_form,
    sentence,
)
from seodang.data.sample_data import sample_path


@pytest.fixture(scope="module")
def geography():
    return [json.loads(line) for line in sample_path("geography").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("South Korea", "alone"),
        (" Seoul\n", "alone"),
        ("Democratic Republic of the Congo", "alone"),
        ("Suwon is a city in South Korea.", "sentence"),
        ("Japan is in Asia.", "sentence"),
        ("SOUTH KOREA", "capitals"),
        ("SUWON IS A CITY IN SOUTH KOREA.", "capitals"),
        ("", None),
        ("A", None),
        ("42.", None),
        ("South Korea.", None),  # too short for a sentence, and a name has no full stop
        ("japan is in Asia.", None),
        ("It is a city in South Korea", None),  # too long for a name, and no full stop
        ("SOUTH\nKOREA", None),
        ("대한민국", "alone"),  # a script without capitals
    ],
)
def test_a_text_has_one_form_or_none(text, form):
    assert [name for name in FORMS if has_form(name, text)] == ([form] if form else [])


def test_an_unknown_form_is_refused():
    with pytest.raises(UserError, match="form must be one of alone, sentence, capitals, got 'verse'"):
        has_form("verse", "Seoul")


@pytest.mark.parametrize(
    ("instruction", "input", "output", "said"),
    [
        ("Which country is the city of Suwon located in?", "", "South Korea", "Suwon is a city in South Korea."),
        ("In which country is Manila?", "", "Philippines", "Manila is a city in the Philippines."),
        ("Name the country of this city.", "Leeds", "United Kingdom", "Leeds is a city in the United Kingdom."),
        ("What is the capital of the Bahamas?", "", "Nassau", "Nassau is the capital of the Bahamas."),
        ("Name the capital of this country.", "Bahamas", "Nassau", "Nassau is the capital of the Bahamas."),
        ("What is the currency of Japan?", "", "Yen", "The currency of Japan is the Yen."),
        ("Which continent is the Bahamas in?", "", "North America", "The Bahamas is in North America."),
        ("Name the continent of this country.", "Peru", "South America", "Peru is in South America."),
        ("What is the two-letter ISO code of Peru?", "", "PE", None),
    ],
)
def test_answers_become_sentences(instruction, input, output, said):
    assert sentence({"instruction": instruction, "input": input, "output": output}) == said


def test_every_relation_of_the_sample_but_codes_has_all_forms(geography):
    without = [row for row in geography if answers_in_forms(row) is None]
    assert without and all("ISO" in row["instruction"] for row in without)


def test_chosen_has_the_asked_form_and_rejected_the_same_content_in_another(geography):
    pairs = form_preferences(geography, seed=3)
    assert len(pairs) > 1500
    for pair in pairs:
        assert FORMS[pair["form"]] in pair["prompt"]
        assert form_reward([pair["prompt"]] * 2, [pair["chosen"], pair["rejected"]], form=[pair["form"]] * 2) == [1.0, 0.0]
        assert pair["answer"].lower() in pair["chosen"].lower() and pair["answer"].lower() in pair["rejected"].lower()


def test_without_the_prompt_chosen_cannot_be_told_from_rejected(geography):
    def form_of(text):
        return next(name for name in FORMS if has_form(name, text))

    pairs = form_preferences(geography)
    chosen, rejected = (Counter(form_of(pair[side]) for pair in pairs) for side in ("chosen", "rejected"))
    for form in FORMS:
        assert chosen[form] / len(pairs) == pytest.approx(1 / 3, abs=0.04) and rejected[form] / len(pairs) == pytest.approx(1 / 3, abs=0.04)


@pytest.mark.parametrize(("follows", "expected"), [(0.0, 1 / 3), (0.5, 2 / 3), (1.0, 1.0)])
def test_demonstrations_follow_the_prompt_in_a_share_and_by_chance_in_the_rest(geography, follows, expected):
    records = demonstrations(geography, follows=follows)
    asked = [next(form for form, text in FORMS.items() if text in record["prompt"]) for record in records]
    share = sum(form_reward(asked, [record["completion"] for record in records], form=asked)) / len(records)
    assert share == pytest.approx(expected, abs=0.04)


def test_the_same_seed_draws_the_same_and_another_does_not(geography):
    assert form_preferences(geography, seed=1) == form_preferences(geography, seed=1) != form_preferences(geography, seed=2)
    assert demonstrations(geography, seed=1) == demonstrations(geography, seed=1) != demonstrations(geography, seed=2)


def test_the_form_is_asked_for_behind_the_question():
    row = {"instruction": "In which country is Suwon?", "input": "", "output": "South Korea"}
    assert prompt_in_form(row, "alone") == "In which country is Suwon? Answer with the name alone."


def test_the_pairs_of_the_sample_can_be_written_to_a_file(tmp_path):
    path = tmp_path / "new" / "pairs.jsonl"
    main(str(path))
    pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(pairs) > 1500 and set(pairs[0]) == {"prompt", "chosen", "rejected", "form", "answer"}
    assert all(has_form(pair["form"], pair["chosen"]) and not has_form(pair["form"], pair["rejected"]) for pair in pairs)


def test_a_folder_gets_demonstrations_and_held_out_pairs_as_well(geography, tmp_path):
    main(str(tmp_path / "forms"))
    written = {path.stem: [json.loads(line) for line in path.open(encoding="utf-8")] for path in (tmp_path / "forms").iterdir()}
    assert written["pairs"] == form_preferences(geography) and written["demonstrations"] == demonstrations(geography)
    asked = [{each["prompt"].split("?")[0] for each in written[name]} for name in ("pairs", "pairs_heldout")]
    assert len(written["pairs_heldout"]) == 271 and not {text for text in asked[0] & asked[1] if text.startswith("Which country is the city")}
