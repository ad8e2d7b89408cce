"""Ways to rank several answers to a prompt: a labelling function, a judge model, a person in the terminal.

Each is called with a prompt, its answers and the record's other columns, and returns their ranks: 0 is best, equal ranks are a tie.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.formats import Message
from ...data.json_text import read_json_lines
from ...infer.engine.scoring import score
from .rules import CheckedReward, Reward

Ranker = Callable[[list[Message], Sequence[str], Mapping[str, Any]], list[int]]


class RankingStopped(Exception):
    """The person has judged enough, or else wants to go on another time; what was judged is kept."""

    def __init__(self, enough: bool = False):
        super().__init__("ranking was stopped")
        self.enough = enough


def ranks_of(scores: Sequence[float]) -> list[int]:
    """The ranks of some scores, the highest first; equal scores share a rank and none is left out.

    >>> ranks_of([0.2, 0.9, 0.2, -1.0])
    [1, 0, 1, 2]
    """
    order = sorted(set(scores), reverse=True)
    return [order.index(each) for each in scores]


@dataclass(frozen=True)
class FunctionRanker:
    """Rank by a labelling function's scores: any reward function will do."""

    label: Reward

    def __call__(self, prompt: list[Message], answers: Sequence[str], columns: Mapping[str, Any]) -> list[int]:
        repeated = {name: [value] * len(answers) for name, value in columns.items()}
        return ranks_of(CheckedReward(self.label)([prompt] * len(answers), list(answers), **repeated))


TWO_ANSWERS = """Here are a request and two answers to it.

Request:
{request}

Answer A:
{first}

Answer B:
{second}

Which answer is better?"""
QUESTION = f"{TWO_ANSWERS} Reply with the letter A or B alone."


@dataclass(frozen=True)
class JudgeRanker:
    """Ask a language model of each two answers which is better, in both orders; rank by wins less losses.

    The verdict is the likelier of the letters A and B. Where the orders disagree, the place in the question decided and not the
    answer: a tie. `question` may be put in other words, with the same three fields.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    question: str = QUESTION

    def __call__(self, prompt: list[Message], answers: Sequence[str], columns: Mapping[str, Any]) -> list[int]:
        duels = [(i, j) for i, j in combinations(range(len(answers)), 2) if answers[i] != answers[j]]
        if not duels:
            return [0] * len(answers)
        log_odds = self.log_odds(prompt, [(answers[i], answers[j]) for pair in duels for i, j in (pair, pair[::-1])])
        points = [0] * len(answers)
        for (i, j), one_way, other_way in zip(duels, log_odds[::2], log_odds[1::2], strict=True):
            won = (one_way > 0 > other_way) - (one_way < 0 < other_way)
            points[i] += won
            points[j] -= won
        return ranks_of(points)

    def log_odds(self, prompt: list[Message], duels: Sequence[tuple[str, str]]) -> list[float]:
        """For each two answers the log-odds that the first is called the better one."""
        request = prompt_as_text(prompt)
        questions = [[{"role": "user", "content": filled_in(self.question, request, *duel)}] for duel in duels]
        found = score(self.model, self.tokenizer, [each for each in questions for _ in "AB"], ["A", "B"] * len(questions))
        letters = [float(each[0]) for each in found]  # what ends the turn behind the letter says nothing of the answers
        return [a - b for a, b in zip(letters[::2], letters[1::2], strict=True)]


@dataclass
class PersonRanker:
    """Show the prompt with its answers in the terminal and read their order; raises Stopped where the person has had enough."""

    read: Callable[[str], str] | None = None  # `input` by default
    show: Callable[[str], None] = print
    help = "best first, such as 2 1 3, or 2 1=3 for a tie; s skips (all tied), q stops and keeps what was judged, d is done with judging"

    def __call__(self, prompt: list[Message], answers: Sequence[str], columns: Mapping[str, Any]) -> list[int]:
        lines = ["", prompt_as_text(prompt), *(f"\n[{number}] {answer}" for number, answer in enumerate(answers, 1)), ""]
        self.show(printable("\n".join(lines)))
        while True:
            try:
                typed = (self.read or input)("order (? helps): ").strip().lower()
            except EOFError:
                raise RankingStopped from None
            if typed in ("q", "d"):
                raise RankingStopped(enough=typed == "d")
            if typed == "s":
                return [0] * len(answers)
            try:
                return parse_order(typed, len(answers))
            except UserError as error:
                self.show(self.help if typed == "?" else f"{error}: {self.help}")


def parse_order(typed: str, count: int) -> list[int]:
    """The ranks that a typed order gives `count` answers; `=` ties neighbours, spaces, commas and `>` part them.

    Raises UserError for an order that does not name each answer once.

    >>> parse_order("2 1=3", 3)
    [1, 0, 1]
    """
    places = [part.split("=") for part in re.split(r"[\s,>]+", re.sub(r"\s*=\s*", "=", typed).strip(" ,>"))]
    numbers = [number for tied in places for number in tied]
    if sorted(numbers) != sorted(map(str, range(1, count + 1))):
        raise UserError(f"{typed!r} does not name each of 1 to {count} once")
    ranks = [0] * count
    for rank, tied in enumerate(places):
        for number in tied:
            ranks[int(number) - 1] = rank
    return ranks


def rank_all(ranker: Ranker, sampled: Sequence[Mapping[str, Any]], path: Path, done: Callable[[int], Any] = lambda count: None) -> int:
    """Rank the answers of every {prompt, responses, columns} and append {prompt, responses, ranks} to a JSON Lines file at once.

    Records that the file has already are not asked about again: started anew after a stop or a kill, it goes on. Return how many
    the file holds now; `done` hears of each. A Stopped of the ranker is passed on. Raises UserError where the file holds rankings of other answers.
    """
    _cut_torn_line(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    ranked = read_json_lines(path) if path.is_file() else []
    for record, wanted in zip(ranked, sampled, strict=False):
        if any(record[key] != wanted[key] for key in ("prompt", "responses")):
            raise UserError(f"{path} holds rankings of other answers: move it away to rank these")
    with path.open("a", encoding="utf-8") as file:
        for number, wanted in enumerate(sampled[len(ranked) :], len(ranked) + 1):
            ranks = ranker(wanted["prompt"], wanted["responses"], wanted.get("columns") or {})
            record = {"prompt": wanted["prompt"], "responses": wanted["responses"], "ranks": ranks}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a person's work
            done(number)
    return max(len(ranked), len(sampled))


def prompt_as_text(prompt: Sequence[Message]) -> str:
    """A prompt as a person reads it: the bare text where there is one user's turn, else each turn behind its role."""
    texts = [m["content"] if isinstance(m["content"], str) else json.dumps(m["content"], ensure_ascii=False) for m in prompt]
    if [m["role"] for m in prompt] == ["user"]:
        return texts[0]
    return "\n".join(f"{m['role']}: {text}" for m, text in zip(prompt, texts, strict=True))


def printable(text: str) -> str:
    """The text with control characters spelled out: an answer must not move the cursor or colour the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else repr(letter)[1:-1] for letter in text)


def filled_in(question: str, request: str, first: str, second: str) -> str:
    """The question with its fields; braces in the texts stay as they are."""
    fields = {"{request}": request, "{first}": first, "{second}": second}
    return re.sub("|".join(map(re.escape, fields)), lambda match: fields[match[0]], question)


def _cut_torn_line(path: Path) -> None:
    """Drop a last line that a kill cut short."""
    if path.is_file():
        written = path.read_bytes()
        if written and not written.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(written.rfind(b"\n") + 1)
