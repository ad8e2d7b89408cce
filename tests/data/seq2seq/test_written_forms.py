import datetime
import re
import sys
from collections import Counter

import pytest

from seodang.data.errors import UserError
from seodang.data.seq2seq.written_forms import (
    FRAMES,
    KINDS,
    TASKS,
    WithParticle,
    countries,
    is_held_out,
    record,
    with_article,
    written,
    written_forms,
)

DAY = datetime.date(2024, 3, 5)


@pytest.mark.parametrize(
    ("task", "value", "source", "target"),
    [
        ("iso>ko", DAY, "2024-03-05", "2024년 3월 5일"),
        ("ko>iso", DAY, "2024년 3월 5일", "2024-03-05"),
        ("iso>en", DAY, "2024-03-05", "March 5, 2024"),
        ("en>iso", DAY, "March 5, 2024", "2024-03-05"),
        ("digits>en", 21, "21", "twenty-one"),
        ("en>digits", 21, "twenty-one", "21"),
        ("digits>ko", 21, "21", "이십일"),
        ("ko>digits", 123_456, "십이만 삼천사백오십육", "123456"),
        ("ko>en", (2, "FR"), "우리는 내년에 프랑스로 떠난다.", "We leave for France next year."),
        ("en>ko", (2, "BR"), "We leave for Brazil next year.", "우리는 내년에 브라질로 떠난다."),
        ("en>ko", (9, "NL", "JP"), "The Netherlands and Japan signed an agreement.", "네덜란드와 일본이 협정을 맺었다."),
        ("ko>en", (10, "VN", "KR"), "그녀는 베트남보다 대한민국을 더 잘 안다.", "She knows South Korea better than Vietnam."),
    ],
)
def test_each_task_asks_by_its_name_and_has_one_right_answer(task, value, source, target):
    assert record(task, value) == {"task": task, "source": f"{task}: {source}", "target": target}


def test_particles_go_with_the_syllable_before_them():
    japan, france, brazil = map(WithParticle, ("일본", "프랑스", "브라질"))
    assert f"{japan:은} {japan:이} {japan:을} {japan:과} {japan:으로} {japan}" == "일본은 일본이 일본을 일본과 일본으로 일본"
    assert f"{france:은} {france:이} {france:을} {france:과} {france:으로}" == "프랑스는 프랑스가 프랑스를 프랑스와 프랑스로"
    assert f"{brazil:을} {brazil:으로}" == "브라질을 브라질로"


def test_articles_stand_where_english_has_them():
    named = ["United States", "Solomon Islands", "Philippines", "Dominican Republic", "Bouvet Island", "France", "Heard Island & McDonald Islands"]
    assert [name for name in named if with_article(name) != name] == named[:4] and with_article("Gambia") == "the Gambia"


def test_countries_are_those_of_both_languages_without_parentheses():
    assert len(countries()) == len(set(countries())) > 200 and {"KR", "US", "CI"} <= set(countries()) and not {"HK", "MM"} & set(countries())
    assert not [text for code in countries() for text in (written("ko", (0, code)), written("en", (0, code))) if "(" in text]


def test_what_is_held_out_is_in_no_training_row_of_any_seed():
    train, held = written_forms(8400, 100, seed=0)
    others = written_forms(5000, 0, seed=1)[0]
    assert Counter(each["task"] for each in train) == {task: 300 * share for task, share in TASKS.items()} and Counter(each["task"] for each in held) == dict.fromkeys(TASKS, 100)
    assert len({each["source"] for each in held}) == len(held)
    for tasks in KINDS.values():  # a date that is asked one way is trained in none
        seen = {text for each in (*train, *others) if each["task"] in tasks for text in sides(each)}
        assert not [each for each in held if each["task"] in tasks and seen.intersection(sides(each))]


def sides(each):
    """Source and target of a record, the task's name left out."""
    return each["source"].split(": ", 1)[1], each["target"]


