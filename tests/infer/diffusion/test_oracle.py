"""A denoiser that knows the joint distribution of four tokens: which orders draw from it exactly, and how far off the others are."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from seodang.infer import SamplingParams
from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import run
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.requests.stop import AnswerText
from seodang.infer.runners.architecture import Capabilities
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.strategies.registry import choose
from seodang.infer.text.detokenise import detokeniser

TOKENS, LENGTH, MASK = 4, 4, 4  # the mask comes behind them
SAMPLES = 600
STATES = list(itertools.product(range(TOKENS), repeat=LENGTH))


class Oracle:
    """A runner whose logits at an open position are the exact distribution of its token given the certain ones; those of the mask are higher still."""

    capabilities, limit, vocab_size = Capabilities(both_ways=True), None, TOKENS + 1

    def __init__(self, joint: torch.Tensor):
        self.joint, self.passes, self.slots, self.known = joint, 0, {}, {}
        self.config = LlamaConfig(vocab_size=self.vocab_size)
        declare(self.config, Diffusion(MASK))
        self.model = SimpleNamespace(config=self.config)

    @property
    def live(self) -> int:
        return len(self.slots)

    def allocate(self, source_ids=()) -> int:
        slot = max(self.slots, default=0) + 1
        self.slots[slot] = 0
        return slot

    def fork(self, slots) -> list[int]:
        return [self.allocate() for _ in slots]

    def length(self, slot) -> int:
        return self.slots[slot]

    def truncate(self, slot, length) -> None:
        self.slots[slot] = length

    def attend_both_ways(self, slot, on) -> None:
        pass

    def release(self, slots) -> None:
        for slot in slots:
            del self.slots[slot]

    def forward(self, slots, ids, keep) -> torch.Tensor:
        self.passes += 1
        for slot, new in zip(slots, ids):
            self.slots[slot] += len(new)
        return torch.cat([self.conditionals(tuple(new[-LENGTH:]))[LENGTH - kept :] for new, kept in zip(ids, keep)])

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
    """`drawn(**settings)`: how often each sequence came, [all sequences], and how many passes there were."""

    def draw(**settings) -> tuple[torch.Tensor, int]:
        runner, text = Oracle(joint), lambda: AnswerText(detokeniser(tiny_tokenizer))
        params = SamplingParams(max_new_tokens=LENGTH, temperature=1.0, num_return_sequences=SAMPLES, **settings)
        generation = Generation(Request(0, [0, MASK, 1], params, 11, frozenset(), text, choose(params)))
        list(run(Engine(runner, max_rows=SAMPLES), [generation]))
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


def law_of_origin(joint: torch.Tensor, steps: int) -> torch.Tensor:
    """The exact law of D3PM's order with so many steps, [all sequences]: the states of each step with their probabilities, one after another."""
    oracle, times = Oracle(joint), torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64).tolist()
    states = {(MASK,) * LENGTH: 1.0}
    for step in range(steps):
        move = 1.0 if step == steps - 1 else 1 - times[step + 1] / times[step]
        after: dict[tuple[int, ...], float] = {}
        for state, p in states.items():
            probs = oracle.conditionals(state)[:, :TOKENS].softmax(dim=-1).tolist()
            choices = [[(id, 1.0)] if id != MASK else [(MASK, 1 - move), *((token, move * probs[at][token]) for token in range(TOKENS))] for at, id in enumerate(state)]
            for way in itertools.product(*choices):
                weight = p
                for _, each in way:
                    weight *= each
                if weight:
                    key = tuple(id for id, _ in way)
                    after[key] = after.get(key, 0.0) + weight
        states = after
    return torch.tensor([states.get(state, 0.0) for state in STATES], dtype=torch.float64)


def test_the_oracle_gives_the_conditionals_of_its_joint(joint):
    given = Oracle(joint).conditionals((2, MASK, MASK, 1))[2, :TOKENS].softmax(dim=-1)
    torch.testing.assert_close(given, joint[2, :, :, 1].sum(dim=0) / joint[2, :, :, 1].sum())


@pytest.mark.parametrize("order", ["entropy", "topk_margin"])
def test_orders_that_go_by_what_is_certain_draw_from_the_joint_with_one_token_a_step(joint, drawn, order):
    counts, passes = drawn(alg=order)
    assert passes == LENGTH and surprise(counts, joint.flatten()) < 4


def test_an_order_that_goes_by_the_drawn_tokens_prefers_the_likely_ones(joint, drawn):
    counts, _ = drawn(alg="maskgit_plus")
    assert surprise(counts, joint.flatten()) > 50


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
