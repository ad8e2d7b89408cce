"""Choosing among several sampled answers, once all are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from ...data.errors import UserError
from ..requests.events import Answer
from ..requests.options import OPENAI, option, settings
from ..requests.params import RequestParams
from ..requests.request import Select
from ..requests.rules import function, whole
from ..requests.user_functions import called
from .sampling import sampling
from .spec import StrategySpec


def best_of_n(count: int, reward: Callable[[str, str], float] | None, prompt: str, given: int = 0) -> Select:
    """Take the `count` answers of the highest `reward(prompt, answer)`, or, without one, of the highest mean log-probability a token.

    The log-probabilities are those after the filters; the first `given` tokens, of a given prefix, do not count. Equal ones keep the order
    in which the answers ended.
    """

    def score_of(answer: Answer) -> float:
        if reward is None:
            return mean_logprob(answer, given)
        return measured(called("reward", reward, prompt, answer.text), "reward")

    return lambda answers: highest([replace(answer, score=score_of(answer)) for answer in answers], count)


def self_consistency(answer_of: Callable[[str], Any]) -> Select:
    """Take the first answer that says what most of them say, by `answer_of` of their texts (Wang et al. 2022).

    Between equally many the greater sum of their log-probabilities decides. None is no vote. The score is the share of the votes. What it
    returns raises UserError for a vote that cannot be counted.
    """

    def select(answers: Sequence[Answer]) -> list[Answer]:
        votes: dict[Hashable, list[Answer]] = {}
        for answer in answers:
            said = called("answer_of", answer_of, answer.text)
            if not is_countable(said):
                raise UserError(f"answer_of must return what can be compared and counted, got {said!r}: return a text or a number")
            if said is not None:
                votes.setdefault(said, []).append(answer)
        winners = max(votes.values(), key=lambda own: (len(own), sum(sum(answer.logprobs) for answer in own)), default=[])
        return [replace(winners[0] if winners else answers[0], score=len(winners) / len(answers))]

    return select


def minimum_bayes_risk(count: int, utility: Callable[[str, str], float] | None) -> Select:
    """Take the `count` answers of the highest mean `utility(hypothesis, reference)`, each of the other answers being the reference once.

    So the one that would disappoint least if any other were right (Eikema & Aziz 2020). Without a utility it is `chrf`.
    """

    def select(answers: Sequence[Answer]) -> list[Answer]:
        texts = [answer.text for answer in answers]
        compared = partial(called, "utility", utility or chrf)
        scored = []
        for i, answer in enumerate(answers):
            values = [measured(compared(texts[i], other), "utility") for j, other in enumerate(texts) if j != i]
            scored.append(replace(answer, score=sum(values) / len(values)))
        return highest(scored, count)

    return select


def chrf(hypothesis: str, reference: str) -> float:
    """Return chrF2 of two texts (Popović 2015, 2016), sacrebleu's for one sentence, in [0, 1]; whitespace does not count.

    Two texts without characters are alike, 1, where sacrebleu says 0.
    """
    if "".join(hypothesis.split()) == "".join(reference.split()):
        return 1.0
    return _chrf_metric().sentence_score(hypothesis, [reference]).score / 100


@cache
def _chrf_metric():
    from sacrebleu.metrics.chrf import CHRF  # for those alone who choose by it

    return CHRF()


def highest(answers: Sequence[Answer], count: int) -> list[Answer]:
    """The `count` answers of the highest scores, best first."""
    return sorted(answers, key=lambda answer: answer.score, reverse=True)[:count]


def mean_logprob(answer: Answer, given: int) -> float:
    """The mean log-probability of the tokens behind the first `given`."""
    own = answer.logprobs[given:]
    return sum(own) / len(own)


def is_countable(value: Any) -> bool:
    """Whether votes for the value can be counted: a tuple with a list in it cannot be hashed though tuples can."""
    try:
        return hash(value) is not None
    except Exception:  # the caller's own type
        return False


def measured(value: Any, name: str) -> float:
    """Return a caller's value as a number; raises UserError for one that is none."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except Exception:  # whatever the caller's function returned
        number = math.nan
    if math.isnan(number):
        raise UserError(f"{name} must return a number, got {value!r}")
    return number


