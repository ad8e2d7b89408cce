"""Rollouts: what training learns from, and measures itself by, is an answer."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig

from seodang.data.errors import UserError
from seodang.infer.requests.sequence import TokenSequence
from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut
from seodang.train.rollouts.rollout import roll_out
from seodang.train.stages.grpo import SharedPrompt

PROMPTS = [[5, 6, 7], [20, 21]]


@pytest.fixture
def refused(monkeypatch):
    """Every answer ends in an error of its own."""

    def refuse(*given):
        raise UserError("this answer fails")

    monkeypatch.setattr(TokenSequence, "commit", refuse)


def test_an_answer_that_fails_ends_the_rollout(tiny_llama, tiny_tokenizer, refused):
    with pytest.raises(UserError, match="this answer fails"):
        roll_out(tiny_llama, tiny_tokenizer, [{"prompt_ids": ids} for ids in PROMPTS], max_new_tokens=3)


def test_an_answer_that_fails_ends_the_measurement_of_held_out_prompts(tiny_llama, tiny_tokenizer, refused):
    with pytest.raises(UserError, match="this answer fails"):
        AnswerSampler(tiny_tokenizer, [HeldOut(ids, "") for ids in PROMPTS])(tiny_llama)


def test_an_answer_that_fails_ends_a_step_of_grpo_and_rloo(tiny_llama, tiny_tokenizer, refused):
    trainer = SimpleNamespace(
        model=tiny_llama, state=SimpleNamespace(global_step=0), args=SimpleNamespace(seed=0, process_index=0), _rollouts=(None, 0), num_generations=1, num_generations_eval=1,
        generation_config=GenerationConfig(max_new_tokens=3, do_sample=True), eos_token_ids=[2], processing_class=tiny_tokenizer,
        whole_model=lambda: nullcontext(tiny_llama), abandonable=lambda asked, waits: asked(),
    )  # fmt: skip
    with pytest.raises(UserError, match="this answer fails"):
        SharedPrompt._answers(trainer, PROMPTS)
