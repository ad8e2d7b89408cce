"""Sources and targets with one right answer each: dates, numbers and countries between Korean, English and digits, made from num2words, babel and pycountry.

A source begins with the name of its task: "iso>ko: 2024-03-05", "ko>digits: 이십일", "ko>en: 비행기가 프랑스에 도착했다.". One of ten dates and numbers, and of ten
sentences (a frame with its countries), is held out whatever the seed, so that it is in no training rows; each country's name is in these.
"""

import datetime
import hashlib
import importlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain, islice
from types import ModuleType
from typing import Any

from ..errors import UserError

TASKS = {  # shares of the training rows: what takes longer to learn has more of them
    "en>iso": 2, "iso>en": 2, "ko>iso": 2, "iso>ko": 2, "digits>en": 3, "en>digits": 3, "digits>ko": 3, "ko>digits": 3, "ko>en": 4, "en>ko": 4,
}  # fmt: skip
KINDS = {"dates": ("en>iso", "iso>en", "ko>iso", "iso>ko"), "numbers": ("digits>en", "en>digits", "digits>ko", "ko>digits"), "sentences": ("ko>en", "en>ko")}
FIRST_DAY, LAST_DAY = datetime.date(1900, 1, 1), datetime.date(2099, 12, 31)
BASIC = 100  # numbers below are the words that others are made of: they are not held out
DIGITS = (2, 3, 4, 5, 6)  # of numbers, as many of each; those of 2 are all below BASIC
MOST_DIGITS = 12  # the next number is a new word in both languages
HELD_OUT = 10  # one of so many
MOST_HELD_OUT = 5000  # rows of a task: there are no more different ones

FRAMES = (  # Korean, with the particle that a name takes behind a vowel or a consonant, and English
    ("나는 {a}에 가고 싶다.", "I want to go to {a}."),
    ("그는 {a:을} 지도에서 찾았다.", "He found {a} on the map."),
    ("우리는 내년에 {a:으로} 떠난다.", "We leave for {a} next year."),
    ("{a}의 수도를 아십니까?", "Do you know the capital of {a}?"),
    ("작년에 나는 {a}에서 일했다.", "Last year I worked in {a}."),
    ("{a:이} 경기에서 이겼다.", "{a} won the match."),
    ("{a:은} 초대를 받아들였다.", "{a} accepted the invitation."),
    ("비행기가 {a}에 도착했다.", "The plane arrived in {a}."),
    ("그들은 {a}에서 {b:으로} 이사했다.", "They moved from {a} to {b}."),
    ("{a:과} {b:이} 협정을 맺었다.", "{a} and {b} signed an agreement."),
    ("그녀는 {a}보다 {b:을} 더 잘 안다.", "She knows {b} better than {a}."),
    ("{a}에서 온 편지가 {b}에 도착했다.", "A letter from {a} arrived in {b}."),
)
PARTICLES = {"은": ("은", "는"), "이": ("이", "가"), "을": ("을", "를"), "과": ("과", "와"), "으로": ("으로", "로")}  # behind a consonant, behind a vowel
RIEUL = 8  # ㄹ among the consonants that end a syllable: 으로 is 로 behind it too
WITH_ARTICLE = ("Bahamas", "Comoros", "Gambia", "Maldives", "Philippines", "Isle of Man")  # beside those below
WITHOUT_ARTICLE = ("South Georgia & South Sandwich Islands", "Heard Island & McDonald Islands")
ARTICLE_ENDS = ("Islands", "Republic", "Territory", "Territories", "Lands", "Netherlands")

Record = dict[str, str]  # task, source, target
Value = Any  # a date, a number, or which frame with the codes of its countries: (2, "FR"), (8, "FR", "JP")


def written_forms(
    count: int, heldout: int, seed: int = 0, tasks: Mapping[str, float] = TASKS, digits: Sequence[int] = DIGITS
) -> tuple[list[Record], list[Record]]:
    """So many records to train on, of each task by its share, and so many held-out ones of each task, none of them twice.

    >>> written_forms(1, 0, tasks={"digits>ko": 1})[0]
    [{'task': 'digits>ko', 'source': 'digits>ko: 802', 'target': '팔백이'}]

    The same seed gives the same records; what is held out is the same for all seeds. With some 250 records or more of a task of sentences, each country is in
    them. Numbers have so many `digits`, each as often; those of 2 are all below 100, and none of them is held out. Raises UserError for numbers and tasks that
    there are not, and where a library is missing.
    """
    _check(count, heldout, tasks, digits)
    total, begun, train, held = sum(tasks.values()), 0.0, [], []
    for task, share in tasks.items():
        begun, some = begun + share, len(train)
        values = _values(task, False, digits, random.Random(f"{seed} {task} train"))
        train += [record(task, next(values)) for _ in range(round(count * begun / total) - some)]
        held += [record(task, value) for value in islice(_values(task, True, digits, random.Random(f"{seed} {task} held out")), heldout)]
    random.Random(seed).shuffle(train)
    return train, held


