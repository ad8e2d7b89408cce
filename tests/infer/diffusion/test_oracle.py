"""A denoiser that knows the joint distribution of four tokens: which orders draw from it exactly, and how far off the others are."""

import itertools
import math

import pytest
import torch

from seodang.infer import SamplingParams

from .conftest import Speaker

TOKENS, LENGTH, MASK = 4, 4, 4  # the mask comes behind them
SAMPLES = 600
STATES = list(itertools.product(range(TOKENS), repeat=LENGTH))


class Oracle(Speaker):
    """A runner whose logits at an open position are the exact distribution of its token given the certain ones; those of the mask are higher still."""

    def __init__(self, joint: torch.Tensor):
        super().__init__(TOKENS + 1, MASK, LENGTH)
        self.joint, self.known = joint, {}

    def conditionals(self, state: tuple[int, ...]) -> torch.Tensor:
        """The logits of each position, [LENGTH, vocab]; what is said of certain ones is of no account."""
        if state not in self.known:
            left = self.joint
            for at, id in enumerate(state):
                if id != MASK:
                    left = left.narrow(at, id, 1)
            logits = torch.full((LENGTH, TOKENS + 1), 50.0, dtype=torch.float64)
            for at, id in enumerate(state):
                if id == MASK:
                    logits[at, :TOKENS] = left.sum([each for each in range(LENGTH) if each != at]).log()
            self.known[state] = logits
        return self.known[state]


