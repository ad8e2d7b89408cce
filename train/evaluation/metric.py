"""A figure over records, made of sums: so it can be computed again for records drawn anew, and paired over models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .case import Case

ANSWERS, REFERENCES, LIKELIHOODS, CHOICES = "answers", "references", "likelihoods", "choices"  # what a metric may need
Row = Sequence[float] | NDArray[np.float64]


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The first of two sums over the second: [..., 2] to [...]. Of values and ones it is the mean."""
    return sums[..., 0] / sums[..., 1]


@dataclass(frozen=True)
class Metric:
    """A figure by its name, and what it needs: what makes a record's row of summands, None where it cannot be measured, and the `value` of their sums.

    `value` takes [..., columns] to [...]. `more_is_better` is None where neither is. With `same_tokenizer` only models of one tokenizer can be
    compared by it.
    """

    name: str
    needs: tuple[str, ...]
    make_row: Callable[[Case], Row | None]
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]] = ratio
    more_is_better: bool | None = True
    same_tokenizer: bool = False

    def row(self, case: Case) -> Row | None:
        """A record's row, made once: nothing of a case changes once it is measured."""
        if self not in case.rows:
            case.rows[self] = self.make_row(case)
        return case.rows[self]

    def of(self, case: Case) -> float | None:
        """The figure of one record alone, None where there is none."""
        row = self.row(case)
        if row is None:
            return None
        with np.errstate(invalid="ignore", divide="ignore"):
            value = float(self.value(np.asarray(row, dtype=np.float64)))
        return value if np.isfinite(value) else None


def mean_metric(name: str, needs: tuple[str, ...], of: Callable[[Case], float | None], **more: bool | None) -> Metric:
    """A metric that is the mean of a number a record; None leaves the record out."""

    def row(case: Case) -> Row | None:
        value = of(case)
        return None if value is None else (value, 1.0)

    return Metric(name, needs, row, **more)
