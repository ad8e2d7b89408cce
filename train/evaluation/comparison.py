"""Figures of several models on the same records: each with its interval, and its difference to the first model's, record by record."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..maths.bootstrap import interval, resampled_sums
from .case import Case
from .metric import Metric

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure, the bounds of its interval, and of how many records it is; None where these are too few."""

    value: float | None
    low: float | None
    high: float | None
    records: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside of the interval: of a difference, whether it is told from none."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def as_json(self) -> dict[str, Any]:
        """What is written of it."""
        return {"value": self.value, "low": self.low, "high": self.high, "records": self.records}


@dataclass(frozen=True)
class Figure:
    """A model's estimate by one metric and, but for the first model's, its difference to the first, of the records that both were measured on."""

    estimate: Estimate
    difference: Estimate | None = None

    def as_json(self) -> dict[str, Any]:
        """What is written of it."""
        told = self.estimate.as_json()
        if self.difference is not None:
            told["difference"] = {**self.difference.as_json(), "excludes_zero": self.difference.excludes_zero}
        return told


def compared(metrics: Sequence[Metric], models: Sequence[Sequence[Case]], resamples: int = 1000, seed: int = 0) -> dict[str, list[Figure]]:
    """By each metric's name a figure for each of the models, whose cases are of the same records in the same order.

    Intervals are of 95 per cent, by the bootstrap over records: all figures of a call share the draws, so differences are paired. A record that a model
    has no value for is left out of its figure, and of its difference.
    """
    blocks: list[Array] = []
    wanted: list[tuple[Metric, int, int, int | None]] = []  # the metric, records of the model alone and of both, and the model's first block
    for metric in metrics:
        measured = [[metric.row(case) for case in cases] for cases in models]
        width = next((len(row) for rows in measured for row in rows if row is not None), None)
        first = None if width is None else summands(measured[0], width)
        for place, rows in enumerate(measured):
            if first is None or width is None:
                wanted.append((metric, 0, 0, None))
                continue
            own = summands(rows, width)
            both = own[1] & first[1]
            wanted.append((metric, int(own[1].sum()), int(both.sum()), len(blocks)))
            blocks += [own[0]] if place == 0 else [own[0], own[0] * both[:, None], first[0] * both[:, None]]
    sums = sums_of(blocks, resamples, seed)
    found: dict[str, list[Figure]] = {}
    for metric, alone, shared, block in wanted:
        figures = found.setdefault(metric.name, [])
        if block is None:
            figures.append(Figure(Estimate(None, None, None, 0)))
            continue
        difference = None
        if figures:
            difference = estimate(shared, *(values(metric, mine) - values(metric, theirs) for mine, theirs in zip(sums[block + 1], sums[block + 2])))
        figures.append(Figure(estimate(alone, *(values(metric, each) for each in sums[block])), difference))
    return found


def summands(rows: Sequence[Any], width: int) -> tuple[Array, NDArray[np.bool_]]:
    """Rows as a matrix [records, columns], zeros where there is none, and which there are, [records]."""
    matrix, there = np.zeros((len(rows), width)), np.zeros(len(rows), dtype=bool)
    for place, row in enumerate(rows):
        if row is not None:
            matrix[place], there[place] = row, True
    return matrix, there


def sums_of(blocks: Sequence[Array], resamples: int, seed: int) -> list[tuple[Array, Array]]:
    """Of each block, [records, columns], the sums over its records, [columns], and over those drawn anew, [resamples, columns]."""
    if not blocks:
        return []
    drawn = resampled_sums(np.hstack(blocks), resamples, seed)
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    return [(block.sum(0), again) for block, again in zip(blocks, np.split(drawn, ends, axis=1), strict=True)]


def values(metric: Metric, sums: Array) -> Array:
    """The metric of sums, [..., columns] to [...]; where they are all zero, those of no record that was measured, it is no number."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((sums == 0).all(-1), np.nan, metric.value(sums))


def estimate(records: int, value: Any, drawn: Array) -> Estimate:
    """A figure of so many records with the interval of its resampled values; one record has none."""
    if records == 0 or not math.isfinite(value):
        return Estimate(None, None, None, records)
    bounds = interval(drawn) if records > 1 else (None, None)
    return Estimate(float(value), *bounds, records)
