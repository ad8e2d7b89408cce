"""Diverse beam search against what transformers 4.55 gave, and by hand."""

import pytest
import torch

from seodang.infer.engine.generate import generate
from seodang.infer.engine.params import SamplingParams
from seodang.infer.strategies.diverse_beam import less_taken


def test_answers_and_scores_are_those_of_transformers_4(golden, solved):
    for model, case in golden("group_beam"):
        answers, scores = solved(model, case)
        assert answers == case["sequences"]
        assert scores == pytest.approx(case["scores"], abs=1e-4)


def test_a_token_taken_twice_loses_twice_the_penalty():
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-3.0, -1.0, -2.0]])
    assert less_taken(logprobs, [0, 2, 0], 0.5).tolist() == [[-2.0, -2.0, -3.5], [-4.0, -1.0, -2.5]]
    assert less_taken(logprobs, [], 0.5) is logprobs


def test_a_great_penalty_holds_groups_apart_at_every_position(tiny_llama, tiny_tokenizer):
    groups = {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 1e4, "num_return_sequences": 4}
    params = SamplingParams(**groups, max_new_tokens=10, ignore_eos=True)
    answers = [each.ids for each in generate(tiny_llama, tiny_tokenizer, [[5, 6, 7]], params)]
    assert all(len(set(column)) == 4 for column in zip(*answers))
    greedy = generate(tiny_llama, tiny_tokenizer, [[5, 6, 7]], SamplingParams(max_new_tokens=10, ignore_eos=True))[0].ids
    assert greedy in answers  # the first group loses nothing


def test_one_group_is_beam_search(tiny_llama, tiny_tokenizer):
    common = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8, "ignore_eos": True}
    settings = [SamplingParams(strategy=name, **common) for name in ("diverse_beam", "beam")]
    one, plain = (generate(tiny_llama, tiny_tokenizer, [[9, 8]], each) for each in settings)
    assert [(each.ids, each.score) for each in one] == [(each.ids, each.score) for each in plain]
