"""Held-out prompts answered while a model trains: sources as ids, given beginnings, other measures."""

import pytest

from seodang.infer import SamplingParams, generate
from seodang.train.maths.text_metrics import TEXT_METRICS, text_metrics
from seodang.train.rollouts.eval_generation import AnswerSampler, HeldOut


def test_sources_are_answered_behind_their_given_beginnings_and_measured(tiny, t5_tokenizer):
    model, shown = tiny("t5", eos_token_id=1), []
    sources = [t5_tokenizer(text)["input_ids"] for text in ("ab 7", "나무가 자란다. " * 8)]
    questions = [HeldOut(sources[0], "나무가", prefix="나무"), HeldOut(sources[1], "x")]
    params = SamplingParams(max_new_tokens=8)
    sampler = AnswerSampler(t5_tokenizer, questions, params=params, measure=text_metrics, show=lambda question, answer: shown.append(answer))
    found = sampler(model)
    assert tuple(found) == TEXT_METRICS and found == text_metrics(sampler.answers, ["나무가", "x"])
    alone = [generate(model, t5_tokenizer, [source], own)[0].text for source, own in zip(sources, (SamplingParams(max_new_tokens=8, prefix="나무"), params))]
    assert sampler.answers == alone == shown and sampler.answers[0].startswith("나무")
    assert AnswerSampler(t5_tokenizer, questions, params=params)(model) == pytest.approx({name: found[name] for name in ("exact", "contains")})