def check_selection(params: RequestParams, least: int = 1) -> None:
    """Raise UserError where there is nothing to choose among, or less than is asked for."""
    best_of, wanted = params.best_of, params.num_return_sequences
    if best_of is None or best_of < least:
        raise UserError(f"choosing among sampled answers needs best_of, how many to sample, of at least {least}, got {best_of}: give it")
    if best_of > 1 and not params.samples:
        raise UserError(f"best_of={best_of} greedy answers would all be the same: give do_sample or a temperature")
    if wanted > best_of:
        raise UserError(f"num_return_sequences={wanted} answers cannot be chosen among best_of={best_of}: raise best_of")


def check_vote(params: RequestParams) -> None:
    """Raise UserError as `check_selection` does, and for a vote without `answer_of` or with several winners."""
    check_selection(params)
    if params.answer_of is None:
        raise UserError("a vote needs answer_of, the function that finds in a text what it answers: give it")
    if params.num_return_sequences > 1:
        raise UserError(f"a vote has one winner, but num_return_sequences={params.num_return_sequences}: drop it")


def check_risk(params: RequestParams) -> None:
    """Raise UserError as `check_selection` does, for fewer answers than two: each is compared with the others."""
    check_selection(params, least=2)


@settings
class Several:
    best_of: int | None = option(None, "Sample so many answers and give the likeliest.", whole(1), example=3, same_in=(OPENAI,))


@settings
class BestOf:
    reward: Callable[[str, str], float] | None = option(
        None, "A function of prompt and answer that says how good the answer is.", function, example=lambda prompt, answer: 0.0, command=False
    )


@settings
class Vote:
    answer_of: Callable[[str], Any] | None = option(
        None, "A function of an answer's text that finds what it answers.", function, example=str.strip, command=False
    )


@settings
class Risk:
    utility: Callable[[str, str], float] | None = option(
        None, "A function of an answer and another, taken to be right, that says how good the first is.", function,
        example=lambda answer, other: float(answer == other), command=False,
    )  # fmt: skip


ONCE_CHOSEN = "once it is chosen"
BEST_OF_N = StrategySpec(
    "best_of_n", sampling, about=best_of_n, options=(Several, BestOf), least={"best_of": 3, "do_sample": True},
    select=lambda params, prompt, given: best_of_n(params.num_return_sequences, params.reward, prompt, given),
    meant=lambda params: params.best_of is not None, check=check_selection, streams=ONCE_CHOSEN,
    paper="Stiennon et al. 2020, Learning to summarize from human feedback",
)  # fmt: skip
SELF_CONSISTENCY = StrategySpec(
    "self_consistency", sampling, about=self_consistency, options=(Several, Vote), least={"best_of": 3, "do_sample": True, "answer_of": str.strip},
    select=lambda params, prompt, given: self_consistency(params.answer_of),
    meant=lambda params: params.answer_of is not None, check=check_vote, streams=ONCE_CHOSEN,
    paper="Wang et al. 2022, Self-consistency improves chain of thought reasoning",
)  # fmt: skip
MINIMUM_BAYES_RISK = StrategySpec(
    "minimum_bayes_risk", sampling, about=minimum_bayes_risk, options=(Several, Risk),
    least={"best_of": 3, "do_sample": True, "utility": lambda answer, other: float(answer == other)},
    select=lambda params, prompt, given: minimum_bayes_risk(params.num_return_sequences, params.utility),
    meant=lambda params: params.utility is not None, check=check_risk, streams=ONCE_CHOSEN,
    paper="Eikema & Aziz 2020, Is MAP decoding all you need?",
)  # fmt: skip
