"""Answers by diffusion: what a plain loop over the model's own forward pass finds, in any company; prompts stay, masks never come."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import Committed, Finished, Observed, PrefixCache, Provisional, SamplingParams, generate, stream
from seodang.infer.requests.trace import DiffusionStep
from seodang.infer.runners.open import open_runner

from .conftest import MASK, greedy

PROMPTS = [[5, 6, 7, 8, 5, 6], [20, 21, 22], [9, 9, MASK, 9, 10, 11, 12, 30, 31, 32, 33]]  # one has the mask's own id
KINDS = [("bidirectional", None), ("prompt_causal", None), ("block_causal", 3)]
NEW = 8


def steps_in(result, choice: int = 0) -> list[DiffusionStep]:
    return [each.what for each in result.trace if isinstance(each, Observed) and isinstance(each.what, DiffusionStep) and each.choice == choice]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("attention, block", KINDS)
def test_every_step_is_that_of_a_plain_loop_over_the_models_own_pass(denoiser, tiny_tokenizer, attention, block, shift):
    model = denoiser(attention, shift, block)
    asked = [("entropy", None), ("topk_margin", 5), ("maskgit_plus", 3), ("entropy", 1)]
    prompts = [prompt for prompt in PROMPTS for _ in asked]
    params = [SamplingParams(max_new_tokens=NEW, ignore_eos=True, alg=alg, steps=steps) for _ in PROMPTS for alg, steps in asked]
    for prompt, each, result in zip(prompts, params, generate(model, tiny_tokenizer, prompts, params, trace=True)):
        want = greedy(model, prompt, NEW, each.alg, each.steps)
        assert [list(step.canvas) for step in steps_in(result)] == want
        assert result.ids == want[-1] and result.finish_reason == "length"
