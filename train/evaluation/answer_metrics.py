"""Metrics of answers beside their references; where a model gave several answers to a record, of the first."""

from collections.abc import Callable, Collection
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from ..maths.answer_matching import matching, token_f1
from ..maths.chrf import chrf, chrf_counts
from ..maths.text_metrics import ROUGE, rouge
from .case import Case
from .metric import ANSWERS, REFERENCES, Metric, Row, mean_metric

NEEDS = (ANSWERS, REFERENCES)


def compared_to_reference(of: Callable[[str, str], float]) -> Callable[[Case], float | None]:
    """What measures a record's first answer beside its reference, where there are both."""
    return lambda case: of(case.answers[0], case.reference) if case.answers and case.reference is not None else None


def answer_metrics(without: Collection[str] = ()) -> dict[str, Metric]:
    """The metrics by their names; exact match and containment are judged without what is named of `answer_matching.KINDS`."""

    def is_exact(answer: str, reference: str) -> float:
        return float(matching(answer, without) == matching(reference, without))

    def contains(answer: str, reference: str) -> float:
        return float(matching(reference, without) in matching(answer, without))

    found = {"exact": is_exact, "contains": contains, "f1": token_f1, **{name: partial(_rouge, name) for name in ROUGE}}
    return {
        **{name: mean_metric(name, NEEDS, compared_to_reference(of)) for name, of in found.items()},
        "chrf": Metric("chrf", NEEDS, _chrf_row, chrf),
        "bleu": Metric("bleu", NEEDS, _bleu_row, _bleu),
    }


def _rouge(name: str, answer: str, reference: str) -> float:
    return rouge(answer, reference)[name]


def _chrf_row(case: Case) -> Row | None:
    return chrf_counts(case.answers[0], case.reference) if case.answers and case.reference is not None else None


def _bleu_row(case: Case) -> Row | None:
    if not case.answers or case.reference is None:
        return None
    found = _sacrebleu().corpus_score([case.answers[0]], [[case.reference]])
    return [*found.counts, *found.totals, found.sys_len, found.ref_len]


@cache
def _sacrebleu():
    from sacrebleu import BLEU  # takes a while, and few need it

    return BLEU()


def _bleu(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """The score in [0, 100] of counts that match, of all n-grams, and of the lengths of both sides: [..., 10] to [...]."""
    rows = sums.reshape(-1, 10).astype(int).tolist()  # whole numbers all of them
    scores = [_sacrebleu().compute_bleu(correct=row[:4], total=row[4:8], sys_len=row[8], ref_len=row[9], smooth_method="exp").score for row in rows]
    return np.array(scores).reshape(sums.shape[:-1])
