"""The approximate cache of bidirectional models: passes over the block alone, as transformers' own cache gives them when it is kept by hand."""

from dataclasses import replace

import pytest

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate, stream
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.ragged import RaggedRunner

from .by_hand import NEW, ByHand, passes_by_hand
from .conftest import MASK, canvas_logits
from .test_denoising import PROMPTS, steps_in

CASES = [
    {"cache_refresh": 3}, {"cache_refresh": 99, "steps": 4}, {"cache_refresh": 2, "block_length": 3}, {"cache_refresh": 99, "block_length": 4, "steps": 4},
    {"cache_refresh": 3, "block_length": 4, "dual_cache": True}, {"cache_refresh": 99, "block_length": 5, "dual_cache": True},
    {"cache_refresh": 2, "cfg_scale": 1.5}, {"cache_refresh": 4, "block_length": 3, "cfg_scale": 0.7},
]  # fmt: skip


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "ragged"])
def test_every_pass_is_that_of_transformers_own_cache_kept_by_hand(denoiser, tiny_tokenizer, monkeypatch, shift, direct):
    model = denoiser("bidirectional", shift)
    if not direct:
        monkeypatch.setattr("seodang.infer.runners.open.supports_direct", lambda model: False)
        assert type(open_runner(model)) is RaggedRunner
    asked = [(prompt, settings) for settings in CASES for prompt in PROMPTS]
    params = [SamplingParams(max_new_tokens=NEW, ignore_eos=True, **settings) for _, settings in asked]
    results = generate(model, tiny_tokenizer, [prompt for prompt, _ in asked], params, trace=True)
    for (prompt, settings), result in zip(asked, results, strict=True):
        refresh, block, dual = settings["cache_refresh"], settings.get("block_length"), settings.get("dual_cache", False)
        want = passes_by_hand(model, prompt, refresh, block, dual, NEW // settings.get("steps", NEW), settings.get("cfg_scale", 0.0))
        steps = steps_in(result)
        assert [(list(step.canvas), step.cached) for step in steps] == [(each.canvas, each.cached) for each in want], settings
        assert [p for step in steps for p in step.logprobs] == pytest.approx([p for each in want for p in each.logits.log_softmax(dim=-1).amax(dim=-1).tolist()], abs=1e-10)
        assert result.forwards == len(want) and any(each.cached for each in want)


def test_a_pass_in_between_reads_the_block_alone_and_one_pass_a_refresh_is_exact(denoiser, tiny_tokenizer, monkeypatch):
    model, read = denoiser("bidirectional", 1), []
    kind = type(open_runner(model))
    monkeypatch.setattr(kind, "observe", lambda self, slots, ids, *rest, own=kind.observe: read.append([len(new) for new in ids]) or own(self, slots, ids, *rest))
    asked = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    reads = lambda **settings: read.clear() or generate(model, tiny_tokenizer, [PROMPTS[2]], replace(asked, **settings)) and [each for [each] in read]
    whole = len(PROMPTS[2]) + NEW
    assert reads() == reads(cache_refresh=1) == [whole] * NEW
    assert reads(cache_refresh=4) == [whole, *[NEW + 1] * 3] * 2
    assert reads(cache_refresh=99, block_length=4) == [whole, *[NEW + 1] * 3, whole, *[5] * 3]  # what stands behind the block, too
    assert reads(cache_refresh=99, block_length=4, dual_cache=True) == [whole, 5, 5, 5] * 2
    exact = generate(model, tiny_tokenizer, PROMPTS, replace(asked, logprobs=2, temperature=1.0, seed=3))
    once = generate(model, tiny_tokenizer, PROMPTS, replace(asked, logprobs=2, temperature=1.0, seed=3, cache_refresh=1))
    assert [(each.ids, each.logprobs, each.top_logprobs) for each in once] == [(each.ids, each.logprobs, each.top_logprobs) for each in exact]


SETTINGS = [
    {}, {"cache_refresh": 3, "temperature": 1.0, "seed": 1, "num_return_sequences": 2, "logprobs": 1}, {"cache_refresh": 2, "remask": 0.7, "seed": 2, "steps": 6, "temperature": 0.8},
    {"cache_refresh": 99, "block_length": 3, "dual_cache": True, "temperature": 0.9, "seed": 3, "num_return_sequences": 2}, {"confidence_threshold": 0.05},
    {"cache_refresh": 2, "cfg_scale": 1.0, "temperature": 0.7, "seed": 4, "num_return_sequences": 2}, {"cache_refresh": 4, "alg": "origin", "seed": 5, "temperature": 1.0, "logprobs": 2},
    {"cache_refresh": 3, "block_length": 3, "dual_cache": True, "confidence_threshold": 0.05}, {"cache_refresh": 2, "suffix": "ab", "prefix": "c"},
    {"cache_refresh": 3, "max_new_tokens": 1, "dual_cache": True, "block_length": 2}, {"cache_refresh": 3, "hide": True}, {"cache_refresh": 2, "block_length": 4, "dual_cache": True, "hide": True},
]  # fmt: skip


@pytest.mark.parametrize("shift", [0, 1])
def test_answers_are_the_same_in_any_company_and_nothing_is_left_of_them(denoiser, tiny_tokenizer, shift):
    model = denoiser("bidirectional", shift)
    hidden = lambda prompt, settings: {**settings, "hide": (), "attention_mask": [1, 0, *[1] * (len(prompt) - 2)]} if "hide" in settings else settings
    asked = [(prompt, SamplingParams(**{"max_new_tokens": NEW, **hidden(prompt, settings)})) for settings in SETTINGS for prompt in PROMPTS]
    together = generate(model, tiny_tokenizer, [prompt for prompt, _ in asked], [params for _, params in asked], max_rows=9)
    for place, (prompt, params) in enumerate(asked):
        own = [each for each in together if each.prompt_index == place]
        for alone, result in zip(generate(model, tiny_tokenizer, [prompt], params), own, strict=True):
            assert (result.ids, result.text, result.forwards) == (alone.ids, alone.text, alone.forwards), params.given
            assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-9)
            assert [each.logprob for each in result.top_logprobs] == pytest.approx([each.logprob for each in alone.top_logprobs], abs=1e-9)
    events = stream(model, tiny_tokenizer, PROMPTS[0], SamplingParams(max_new_tokens=NEW, cache_refresh=2, seed=1, temperature=1.0))
    next(events), events.close()  # cancelled between a full pass and the next
    assert generate(model, tiny_tokenizer, PROMPTS[:1], SamplingParams(max_new_tokens=NEW))[0].ids == together[0].ids


