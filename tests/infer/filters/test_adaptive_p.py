"""Adaptive-p: its curve and its moving target by hand, forks, rejected drafts, and what it is for."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.filters.adaptive_p import AdaptiveTarget, adaptive_p
from seodang.infer.filters.pipeline import uses
from seodang.infer.requests.rng import choose, key


def test_the_curve_by_hand():
    logits = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.5, 0.3, 0.2, 0.0]], dtype=torch.float64).log()
    got = adaptive_p(logits, torch.tensor([[0.5], [0.2]], dtype=torch.float64))
    # 0.2, 0.3 and 0.4 from the target are 2/3, 1 and 4/3 widths: 5 - 10 (4/9) / (5/3), 5 - 10 / 2, 5 - 10 (16/9) / (7/3)
    assert got[0].tolist() == pytest.approx([5 - 8 / 3, 0.0, 5 - 160 / 21, -torch.inf])
    assert got[1].tolist() == pytest.approx([0.0, 5 - 10 * (1 / 9) / (4 / 3), 5.0, -torch.inf])


def test_the_target_moves_against_what_came_by_hand():
    state = AdaptiveTarget(target=0.5, decay=0.5)
    probs = torch.tensor([0.7, 0.2, 0.1, 0.0], dtype=torch.float64)
    assert state.current == 0.5  # as if the past had met it: a total of 1.0 over a weight of 2
    state.offer(probs)
    state.accept(0)  # 0.7 + 0.5 * 1.0 = 1.2 over 1 + 0.5 * 2 = 2: a mean of 0.6
    assert state.current == pytest.approx(0.4)
    state.offer(probs)
    state.accept(2)  # 0.1 + 0.6 = 0.7 over 2: a mean of 0.35
    assert state.current == pytest.approx(0.65)
    for _ in range(20):
        state.offer(torch.tensor([1.0]))
        state.accept(0)
    assert state.current == pytest.approx(0.0, abs=1e-5)  # never below


def test_what_was_not_offered_or_had_been_dropped_teaches_nothing():
    state = AdaptiveTarget(0.3, 0.9)
    state.accept(4)
    state.offer(torch.tensor([1.0, 0.0]))
    state.accept(1)
    state.accept(0)
    assert state.current == pytest.approx(0.3)


def test_forks_go_on_by_themselves_from_what_was_offered():
    state = AdaptiveTarget(0.5, 0.5)
    state.offer(torch.tensor([0.75, 0.25]))
    fork = state.fork()
    state.accept(0)  # 0.75 + 0.5 over 2
    fork.accept(1)  # 0.25 + 0.5 over 2
    assert (state.current, fork.current) == (pytest.approx(1 - 0.625), pytest.approx(1 - 0.375))
    again = fork.fork()
    again.offer(torch.tensor([0.75, 0.25]))
    again.accept(0)  # 0.75 + 0.375 over 2
    assert (fork.current, again.current) == (pytest.approx(0.625), pytest.approx(1 - 0.5625))


@pytest.mark.parametrize("target", [0.2, 0.4])
def test_the_mean_probability_comes_to_the_target(target):
    logits = torch.tensor([[0.45, 0.25, 0.12, 0.08, 0.05, 0.03, 0.02]], dtype=torch.float64).log()
    state, came = AdaptiveTarget(target, 0.9), []
    for position in range(1500):
        probs = logits.softmax(dim=-1)
        state.offer(probs[0])
        id = int(choose(adaptive_p(logits, torch.tensor([[state.current]])), [key(0, position)])[0])
        state.accept(id)
        came.append(float(probs[0, id]))
    assert sum(came[500:]) / 1000 == pytest.approx(target, abs=0.03)
    assert abs(sum((logits.exp() ** 2)[0]) - 0.4) > 0.08  # as drawn without it the mean would be this


def test_it_samples_and_stands_apart_from_mirostat():
    assert SamplingParams(adaptive_target=0.5).samples and uses(SamplingParams(adaptive_target=0.5)) == {"adaptive_p"}
    for wrong, words in [
        ({"adaptive_target": 0.0}, r"in \(0, 1\]"), ({"adaptive_target": 0.5, "adaptive_decay": 1.0}, r"in \[0, 0.99\]"),
        ({"adaptive_decay": 0.5}, "says nothing without adaptive_target"), ({"adaptive_target": 0.5, "mirostat_tau": 3.0}, "mirostat_tau chooses"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=words):
            SamplingParams(**wrong)


def test_rejected_drafts_leave_no_trace_and_beams_are_the_same_in_company(double, tiny_tokenizer):
    model, prompt = double("llama"), [5, 6, 7, 8, 5, 6]
    drawn = {"adaptive_target": 0.2, "adaptive_decay": 0.5, "temperature": 0.2, "top_k": 12, "seed": 4, "max_new_tokens": 24}
    alone = generate(model, tiny_tokenizer, [prompt], SamplingParams(**drawn))[0].ids
    assert alone != generate(model, tiny_tokenizer, [prompt], SamplingParams(**{**drawn, "adaptive_decay": 0.99}))[0].ids
    drafted = SamplingParams(**drawn, prompt_lookup_num_tokens=4, num_assistant_tokens_schedule="constant")
    assert generate(model, tiny_tokenizer, [prompt], drafted)[0].ids == alone
    beams = SamplingParams(**{**drawn, "num_beams": 3, "max_new_tokens": 6})
    together = generate(model, tiny_tokenizer, [prompt, prompt[:3]], [beams, SamplingParams(**drawn)])
    assert together[0].ids == generate(model, tiny_tokenizer, [prompt], beams)[0].ids