def test_one_of_ten_values_is_held_out_and_no_small_number():
    assert not [number for number in range(100) if is_held_out(number)]
    assert sum(map(is_held_out, range(1000, 11_000))) == pytest.approx(1000, abs=100)
    days = [datetime.date(1900, 1, 1) + datetime.timedelta(day) for day in range(10_000)]
    assert sum(map(is_held_out, days)) == pytest.approx(1000, abs=100)


def test_every_country_is_trained_in_both_directions_and_all_lengths_of_numbers():
    train, _ = written_forms(1500, 0, tasks={"ko>en": 1, "en>ko": 1, "digits>en": 1})
    for task in ("ko>en", "en>ko"):
        text = "\n".join(each["source"] + each["target"] for each in train if each["task"] == task)
        assert not [code for code in countries() if not all(re.search(rf"\b{re.escape(name(form, code))}", text) for form in ("ko", "en"))]
    lengths = Counter(len(each["source"].split()[1]) for each in train if each["task"] == "digits>en")
    assert set(lengths) == {1, 2, 3, 4, 5, 6} and all(lengths[digits] > 70 for digits in (2, 3, 4, 5, 6))


def test_numbers_have_the_digits_asked_for_as_many_of_each():
    train, held = written_forms(900, 60, tasks={"digits>en": 1}, digits=(2, 5, 9))
    lengths = Counter(len(each["source"].split()[1]) for each in train)
    assert lengths[1] + lengths[2] + lengths[5] + lengths[9] == 900 and all(250 < count < 350 for count in (lengths[1] + lengths[2], lengths[5], lengths[9]))
    assert {len(each["source"].split()[1]) for each in held} == {5, 9}
    assert record("ko>digits", 123_456_789) == {"task": "ko>digits", "source": "ko>digits: 일억 이천삼백사십오만 육천칠백팔십구", "target": "123456789"}
    there = sum(map(is_held_out, range(100, 1000)))
    held = written_forms(1, there, tasks={"digits>ko": 1}, digits=(2, 3))[1]
    assert sorted(int(each["source"].split()[1]) for each in held) == [number for number in range(100, 1000) if is_held_out(number)]
    assert written_forms(1, 5, tasks={"ko>iso": 1}, digits=(2,))[1]  # dates have none


@pytest.mark.parametrize(
    ("digits", "told"),
    [((), r"2 to 12 digits, got \[\]"), ((1, 3), r"got \[1, 3\]"), ((13,), r"got \[13\]"), ((2,), "of numbers of 2 digits 0 are held out, fewer than 500"), ((2, 3), "of 2 and 3 digits")],
)
def test_digits_that_numbers_cannot_have_or_too_few_are_held_out_of_are_told(digits, told):
    with pytest.raises(UserError, match=told):
        written_forms(1, 500, tasks={"digits>ko": 1}, digits=digits)


def name(form, code):
    """A country's name without its article, out of a sentence that it stands in alone."""
    before, after = FRAMES[0][form == "en"].split("{a}")
    return written(form, (0, code)).removeprefix(before).removesuffix(after).removeprefix("the ")


def test_the_same_seed_gives_the_same_rows_and_shares_are_kept():
    some = {"digits>ko": 3, "ko>iso": 1}
    assert written_forms(40, 5, seed=3, tasks=some) == written_forms(40, 5, seed=3, tasks=some)
    train = written_forms(40, 5, seed=3, tasks=some)[0]
    assert train != written_forms(40, 5, seed=4, tasks=some)[0] and Counter(each["task"] for each in train) == {"digits>ko": 30, "ko>iso": 10}


@pytest.mark.parametrize(
    ("count", "heldout", "tasks", "told"),
    [(0, 1, TASKS, "got 0 and 1"), (1, 5001, TASKS, "5,000"), (1, 0, {"ko>fr": 1}, "no task 'ko>fr'"), (1, 0, {"ko>en": 0}, "above 0"), (1, 0, {}, "above 0")],
)
def test_what_cannot_be_made_is_told(count, heldout, tasks, told):
    with pytest.raises(UserError, match=told):
        written_forms(count, heldout, tasks=tasks)


def test_a_missing_library_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(UserError, match=r"num2words, which is not installed: pip install 'seodang\[demo\]'"):
        written_forms(1, 0, tasks={"digits>ko": 1})
