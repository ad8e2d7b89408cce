"""Rounds of attempts, until there are as many records as wanted or nothing more may be spent; each round can show what those before it made."""

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from seodang.data.errors import UserError
from seodang.data.synthesis.styles import Ask, Style, line_of, said_in
from seodang.recipes.run.journal import writing
from seodang.recipes.synthesis.asking import MADE, Asker, Said
from seodang.recipes.synthesis.options import Making
from seodang.recipes.synthesis.sifting import Candidate, Filter, Tally

TEMPLATE_TOKENS = 128  # that a chat template may put around a prompt
AGAIN_BYTES = 300  # of what is said around a record when the model is asked again
FRUITLESS = 10  # rounds in a row that left nothing: the next would not either
SPENT = "the budget is spent"
LEAST_RATE = 0.1  # of attempts that are taken to be left, when the next round is sized


class Rows:
    """A file of rows in the order in which they come.

    Those that it has already, of the same run, stay untouched; what is behind the last goes when it is closed.
    """

    def __init__(self, path: str):
        self._path = Path(path)
        self._path.touch()
        self._file, self._begun = open(path, "r+b"), False

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Have these rows on the disk, behind those before."""
        self._begun = True
        wanted, start = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows), self._file.tell()
        if self._file.read(len(wanted)) != wanted:
            with writing(self._path):
                self._file.seek(start)
                self._file.truncate()
                self._file.write(wanted)
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the file here, unless nothing came of the run: then it stays as it was."""
        if self._begun:
            self._file.truncate(self._file.tell())
        self._file.close()


@dataclass
class Maker:
    """What makes records: `style` asks, `asker` has it answered at most `most` times, `filters` decide; `model` is what provenance calls who answers.

    Raises UserError for a budget in which not one attempt is certain to have room.
    """

    making: Making
    style: Style
    asker: Asker
    filters: Sequence[Filter]
    model: str
    most: int | None
    seed: int
    max_new_tokens: int
    asked_again: bool  # each record that the filters before leave, once more
    kept: list[Candidate] = field(default_factory=list)
    attempts: int = 0
    ended: str = ""  # why no more is made
    tally: Tally = field(init=False)

    def __post_init__(self):
        surplus = Filter("surplus", "beyond --count", self._wanted) if self.making.count else None
        self.tally = Tally([*self.filters, *filter(None, [surplus])])
        budget = self.making.token_budget
        if budget is not None and (least := self._bound(self._asks(1)[0])) > budget:
            raise UserError(f"token_budget {budget}: one attempt may take {least:,}, its prompt's bytes and max_new_tokens: raise it, or show and answer less")

    def run(self, show: Callable[[list[Candidate], list[Candidate]], None]) -> None:
        """Make records round by round; `show` is given what each round left, and what was dropped."""
        fruitless = number = 0
        while not self.ended:
            self.asker.round = f"{number:05d}"
            asks = self._admitted(self._asks(self.asker.finished(MADE) or self._size()))
            if not asks:
                self.ended = SPENT
                break
            said = self.asker.ask(MADE, [each.prompt for each in asks], self.attempts)
            round_ = [self._candidate(self.attempts + place, ask, each) for place, (ask, each) in enumerate(zip(asks, said, strict=True))]
            left = self.tally.sift(round_)
            self._refuse_untold()
            self.kept += left
            self.attempts += len(asks)
            show(left, [each for each in round_ if each.dropped])
            number, fruitless = number + 1, 0 if left else fruitless + 1
            print(f"round {number}: {self.attempts:,} attempts, {len(self.kept):,} records, {self.asker.spent:,} tokens", file=sys.stderr)
            self._judge_end(fruitless)

    def _judge_end(self, fruitless: int) -> None:
        if self.making.count is not None and len(self.kept) >= self.making.count:
            self.ended = "there are as many as wanted"
        elif self.most is not None and self.attempts >= self.most:
            self.ended = "each record had its turn" if self.making.count is self.making.attempts is None else "no more attempts are allowed"
        elif fruitless == FRUITLESS:
            self.ended = f"{FRUITLESS} rounds in a row left nothing"

    def _size(self) -> int:
        """How many attempts the next round has: no more than are likely to be needed."""
        size = self.making.round_size
        if self.making.count is not None:
            rate = max(len(self.kept) / self.attempts, LEAST_RATE) if self.attempts else 1.0
            size = min(size, math.ceil((self.making.count - len(self.kept)) / rate))
        return size if self.most is None else min(size, self.most - self.attempts)

    def _asks(self, size: int) -> list[Ask]:
        made = [each.record for each in self.kept]
        return [self.style.ask(attempt, Random(f"{self.seed} {attempt}"), made) for attempt in range(self.attempts, self.attempts + size)]

    def _admitted(self, asks: list[Ask]) -> list[Ask]:
        """Those that the budget has room for, whatever they take; all of a round that was asked already."""
        if self.making.token_budget is None or self.asker.finished(MADE):
            return asks
        left, admitted = self.making.token_budget - self.asker.spent, []
        for each in asks:
            left -= self._bound(each)
            if left < 0:
                break
            admitted.append(each)
        return admitted

    def _bound(self, ask: Ask) -> int:
        """The most tokens that an attempt may take: a token of a prompt has a byte at least, and what is read again is a prompt's, or other records', and an answer's."""
        prompt, answer = len(ask.prompt.encode()), TEMPLATE_TOKENS + self.max_new_tokens
        beside = sum(len(line_of(each.told()).encode()) + 1 for each in (*ask.beside, *filter(None, [ask.source])))
        return prompt + answer + (max(prompt, beside) + answer + AGAIN_BYTES + self.max_new_tokens if self.asked_again else 0)

    def _candidate(self, attempt: int, ask: Ask, said: Said) -> Candidate:
        found = Candidate(attempt, ask, said.text, said.seed, error=said.error)
        texts = None if said.error is not None else said_in(said.text, self.style.fields)
        if texts is not None:
            found.record = self.style.record(ask, texts, f"attempt {attempt + 1}")
        return found

    def _wanted(self, candidates: Sequence[Candidate]) -> list[tuple[None, bool]]:
        room = self.making.count - len(self.kept)
        return [(None, place < room) for place in range(len(candidates))]

    def _refuse_untold(self) -> None:
        if self.making.token_budget is not None and self.asker.untold:
            raise UserError("token_budget: the server does not tell how many tokens it read and wrote (usage): leave it out, and give --count or --attempts")

    def row(self, each: Candidate) -> dict[str, Any]:
        """A record with where it comes from, as it is written; one that was dropped with the filter that did, and the answer where that is no record."""
        ask = each.ask
        origin: dict[str, Any] = {"style": self.style.name, "model": self.model, "attempt": each.attempt + 1, "seed": each.seed}
        if ask.source is not None:
            origin["source"] = ask.source.where
        if ask.shown:
            origin["seeds"] = [seed.where for seed in ask.shown if seed not in ask.made]
            origin["made"] = [seed.where for seed in ask.made]
        if ask.persona is not None:
            origin["persona"] = ask.persona
        told = {"answer": each.said} if each.record is None else each.record.told()
        why = {"dropped": each.dropped} if each.dropped else {}
        why |= {"error": each.error} if each.error else {}
        return {**told, **why, "provenance": {**origin, "filters": each.values}}
