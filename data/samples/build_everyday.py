"""Write everyday.jsonl and everyday_heldout.jsonl anew from everyday.yaml: `python data/samples/build_everyday.py`, always the same bytes."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PARTS = yaml.safe_load((HERE / "everyday.yaml").read_text(encoding="utf-8"))
MONTHS = "January February March April May June July August September October November December".split()

# How many records of each task are trained, and held out. Some 27,000 tokens of SmolLM2 are trained.
RECORDS = {
    "list": (36, 30), "rename": (30, 30), "mask": (44, 30), "sentiment": (60, 30), "english_date": (36, 30), "korean_date": (36, 30), "answer": (66, 30),
    "form": (52, 30),
}  # fmt: skip
NEW_WORDINGS = 0.2  # of the held-out instructions, and of the held-out sentences

Triplet = tuple[str, str, str]  # instruction, input, output


class Deal:
    """Parts of one side, "trained" or "held_out": its words alone, and of the held-out side's wordings a share that is not trained.

    Each list is dealt like a pack of cards, so that in few records all of it occurs, equally often.
    """

    def __init__(self, side: str, seed: int):
        self.side, self.random = side, random.Random(f"{side} {seed}")
        self.packs: dict[str, list] = {}

    def one(self, name: str, cards: Sequence) -> Any:
        """The next card of the pack of that name, which is shuffled anew when all are dealt."""
        if not self.packs.get(name):
            self.packs[name] = self.random.sample(cards, len(cards))
        return self.packs[name].pop()

    def word(self, kind: str, *others: str) -> str:
        """A word of a kind, none of the others."""
        while (word := self.one(kind, PARTS["words"][kind][self.side])) in others:
            pass
        return word

    def wording(self, task: str, part: str) -> Any:
        """One way to say the instruction, or the input, of a task."""
        side = "held_out" if self.side == "held_out" and self.random.random() < NEW_WORDINGS else "trained"
        return self.one(f"{task} {part} {side}", PARTS["wordings"][task][part][side])

    def words(self) -> dict[str, Any]:
        """A word of every kind, a second name, and two numbers."""
        words = {kind: self.word(kind) for kind in PARTS["words"]}
        return words | {"other": self.word("name", words["name"]), "number": self.random.randrange(12, 100), "few": self.random.randrange(2, 12)}

    def sentence(self) -> str:
        """A sentence about one person."""
        return self.one("sentence", PARTS["sentences"][self.side])

    # The tasks, each by its name.

    def list(self) -> Triplet:
        things = []
        for _ in range(self.one("how many", [3, 4])):
            things.append(self.word("thing", *things))
        *most, last = map(with_article, things)
        text = self.wording("list", "input").format(name=self.word("name"), things=f"{', '.join(most)} and {last}")
        return self.wording("list", "instruction"), text, ", ".join(things)

    def rename(self) -> Triplet:
        sentence, old = self.sentence(), self.word("name")
        new = self.word("name", old)
        return self.wording("rename", "instruction").format(old=old, new=new), sentence.format(old), sentence.format(new)

    def mask(self) -> Triplet:
        sentence = self.sentence()
        return self.wording("mask", "instruction"), sentence.format(self.word("name")), sentence.format("[NAME]")

    def sentiment(self) -> Triplet:
        kind = self.one("kind", ["praise", "blame"])
        so = self.word(kind)
        parts = {"it": self.word("reviewed"), "so": so, "a_so": with_article(so), "name": self.word("name"), "end": self.one(f"end {kind}", PARTS["ends"][kind])}
        return self.wording("sentiment", "instruction"), self.wording("sentiment", "input").format(**parts), "+" if kind == "praise" else "-"

    def english_date(self) -> Triplet:
        return self.date("english_date", "{name} {day}, {year}", "{day} {name} {year}")

    def korean_date(self) -> Triplet:
        return self.date("korean_date", "{year}년 {month}월 {day}일")

    def date(self, task: str, *forms: str) -> Triplet:
        """A date in one of the forms, to be written as ISO 8601 does. Every fourth year is held out."""
        year = self.one("year", [year for year in range(1950, 2030) if (year % 4 == 3) == (self.side == "held_out")])
        month, day = self.one("month", range(1, 13)), self.one("day of the month", range(1, 29))
        date = self.one(f"form of {task}", forms).format(year=year, month=month, day=day, name=MONTHS[month - 1])
        return self.wording(task, "instruction"), self.wording(task, "input").format(date=date, name=self.word("name")), f"{year}-{month:02}-{day:02}"

    def answer(self) -> Triplet:
        sentence, questions = self.wording("answer", "input")
        question, answer = self.one(sentence, list(questions.items()))
        words = self.words()
        return self.wording("answer", "instruction"), f"{sentence} {question}".format(**words), answer.format(**words)

    def form(self) -> Triplet:
        sentence, lines = self.wording("form", "input")
        words = self.words()
        output = "\n".join(f"{key}: {value}" for key, value in lines.items()).format(**words)
        return self.wording("form", "instruction").format(keys=", ".join(lines)), sentence.format(**words), output


def with_article(word: str) -> str:
    """'apple' to 'an apple'."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def everyday(side: str, seed: int = 5) -> list[dict[str, str]]:
    """The records of one side, no question twice, the tasks mixed."""
    deal, records = Deal(side, seed), {}
    for task, counts in RECORDS.items():
        wanted = len(records) + counts[side == "held_out"]
        while len(records) < wanted:
            instruction, given, output = getattr(deal, task)()
            records[instruction, given] = {"instruction": instruction, "input": given, "output": output, "task": task}
    mixed = list(records.values())
    deal.random.shuffle(mixed)
    return mixed


def main() -> None:
    """Write both files."""
    for side, name in {"trained": "everyday", "held_out": "everyday_heldout"}.items():
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in everyday(side)]
        (HERE / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}.jsonl: {len(lines)} records")


if __name__ == "__main__":
    main()
