"""How far a figure would vary with other records: sums over records drawn again, the same draws for all that is compared."""

import numpy as np
from numpy.typing import NDArray

AT_ONCE = 1 << 22  # places that are drawn before they are added up


def resampled_sums(rows: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """The sums of as many records as there are, drawn with replacement, so many times: rows [records, columns] to [resamples, columns].

    Columns of one call share their draws, so what is computed of them is paired (Efron and Tibshirani 1993, "An Introduction to the Bootstrap"; Koehn
    2004 for whole systems). So do calls of one seed and one number of records.
    """
    records = len(rows)
    generator, sums = np.random.default_rng(seed), []
    at_once = max(AT_ONCE // max(records, 1), 1)
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        drawn = generator.integers(0, records, size=(count, records)) + np.arange(count)[:, None] * records
        times = np.bincount(drawn.ravel(), minlength=count * records).reshape(count, records)
        sums.append(times.astype(np.float64) @ rows)
    return np.concatenate(sums)


def interval(values: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The percentiles between which the middle share `level` of resampled values lies; a resample without a value (NaN) is left out."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
