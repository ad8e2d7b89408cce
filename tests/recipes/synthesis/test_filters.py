"""Each filter on candidates whose fate is worked out by hand."""

import json

import pytest

from seodang.data.errors import UserError
from seodang.data.synthesis.seeds import FIELDS, Seed
from seodang.data.synthesis.styles import Ask
from seodang.recipes.options.decoding import SpeakingModel
from seodang.recipes.synthesis.asking import Said
from seodang.recipes.synthesis.filters import Filtering, filters_of
from seodang.recipes.synthesis.options import Making
from seodang.recipes.synthesis.sifting import Candidate, Filter, Tally, of_each

SEEDS = [Seed("Which country is the old city of Suwon located in today?", "", "It is located in South Korea.", "line 1")]


class Answering:
    """Stands in for who is asked: answers by a function of the prompt."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def ask(self, kind, prompts, first, **settings):
        self.asked.append((kind, prompts, first, settings))
        return [Said(self.answer(prompt), None, 0, 0) for prompt in prompts]


def candidates(*records, source=None):
    return [Candidate(n, Ask("?", source=source), "", n, Seed(*texts, where=f"attempt {n + 1}")) for n, texts in enumerate(records)]


def filters(tmp_path, fields=FIELDS, seeds=SEEDS, asker=None, making=None, **filtering):
    how = {"output": str(tmp_path / "made.jsonl"), "count": 1, "data": ["seeds.jsonl"], **(making or {})}
    found = filters_of(Filtering(**{"near_duplicates": 0, **filtering}), Making(**how), fields, seeds, asker, SpeakingModel())
    return {each.name: each for each in found}


def judged(filter, given):
    return [*filter.judge(given)]


def stays(filter, *records, **how):
    return [stays for _, stays in judged(filter, candidates(*records, **how))]


def test_what_each_filter_looked_at_and_dropped_is_counted_in_their_order():
    long, odd = (Filter(name, f"what is {name}", of_each(check)) for name, check in (
        ("long", lambda each: (len(each.record.output), len(each.record.output) < 4)), ("odd", lambda each: (None, each.attempt % 2 == 0)),
    ))  # fmt: skip
    tally, given = Tally([long, odd]), candidates(*(("a", "", "x" * n) for n in range(1, 7)))
    assert [each.attempt for each in tally.sift(given)] == [0, 2]
    assert [each.dropped for each in given] == [None, "odd", None, "long", "long", "long"]
    assert given[4].values == {"long": 5} and given[1].values == {"long": 2}
    tally.sift(candidates(("a", "", "xxxx")))
    assert [line.split()[:4] for line in tally.lines()] == [["filter", "looked", "at", "dropped"], ["long", "7", "4", "3"], ["odd", "3", "1", "2"]]
    assert tally.most() == "long"


def test_lengths(tmp_path):
    records = [("a b c", "", "x"), ("a b", "", "x"), ("a b c", "", ""), ("a b c d", "", "x"), ("a b c", "", "xxxx"), ("가 나 다", "", "x"), ("", "", "x"), ("a b c", "i" * 30, "x")]
    length = filters(tmp_path, max_words=3, max_output_chars=3, making={"max_chars": 20})["length"]
    assert stays(length, *records) == [True, False, False, False, False, True, False, False]
    assert stays(filters(tmp_path, making={"style": "rephrase"})["length"], *records[:2]) == [True, True]  # a given record's words are its own
    assert "3 to 150 words of instruction and 1 or more characters" in filters(tmp_path)["length"].drops


def test_language_by_script(tmp_path, capsys):
    records = [("서울은 어디에?", "", "한국"), ("서울은 where?", "", "in Korea"), ("12?", "", "3")]
    language = filters(tmp_path, making={"language": "ko"})["language"]
    assert judged(language, candidates(*records)) == [(1.0, True), (round(3 / 15, 4), False), (0.0, False)]
    assert "language" not in filters(tmp_path, making={"language": "Klingon"}) and "Klingon is not checked" in capsys.readouterr().err


def test_words_that_seeds_or_evaluation_records_have_too(tmp_path):
    evaluation = tmp_path / "eval.jsonl"
    evaluation.write_text(json.dumps({"question": "What is the name of the longest river of Korea?", "answer": "Nakdong"}) + "\n" + '{"question": "who made it here", "answer": ""}\n', encoding="utf-8")
    found = filters(tmp_path, eval_data=[str(evaluation)])
    copied = ("Which country is the old city of Suwon located in?", "", "It is said to be Korea by those who know.")  # 10 of 20 words stand in the seed in one run
    fresh = ("Which country is the old city of Busan located in?", "", "South Korea.")
    assert judged(found["seed overlap"], candidates(copied, fresh)) == [(0.5, False), (0.0, True)]
    asked = ("What is the name of the longest river of Korea?", "", " ".join(f"w{n}" for n in range(40)))  # 10 of 50 words, but 10 of the record's 11
    short = ("Tell me who made it here and why.", "", "Nobody knows.")
    assert judged(found["eval overlap"], candidates(asked, short, fresh)) == [(round(10 / 11, 4), False), (1.0, False), (0.0, True)]
    new = filters(tmp_path, fields=("instruction",), seeds=[Seed("Say a b c d e f g.", "", "and an output of eight words or more", "l")])["seed overlap"]
    assert stays(new, ("Other words.", "", "and an output of eight words or more")) == [True]  # what was given is not compared


def test_near_duplicates_of_seeds_and_of_what_came_before(tmp_path):
    pytest.importorskip("datasketch")
    fresh = filters(tmp_path, near_duplicates=0.7)["near-duplicate"]
    records = [
        ("Which country is the old city of Suwon located in today", "", "It is located in South Korea"), ("Count the birds in the garden.", "", "Seven."),
        ("Count the birds in this garden.", "", "Seven."), ("Name three cold colours.", "", "Blue."),
    ]  # fmt: skip
    assert stays(fresh, *records) == [False, True, False, True]
    assert stays(fresh, records[3]) == [False]  # known from an earlier round


def test_rouge_of_instructions(tmp_path):
    rouge = filters(tmp_path, max_rouge=0.7)["rouge"]
    # ROUGE-L of 10 words with the seed's 11, all ten in order: 2 * 10 / 21
    assert judged(rouge, candidates(("Which country is the old city of Suwon located in?", "", "x"), ("Name a river.", "", "x"), ("Name a big river.", "", "x"))) == [
        (round(20 / 21, 4), False), (0.0, True), (round(6 / 7, 4), False),
    ]  # fmt: skip


@pytest.mark.parametrize(("measure", "values"), [("exact", [1.0, 0.0, 0.0]), ("f1:0.5", [1.0, 0.8, 0.0])])
def test_the_model_asked_again_must_agree(tmp_path, measure, values):
    said = {"One.": '{"output": "red house"}', "Two.": '{"output": "the big red house"}', "Three.": "no JSON"}
    asker = Answering(lambda prompt: next(text for task, text in said.items() if task in prompt))
    given = candidates(*((task, "", "red house") for task in said))
    trip = filters(tmp_path, round_trip=measure, asker=asker)["round trip"]
    assert judged(trip, given) == [(value, value >= 0.5) for value in values]
    [(kind, prompts, first, settings)] = asker.asked
    assert (kind, first, settings["temperature"]) == ("again", 0, 0.0) and json.loads(settings["json_schema"])["required"] == ["output"]
    assert all("red house" not in prompt for prompt in prompts)  # the output is not shown
    assert judged(trip, []) == [] and len(asker.asked) == 1


def test_a_translation_must_come_back(tmp_path):
    source = Seed("The birds sing.", "", "They sing loudly.", "line 3")
    asker = Answering(lambda prompt: json.dumps({"instruction": "The birds sing.", "output": "They sing loudly." if "크게" in prompt else "No."}))
    making = {"style": "translate", "source_lang": "en", "target_lang": "ko"}
    trip = filters(tmp_path, ("instruction", "output"), making=making, round_trip="chrf:60", asker=asker)["round trip"]
    (same, kept), (less, other) = judged(trip, candidates(("새가 운다.", "", "크게 운다."), ("새가 운다.", "", "운다."), source=source))
    assert same == 100 and kept and less < 60 and not other
    assert all("from Korean to English" in prompt for prompt in asker.asked[0][1])


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("max_overlap", 1.5, "max_overlap must be in [0, 1], got 1.5"), ("near_duplicates", 1, "near_duplicates must be in [0, 1), got 1"),
        ("min_reward", 0.5, "reward_model and min_reward go together"), ("round_trip", "bleu:3", "round_trip must be exact, f1:SHARE or chrf:SCORE, got 'bleu:3'"),
        ("round_trip", "f1", "round_trip must be exact"), ("round_trip", "f1:x", "'x' is no number"), ("round_trip", "f1:2", "f1 is above 0 and at most 1"),
        ("max_words", -1, "min_words 0 and max_words -1 leave no length"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(option, value, said):
    with pytest.raises(UserError) as caught:
        Filtering(**{option: value})
    assert said in str(caught.value)
