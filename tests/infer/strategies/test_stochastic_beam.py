"""Stochastic beam search: the law of sampling without replacement, counted on a model whose answers can all be written down."""

import math
from collections import Counter
from itertools import permutations

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.requests.trace import PassTrace
from seodang.infer.strategies.stochastic_beam import truncated

PROMPT, LEFT, LENGTH = [5, 6, 7, 8], [2, 30, 31], 2  # 2 ends an answer
SETTINGS = {"strategy": "stochastic_beam", "prefix_allowed_tokens_fn": lambda ids: LEFT, "max_new_tokens": LENGTH, "temperature": 1.0}
SEEDS = 1000


@pytest.fixture
def law(double):
    """A model, and the log-probability of each of its answers: 2; 30 or 31, and behind it any."""
    model = double("llama")

    def following(ids):
        with torch.no_grad():
            return (model(torch.tensor([PROMPT + ids])).logits[0, -1, LEFT] / SETTINGS["temperature"]).log_softmax(-1).tolist()

    found = {}
    for first, p in zip(LEFT, following([])):
        found |= {(first,): p} if first == 2 else {(first, second): p + q for second, q in zip(LEFT, following([first]))}
    assert sum(map(math.exp, found.values())) == pytest.approx(1)
    return model, found


def answers(model, tokenizer, beams, wanted, seeds, **more):
    """The results of each seed, in the order of the draws."""
    params = [SamplingParams(**SETTINGS, num_beams=beams, num_return_sequences=wanted, seed=seed, **more) for seed in seeds]
    found = generate(model, tokenizer, [PROMPT] * len(params), params)
    return [found[i : i + wanted] for i in range(0, len(found), wanted)]


def far(counts, expected) -> float:
    """Chi-square over its mean, in its standard deviations; cells of which fewer than five are expected count as one."""
    rare = [name for name, n in expected.items() if n < 5]
    cells = [(counts[name], n) for name, n in expected.items() if n >= 5]
    if rare:
        cells.append((sum(counts[name] for name in rare), sum(expected[name] for name in rare)))
    degrees = len(cells) - 1
    return (sum((seen - n) ** 2 / n for seen, n in cells) - degrees) / math.sqrt(2 * degrees)


def test_first_answers_are_samples_and_pairs_are_drawn_without_replacement(law, tiny_tokenizer):
    model, logprobs = law
    p = {ids: math.exp(logprob) for ids, logprob in logprobs.items()}
    pairs = [tuple(tuple(result.ids) for result in both) for both in answers(model, tiny_tokenizer, 2, 2, range(SEEDS))]
    assert all(first != second for first, second in pairs)
    assert abs(far(Counter(first for first, _ in pairs), {ids: SEEDS * each for ids, each in p.items()})) < 4
    expected = {(i, j): SEEDS * p[i] * p[j] / (1 - p[i]) for i, j in permutations(p, 2)}
    assert sum(expected.values()) == pytest.approx(SEEDS)
    assert abs(far(Counter(pairs), expected)) < 4
    uniform = {pair: SEEDS / len(expected) for pair in expected}
    assert far(Counter(pairs), uniform) > 20  # the count tells one law from another


def test_logprobs_are_exact_scores_are_in_the_order_of_the_draws_and_more_beams_only_add(law, tiny_tokenizer):
    model, logprobs = law
    seeds = range(20)
    two, three, all_seven = (answers(model, tiny_tokenizer, n, n, seeds) for n in (2, 3, 7))
    for few, more, every in zip(two, three, all_seven):
        assert [r.ids for r in few] == [r.ids for r in more][:2] and [r.ids for r in more] == [r.ids for r in every][:3]
        assert sorted(tuple(r.ids) for r in every) == sorted(logprobs)
        for result in every:
            assert sum(result.logprobs) == pytest.approx(logprobs[tuple(result.ids)], abs=1e-9)
        scores = [r.score for r in every]
        assert scores == sorted(scores, reverse=True) and [r.choice for r in every] == list(range(7))
    assert two == answers(model, tiny_tokenizer, 2, 2, seeds) and len({str([r.ids for r in both]) for both in two}) > 5
    best = [every[0].score for every in answers(model, tiny_tokenizer, 2, 2, range(300))]
    assert sum(best) / 300 == pytest.approx(0.5772, abs=4 * math.pi / math.sqrt(6 * 300))  # the greatest is a standard Gumbel number


def test_it_shares_passes_with_others_and_finds_what_it_finds_alone(law, tiny_tokenizer):
    model, _ = law
    ours = SamplingParams(strategy="stochastic_beam", num_beams=4, num_return_sequences=3, seed=3, max_new_tokens=6)
    others = [SamplingParams(temperature=1.0, seed=1, max_new_tokens=6), SamplingParams(num_beams=2, max_new_tokens=6)]
    together = generate(model, tiny_tokenizer, [PROMPT, [20, 21], [9, 8, 7]], [ours, *others], trace=True)
    passes = [event.what for event in together[0].trace if isinstance(getattr(event, "what", None), PassTrace)]
    assert len(passes) == 6 and all(each.of_all > each.positions for each in passes)
    assert [r.ids for r in together[:3]] == [r.ids for r in generate(model, tiny_tokenizer, [PROMPT], ours)]


def test_truncated_numbers_by_the_formula():
    numbers = torch.tensor([[1.5, 0.2, -3.0, -torch.inf], [-2.0, -2.5, -7.0, -9.0]], dtype=torch.float64)
    greatest = torch.tensor([[0.7], [-40.0]], dtype=torch.float64)
    plain = -((-greatest).exp() - (-numbers[:, :1]).exp() + (-numbers).exp()).log()
    torch.testing.assert_close(truncated(numbers, greatest), plain)
    assert truncated(numbers, greatest)[:, 0].tolist() == [0.7, -40.0]
    low = truncated(numbers - 2000, greatest - 2000)  # exp would overflow
    assert low[0, 1] > low[0, 2] > -torch.inf and low[0, 3] == -torch.inf


@pytest.mark.parametrize(
    "more, words",
    [
        ({"do_sample": False}, "draws its answers, but do_sample=False"), ({"temperature": 0}, "draws its answers, but temperature=0"),
        ({"num_return_sequences": 3}, "num_return_sequences=3"), ({"length_penalty": 2.0}, "no use for length_penalty"),
    ],
)  # fmt: skip
def test_what_it_cannot_honour_is_refused(law, tiny_tokenizer, more, words):
    with pytest.raises(UserError, match=words):
        generate(law[0], tiny_tokenizer, [PROMPT], SamplingParams(strategy="stochastic_beam", num_beams=2, **more))


def test_more_answers_than_there_are_is_an_error(law, tiny_tokenizer):
    with pytest.raises(UserError, match="has 7 answers within its filters"):
        answers(law[0], tiny_tokenizer, 8, 8, [0])


def test_scores_that_are_no_numbers_end_the_request_and_no_other(tiny_llama, tiny_tokenizer):
    wrong = SamplingParams(strategy="stochastic_beam", num_beams=3, temperature=1e-30, logit_bias={5: 1e30}, max_new_tokens=3)
    failed, good = generate(tiny_llama, tiny_tokenizer, [[5, 6, 7]] * 2, [wrong, SamplingParams(max_new_tokens=3)])
    [alone] = generate(tiny_llama, tiny_tokenizer, [[5, 6, 7]], SamplingParams(max_new_tokens=3))
    assert failed.finish_reason == "error" and failed.error and good.ids == alone.ids
