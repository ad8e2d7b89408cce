"""Every strategy says natively what it says on the direct runner, token for token in float32: on pasts of several lengths, alone and in a batch."""

import pytest
import torch

from seodang.infer import SamplingParams, generate
from seodang.infer.engine import generate as calls
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.native_runner import NativeRunner
from seodang.infer.strategies.registry import STRATEGIES, choose

PROMPTS = [[5, 6, 7, 8, 5, 6, 7], [20, 21, 22], list(range(30, 60))]
WAYS = {
    "greedy": {},
    "sampling": {"temperature": 1.2, "top_k": 40, "top_p": 0.95, "seed": 3},
    "beam": {"num_beams": 4, "num_return_sequences": 2},
    "beam_sampling": {"num_beams": 3, "do_sample": True, "temperature": 1.5, "seed": 3},
    "stochastic_beam": {"strategy": "stochastic_beam", "num_beams": 3, "do_sample": True, "seed": 3},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "constrained_beam": {"num_beams": 3, "force_words_ids": [[30, 31]]},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "guidance": {"guidance_scale": 1.7, "negative_prompt": [9, 8, 7]},
    "prompt lookup": {"prompt_lookup_num_tokens": 4},
    "early exit": {"assistant_early_exit": 1},
    "draft model": {"assistant_model": "draft"},
    "amateur model": {"amateur_model": "draft"},
    "best_of_n": {"best_of": 3, "temperature": 1.0, "seed": 3},
    "minimum_bayes_risk": {**STRATEGIES["minimum_bayes_risk"].least, "temperature": 1.0, "seed": 3},
    "self_consistency": {**STRATEGIES["self_consistency"].least, "answer_of": lambda text: text[:1], "temperature": 1.0, "seed": 3},
    "grammar": {"regex": "[a-f]{4}(0|1)+"},
    "biases and penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "logit_bias": {50: 3.0}, "min_new_tokens": 6},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_strategy_says_the_same_on_both_runners(tiny, tiny_tokenizer, monkeypatch, natively, kind, way):
    model, runners = tiny(kind, num_hidden_layers=4, seed=9), []
    monkeypatch.setattr(calls, "open_runner", lambda model, opened=calls.open_runner: runners.append(opened(model)) or runners[-1])
    params = SamplingParams(**{"max_new_tokens": 10, **{name: tiny("llama", seed=1) if value == "draft" else value for name, value in WAYS[way].items()}})
    natively.clear()
    ours = generate(model, tiny_tokenizer, PROMPTS, params)
    assert len(natively) >= runners[0].passes // 2 > 0
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    natively.clear()
    theirs = generate(model, tiny_tokenizer, PROMPTS, params)
    assert [type(runner) for runner in runners] == [NativeRunner, DirectRunner] and not natively
    assert [(each.ids, each.finish_reason) for each in ours] == [(each.ids, each.finish_reason) for each in theirs]
    assert [each.score for each in ours] == pytest.approx([each.score for each in theirs], abs=1e-4, nan_ok=True)


def test_no_strategy_of_a_decoder_is_left_out():
    meant = {choose(SamplingParams(**{name: value for name, value in way.items() if value != "draft"})).name for way in WAYS.values()}
    assert meant == set(STRATEGIES) - {"diffusion"}


ODD = {"hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 18, "intermediate_size": 75}
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 5, "tie_word_embeddings": False},  # tied, it goes on to repeat itself
    "smollm3": {"use_sliding_window": True, "sliding_window": 7},
    "olmo2": ODD,
    "phi3": {**ODD, "sliding_window": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.7}},
    "gpt2": {"n_embd": 54, "n_head": 3},
    "qwen3_moe": {"norm_topk_prob": True},
}
AS_THERE = {
    "greedy": {},
    "beams": {"num_beams": 4, "length_penalty": 0.5},
    "penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 6},
}


@pytest.mark.parametrize("way", AS_THERE)
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_says_natively_what_transformers_says_token_for_token(fresh_tiny, tiny_tokenizer, monkeypatch, natively, reading, kind, way):
    reading(True)
    model, runners = fresh_tiny(kind, seed=4, **FAMILIES[kind]), []
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    monkeypatch.setattr(calls, "open_runner", lambda model, opened=calls.open_runner: runners.append(opened(model)) or natively.clear() or runners[-1])
    prompts = PROMPTS[::2]
    ours = generate(model, tiny_tokenizer, prompts, SamplingParams(max_new_tokens=14, **AS_THERE[way]))
    for prompt, answer in zip(prompts, ours):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=14, do_sample=False, pad_token_id=0, **AS_THERE[way])[0, len(prompt) :].tolist()
        assert answer.ids == theirs
    [runner] = runners
    torch_s = len(prompts[1]) if kind == "gpt2" else 0  # whose long prompts torch reads
    assert type(runner) is NativeRunner and sum(natively) == runner.positions - torch_s
    assert len({id for answer in ours for id in answer.ids}) > 5