def test_likelihoods_are_those_of_the_pass_that_was_read(denoiser, tiny_tokenizer):
    model = denoiser("bidirectional", 1)
    [result] = generate(model, tiny_tokenizer, [PROMPTS[0]], SamplingParams(max_new_tokens=NEW, ignore_eos=True, cache_refresh=99, steps=4, logprobs=2), trace=True)
    first, *later = steps_in(result)
    exact = canvas_logits(model, PROMPTS[0], [MASK] * NEW, NEW).log_softmax(dim=-1)
    for position, id, _ in first.committed:
        assert result.top_logprobs[position].logprob == pytest.approx(exact[position, id].item())
    canvas = [MASK if id is None else id for id in first.canvas]
    by_hand = ByHand(model, PROMPTS[0])
    by_hand.full([MASK] * NEW)
    cached = by_hand.cached(canvas, range(NEW), False).log_softmax(dim=-1)
    for position, id, _ in later[0].committed:
        assert result.top_logprobs[position].logprob == pytest.approx(cached[position, id].item())


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"cache_refresh": 0}, "cache_refresh must be a whole number from 1, got 0"),
        ({"dual_cache": True, "block_length": 4}, "dual_cache=True says nothing without cache_refresh: give both"),
        ({"dual_cache": True, "cache_refresh": 2}, "dual_cache keeps what stands behind a block, but without block_length"),
        ({"cache_refresh": 2, "block_length": 1}, "cache_refresh=2 says nothing with block_length=1"),
        ({"cache_refresh": 2, "dual_cache": True, "block_length": 4, "cfg_scale": 1.0}, "dual_cache does not go with cfg_scale=1.0"),
    ],
)
def test_what_says_nothing_is_refused_by_name(denoiser, tiny_tokenizer, settings, reason):
    with pytest.raises(UserError, match=reason):
        generate(denoiser("bidirectional"), tiny_tokenizer, PROMPTS, SamplingParams(**{"max_new_tokens": NEW, **settings}))


def test_where_the_cache_is_exact_or_cannot_be_it_is_refused_by_name(denoiser, tiny, tiny_tokenizer):
    asked = SamplingParams(max_new_tokens=NEW, cache_refresh=2)
    for attention, block in (("prompt_causal", None), ("block_causal", 3)):
        with pytest.raises(UserError, match=rf"cache_refresh=2 keeps by approximation what this llama keeps exactly \(attention='{attention}'\)"):
            generate(denoiser(attention, 1, block), tiny_tokenizer, PROMPTS, asked)
    with pytest.raises(UserError, match="cache_refresh=2 asks for diffusion, but this llama speaks from left to right"):
        generate(tiny("llama"), tiny_tokenizer, PROMPTS, asked)
    turning = denoiser("bidirectional", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    with pytest.raises(UserError, match="dual_cache reads a block anew in the midst of what is kept, which llama cannot"):
        generate(turning, tiny_tokenizer, PROMPTS, replace(asked, block_length=4, dual_cache=True))
    assert len(generate(turning, tiny_tokenizer, PROMPTS, asked)) == len(PROMPTS)