def _check(count: int, heldout: int, tasks: Mapping[str, float], digits: Sequence[int]) -> None:
    if count < 1 or not 0 <= heldout <= MOST_HELD_OUT:
        raise UserError(f"give 1 record or more to train on and up to {MOST_HELD_OUT:,} held-out ones of a task, got {count} and {heldout}")
    if not tasks or any(share <= 0 for share in tasks.values()):
        raise UserError(f"give tasks with shares above 0, got {dict(tasks)}")
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"there is no task {task!r}: choose among {', '.join(TASKS)}")
    if not digits or not all(2 <= each <= MOST_DIGITS for each in digits):
        raise UserError(f"numbers have 2 to {MOST_DIGITS} digits, got {list(digits)}")
    if max(digits) < 5 and (there := _held_out_numbers(digits)) < heldout and not tasks.keys().isdisjoint(KINDS["numbers"]):
        raise UserError(f"of numbers of {' and '.join(map(str, digits))} digits {there} are held out, fewer than {heldout}: give longer ones, or hold fewer out")


def _held_out_numbers(digits: Iterable[int]) -> int:
    """How many numbers of so many digits are held out. From 5 digits on there are more than MOST_HELD_OUT."""
    return sum(map(is_held_out, chain.from_iterable(range(10 ** (each - 1), 10**each) for each in set(digits))))


def record(task: str, value: Value) -> Record:
    """The record of a task on a date, a number, or a frame with its countries."""
    source, target = task.split(">")
    return {"task": task, "source": f"{task}: {written(source, value)}", "target": written(target, value)}


def written(form: str, value: Value) -> str:
    """A date as "iso", a number as "digits", and each of these and a sentence in "en" and "ko".

    >>> written("ko", datetime.date(2024, 3, 5)), written("en", 21), written("ko", (2, "FR"))
    ('2024년 3월 5일', 'twenty-one', '우리는 내년에 프랑스로 떠난다.')
    """
    if isinstance(value, tuple):
        return _sentence(form, *value)
    if form in ("iso", "digits"):
        return str(value)
    if isinstance(value, datetime.date):
        return _library("babel.dates").format_date(value, "long", locale=form)
    return _library("num2words").num2words(value, lang=form)


def is_held_out(value: Value) -> bool:
    """Whether a value is never trained on: a date, a number from BASIC on, a sentence."""
    if isinstance(value, int) and value < BASIC:
        return False
    return int.from_bytes(hashlib.sha256(str(value).encode()).digest()[:4], "big") % HELD_OUT == 0


# What is drawn


def _values(task: str, held: bool, digits: Sequence[int], noise: random.Random) -> Iterator[Value]:
    """Values of a task that are held out, each once; or those that are not, without end."""
    drawn = _days(noise) if task in KINDS["dates"] else _numbers(digits, noise) if task in KINDS["numbers"] else _sentences(held, noise)
    seen: set[Value] = set()
    for value in drawn:
        if is_held_out(value) is held and value not in seen:
            yield value
            if held:
                seen.add(value)


def _days(noise: random.Random) -> Iterator[datetime.date]:
    while True:
        yield FIRST_DAY + datetime.timedelta(noise.randrange((LAST_DAY - FIRST_DAY).days + 1))


def _numbers(digits: Sequence[int], noise: random.Random) -> Iterator[int]:
    while True:
        count = noise.choice(digits)
        yield noise.randrange(BASIC) if 10**count == BASIC else noise.randrange(10 ** (count - 1), 10**count)


def _sentences(held: bool, noise: random.Random) -> Iterator[Value]:
    """Frames with countries. The first of these are dealt like cards, so that each comes as often."""
    while True:
        for first in noise.sample(countries(), len(countries())):
            yield next(sentence for sentence in _about(first, noise) if is_held_out(sentence) is held)


def _about(first: str, noise: random.Random) -> Iterator[Value]:
    while True:
        frame, other = noise.randrange(len(FRAMES)), noise.choice(countries())
        if "{b" not in FRAMES[frame][0]:
            yield frame, first
        elif other != first:
            yield frame, first, other


# Countries and sentences


@cache
def countries() -> tuple[str, ...]:
    """The codes of ISO 3166 whose names in babel's territories have no parentheses."""
    codes = sorted(country.alpha_2 for country in _library("pycountry").countries)
    return tuple(code for code in codes if all(code in names and "(" not in names[code] for names in map(_territories, ("ko", "en"))))


@cache
def _territories(form: str) -> Mapping[str, str]:
    return dict(_library("babel").Locale(form).territories)


def _sentence(form: str, frame: int, *codes: str) -> str:
    korean, english = FRAMES[frame]
    names = [_territories(form)[code] for code in codes]
    if form == "ko":
        return korean.format(**dict(zip("ab", map(WithParticle, names))))
    sentence = english.format(**dict(zip("ab", map(with_article, names))))
    return sentence[0].upper() + sentence[1:]


class WithParticle(str):
    """A Korean word that is written with the form of a particle that goes with its last syllable.

    >>> f"{WithParticle('일본'):을} {WithParticle('프랑스'):을} {WithParticle('브라질'):으로}"
    '일본을 프랑스를 브라질로'
    """

    def __format__(self, particle: str) -> str:
        if not particle:
            return str(self)
        final = (ord(self[-1]) - ord("가")) % 28  # 0 is none
        behind_consonant, behind_vowel = PARTICLES[particle]
        return self + (behind_vowel if final == 0 or particle == "으로" and final == RIEUL else behind_consonant)


def with_article(name: str) -> str:
    """A country's English name as it stands in a sentence: the Netherlands, France."""
    takes_one = name in WITH_ARTICLE or (name.startswith("United ") or name.endswith(ARTICLE_ENDS)) and name not in WITHOUT_ARTICLE
    return f"the {name}" if takes_one else name


def _library(name: str) -> ModuleType:
    """Raises UserError, with the remedy, where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"these tasks need {error.name}, which is not installed: pip install 'seodang[demo]'") from None
