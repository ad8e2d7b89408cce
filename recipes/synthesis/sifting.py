"""What becomes of attempts: filters one behind another, what each found of a record, and how many it dropped."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from seodang.data.synthesis.seeds import Seed
from seodang.data.synthesis.styles import Ask


@dataclass
class Candidate:
    """What an attempt, counted from 0, gave: `values` are what filters found of its record, `dropped` is the one that dropped it."""

    attempt: int
    ask: Ask
    said: str
    seed: int | None
    record: Seed | None = None
    error: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    dropped: str | None = None


@dataclass(frozen=True)
class Filter:
    """What decides on candidates that are left: of each, in its order, what it found, for the row, and whether the candidate stays.

    `drops` says in words what goes.
    """

    name: str
    drops: str
    judge: Callable[[Sequence[Candidate]], Iterable[tuple[Any, bool]]] = field(repr=False)


def of_each(found: Callable[[Candidate], tuple[Any, bool]]) -> Callable[[Sequence[Candidate]], Iterable[tuple[Any, bool]]]:
    """A filter's judgement out of one on a candidate alone."""
    return lambda candidates: map(found, candidates)


@dataclass
class Tally:
    """By the filters' names how many candidates each looked at and dropped, in the order of the filters."""

    filters: Sequence[Filter]
    seen: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def sift(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Send candidates through all filters and return those that stay."""
        for each in self.filters:
            self.seen[each.name] = self.seen.get(each.name, 0) + len(candidates)
            left = []
            for candidate, (value, stays) in zip(candidates, each.judge(candidates), strict=True):
                if value is not None:
                    candidate.values[each.name] = value
                if stays:
                    left.append(candidate)
                else:
                    candidate.dropped = each.name
                    self.dropped[each.name] = self.dropped.get(each.name, 0) + 1
            candidates = left
        return list(candidates)

    def lines(self) -> list[str]:
        """The table: a filter a line, with what it looked at, dropped and left."""
        rows = [("filter", "looked at", "dropped", "left", "drops")]
        for each in self.filters:
            seen, gone = self.seen.get(each.name, 0), self.dropped.get(each.name, 0)
            rows.append((each.name, f"{seen:,}", f"{gone:,}", f"{seen - gone:,}", each.drops))
        wide = [max(len(row[place]) for row in rows) for place in range(4)]
        return [f"{row[0]:<{wide[0]}}  {row[1]:>{wide[1]}}  {row[2]:>{wide[2]}}  {row[3]:>{wide[3]}}  {row[4]}" for row in rows]

    def most(self) -> str:
        """The filter that dropped most."""
        return max(self.dropped, key=self.dropped.__getitem__, default="none")