@pytest.fixture(scope="module")
def joint() -> torch.Tensor:
    """Probabilities of all sequences, of very unequal size: the tokens hang on one another."""
    logits = 1.5 * torch.randn(TOKENS**LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    return logits.softmax(dim=0).view([TOKENS] * LENGTH)


@pytest.fixture
def drawn(joint, tiny_tokenizer):
    """`drawn(pinned={}, **settings)`: how often each sequence came, [all sequences], and how many passes there were."""

    def draw(pinned=None, **settings) -> tuple[torch.Tensor, int]:
        runner = Oracle(joint)
        params = SamplingParams(max_new_tokens=LENGTH, temperature=1.0, num_return_sequences=SAMPLES, **settings)
        generation = runner.asked([0, MASK, 1], params, tiny_tokenizer, pinned=pinned or {})
        counts = torch.zeros(TOKENS**LENGTH, dtype=torch.float64)
        for result in generation.results.values():
            counts[STATES.index(tuple(result.ids))] += 1
        assert runner.live == 0 and counts.sum() == SAMPLES
        return counts, runner.passes

    return draw


def surprise(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """How many standard deviations chi-square lies above its mean, the rare sequences counted as one."""
    order = probs.argsort(descending=True)
    counts, expected = counts[order], SAMPLES * probs[order]
    common = int((expected >= 5).sum())
    counts, expected = (torch.cat([each[:common], each[common:].sum()[None]]) for each in (counts, expected))
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


def spread(joint: torch.Tensor, steps: int, moves) -> torch.Tensor:
    """The exact law of a process over the canvas, [all sequences]: its states of each step with their probabilities, one step after another.

    `moves(step, state, probs)` yields what may come of a state, with its probability; probs are those of each position's tokens.
    """
    oracle, states = Oracle(joint), {(MASK,) * LENGTH: 1.0}
    for step in range(steps):
        after: dict[tuple[int, ...], float] = {}
        for state, p in states.items():
            for weight, to in moves(step, state, oracle.conditionals(state)[:, :TOKENS].softmax(dim=-1).tolist()) if MASK in state else [(1.0, state)]:
                after[to] = after.get(to, 0.0) + p * weight
        states = after
    return torch.tensor([states.get(state, 0.0) for state in STATES], dtype=torch.float64)


def either(choices: list[list[tuple[int, float]]]):
    """All ways to choose one id at each position, with their probabilities."""
    for way in itertools.product(*choices):
        if weight := math.prod(p for _, p in way):
            yield weight, tuple(id for id, _ in way)


def law_of_origin(joint: torch.Tensor, steps: int, cap: float = 0.0) -> torch.Tensor:
    """The exact law of D3PM's order with so many steps, [all sequences], with ReMDM-cap's remasking of what is not published."""
    times = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64).tolist()

    def moves(step, state, probs):
        t, s = times[step], 0.0 if step == steps - 1 else times[step + 1]
        again = min(cap, s / (1 - t)) if step else 0.0
        move, published = (t - s + again * (1 - t)) / t, state.index(MASK)
        open_at = [[(MASK, 1 - move), *((token, move * p) for token, p in enumerate(each))] for each in probs]
        certain_at = [[(id, 1.0)] if at < published else [(id, 1 - again), (MASK, again)] for at, id in enumerate(state)]
        return either([open_at[at] if id == MASK else certain_at[at] for at, id in enumerate(state)])

    return spread(joint, steps, moves)


def law_of_draws(joint: torch.Tensor, due) -> torch.Tensor:
    """The exact law where each step draws a token at every open position, and `due(step, open, probs, ids)` says which of them stay, by position."""

    def moves(step, state, probs):
        open_at = [at for at, id in enumerate(state) if id == MASK]
        for weight, ids in either([list(enumerate(each)) if id == MASK else [(id, 1.0)] for id, each in zip(state, probs)]):
            stay = due(step, open_at, probs, ids)
            yield weight, tuple(ids[at] if at in stay or at not in open_at else MASK for at in range(LENGTH))

    return spread(joint, LENGTH, moves)


def entropy(probs: list[float]) -> float:
    return -sum(p * math.log(p) for p in probs if p)


def law_of_remasking(joint: torch.Tensor, cap: float) -> torch.Tensor:
    """The exact law of the entropy order, a token more certain with each step, with remasking: what goes is made up for at once."""

    def moves(step, state, probs):
        left, sigma = LENGTH - step - 1, min(cap, (LENGTH - step - 1) / step) if step else 0.0
        published, open_at = state.index(MASK), sorted((at for at, id in enumerate(state) if id == MASK), key=lambda at: entropy(probs[at]))
        may = [at for at, id in enumerate(state) if id != MASK and at > published]
        for flips in itertools.product([True, False], repeat=len(may)):
            drawn = [at for at, flip in zip(may, flips) if flip]
            subsets = list(itertools.combinations(drawn, min(len(drawn), left)))
            for gone in subsets:
                chance = sigma ** len(drawn) * (1 - sigma) ** (len(may) - len(drawn)) / len(subsets)
                come = open_at[: 1 + len(gone)]
                for weight, ids in either([list(enumerate(probs[at])) if at in come else [(MASK if at in gone else id, 1.0)] for at, id in enumerate(state)]):
                    yield chance * weight, ids

    return spread(joint, LENGTH, moves)


def test_the_oracle_gives_the_conditionals_of_its_joint(joint):
    given = Oracle(joint).conditionals((2, MASK, MASK, 1))[2, :TOKENS].softmax(dim=-1)
    torch.testing.assert_close(given, joint[2, :, :, 1].sum(dim=0) / joint[2, :, :, 1].sum())


EXACT = [
    {"alg": "entropy"}, {"alg": "topk_margin"}, {"alg": "random"}, {"alg": "entropy", "block_length": 3}, {"confidence_threshold": 1.5},
    pytest.param({"alg": "topk_margin", "block_length": 1}, marks=pytest.mark.full),
    pytest.param({"alg": "random", "entropy_bound": 0.0, "block_length": 2}, marks=pytest.mark.full),
]  # fmt: skip


@pytest.mark.parametrize("settings", EXACT, ids=str)
def test_orders_that_do_not_go_by_the_drawn_tokens_draw_from_the_joint_with_one_token_a_pass(joint, drawn, settings):
    counts, passes = drawn(**settings)
    assert passes == LENGTH and surprise(counts, joint.flatten()) < 4


@pytest.mark.parametrize("order", ["maskgit_plus", "low_confidence"])
def test_orders_that_go_by_the_drawn_tokens_prefer_the_likely_ones(joint, drawn, order):
    counts, passes = drawn(alg=order)
    law = law_of_draws(joint, lambda step, open_at, probs, ids: [max(open_at, key=lambda at: probs[at][ids[at]])])
    assert passes == LENGTH and surprise(counts, law) < 4
    assert surprise(counts, joint.flatten()) > 50


def test_a_threshold_keeps_what_reaches_it_and_one_at_least(joint, drawn):
    counts, passes = drawn(alg="low_confidence", confidence_threshold=0.5)

    def due(step, open_at, probs, ids):
        chances = {at: probs[at][ids[at]] for at in open_at}
        return [at for at in open_at if chances[at] >= 0.5] or [max(chances, key=chances.get)]

    assert surprise(counts, law_of_draws(joint, due)) < 4
    assert passes <= LENGTH and surprise(counts, joint.flatten()) > 10


@pytest.mark.parametrize("pinned", [{1: 2}, {0: 1, 3: 0}])
def test_what_is_filled_in_is_drawn_from_the_joint_given_what_is_given(joint, drawn, pinned):
    counts, passes = drawn(alg="entropy", pinned=pinned)
    given = torch.tensor([all(state[at] == id for at, id in pinned.items()) for state in STATES])
    probs = joint.flatten() * given
    assert passes == LENGTH - len(pinned) and counts[~given].sum() == 0 and surprise(counts, probs / probs.sum()) < 4


@pytest.mark.parametrize("order", ["entropy", "topk_margin"])
def test_a_bound_keeps_the_first_of_the_order_whose_entropies_it_bears(joint, drawn, order):
    counts, _ = drawn(alg=order, entropy_bound=0.9)

    def due(step, open_at, probs, ids):
        sure = {at: -entropy(probs[at]) if order == "entropy" else sorted(probs[at])[-1] - sorted(probs[at])[-2] for at in open_at}
        ranked = sorted(open_at, key=lambda at: -sure[at])
        fits = [n for n in range(1, len(ranked) + 1) if sum(map(entropy, (probs[at] for at in ranked[:n]))) - max(entropy(probs[at]) for at in ranked[:n]) <= 0.9]
        return ranked[: max(fits)]

    law = law_of_draws(joint, due)
    assert surprise(counts, law) < 4
    far = float((law - joint.flatten()).abs().sum() / 2)
    all_at_once = float((law_of_origin(joint, 1) - joint.flatten()).abs().sum() / 2)
    assert 0.01 < far < all_at_once / 2


@pytest.mark.parametrize("steps, cap", [(3, 1.0), (4, 0.3)])
def test_remasking_with_d3pms_order_draws_from_its_own_law(joint, drawn, steps, cap):
    counts, _ = drawn(alg="origin", steps=steps, remask=cap)
    law, without = law_of_origin(joint, steps, cap), law_of_origin(joint, steps)
    assert surprise(counts, law) < 4
    assert float((law - without).abs().sum()) > 0.02  # which is another


def test_remasking_makes_up_for_what_is_taken_back_in_the_same_pass(joint, drawn):
    counts, passes = drawn(alg="entropy", remask=1.0)
    law = law_of_remasking(joint, 1.0)
    assert passes == LENGTH and surprise(counts, law) < 4
    assert float((law - joint.flatten()).abs().sum()) > 0.02


@pytest.mark.parametrize("steps", [1, 3])
def test_origin_draws_from_its_own_law(joint, drawn, steps):
    counts, _ = drawn(alg="origin", steps=steps)
    assert surprise(counts, law_of_origin(joint, steps)) < 4
    assert surprise(counts, joint.flatten()) > 6  # which is not the joint's


def test_origin_comes_near_the_joint_with_many_steps_and_runs_no_pass_in_vain(joint, drawn):
    far = [float((law_of_origin(joint, steps) - joint.flatten()).abs().sum() / 2) for steps in (1, 2, 4)]
    assert far[0] > 1.3 * far[1] > 1.5 * far[2]
    counts, passes = drawn(alg="origin", steps=256)
    assert passes == LENGTH and surprise(counts, joint.flatten()) < 4
