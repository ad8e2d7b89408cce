"""Which finished hypotheses stay, and when a search has nothing more to hope for: by hand."""

import pytest

from seodang.infer.engine.params import SamplingParams
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.requests.sequence import TokenSequence
from seodang.infer.strategies.hypotheses import BeamHypotheses


def row(tokens: int, **settings) -> TokenSequence:
    """A hypothesis of so many tokens behind a prompt of two."""
    request = Request(0, [5, 6], SamplingParams(max_new_tokens=12, **settings), 0, frozenset([2]), lambda: None)
    return TokenSequence(Generation(request), None, 0, [5, 6] + [9] * tokens, None)


def ended(begin: int = 0, **settings) -> BeamHypotheses:
    """Two hypotheses of a search that began with `begin` tokens: 4 tokens more with a sum of -4, 2 more with one of -1."""
    found = BeamHypotheses(row(begin, **settings), 2)
    found.add(row(begin + 4, **settings), -4.0)
    assert not found.full and not found.is_done(-100.0, begin + 5)
    found.add(row(begin + 2, **settings), -1.0)
    return found


@pytest.mark.parametrize(("penalty", "scores"), [(1.0, [-0.5, -1.0]), (0.0, [-1.0, -4.0]), (2.0, [-0.25, -0.25]), (-1.0, [-2.0, -16.0])])
@pytest.mark.parametrize("begin", [0, 2])
def test_a_score_is_the_sum_over_a_power_of_the_tokens_behind_the_beginning(begin, penalty, scores):
    assert [each.score for each in ended(begin, length_penalty=penalty).sequences] == scores


def test_the_best_stay_and_of_equal_ones_the_elder():
    found = ended()
    elder = found.sequences[1]
    found.add(row(1), -1.0)
    assert found.sequences[1] is elder
    found.add(row(1), -0.75)
    assert [each.score for each in found.sequences] == [-0.5, -0.75]


@pytest.mark.parametrize(
    ("early_stopping", "best", "settled"),
    [
        (True, -0.1, True),  # there are two
        (False, -5.9, False), (False, -6.0, True),  # of 6 tokens: a mean of -1, which would not come in
        ("never", -9.9, False), ("never", -10.0, True),  # of 10, the most that there can be behind a beginning of 2
    ],
)  # fmt: skip
def test_a_search_is_settled_where_its_best_could_not_come_in(early_stopping, best, settled):
    assert ended(begin=2, early_stopping=early_stopping).is_done(best, 2 + 6) == settled


def test_where_length_counts_against_an_answer_it_is_judged_as_it_stands():
    found = ended(early_stopping="never", length_penalty=0.0)  # scores are sums, which only fall
    assert found.is_done(-4.0, 6) and not found.is_done(-3.9, 6)
