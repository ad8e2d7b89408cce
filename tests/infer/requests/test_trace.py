"""Traces: every stage's probabilities recomputed by hand from the model, and no token changed by looking."""

import math

import pytest
import torch

from seodang.infer import Committed, Observed, SamplingParams, generate
from seodang.infer.requests.trace import BeamTrace, ChoiceTrace, ContrastTrace, DraftTrace, LayerTrace, PassTrace

PROMPT = [5, 9, 17, 30]
PARAMS = SamplingParams(temperature=0.7, top_k=6, top_p=0.8, repetition_penalty=1.3, seed=4, max_new_tokens=8)


def records(result, kind):
    return [(event.position, event.what) for event in result.trace if isinstance(event, Observed) and isinstance(event.what, kind)]


@torch.no_grad()
def model_logits(model, ids):
    return model(torch.tensor([ids])).logits[0, -1].double()


def penalised(logits, ids, by):
    for id in set(ids):
        logits[id] = logits[id] / by if logits[id] > 0 else logits[id] * by
    return logits


def only(logits, kept):
    return torch.tensor([x if id in kept else -math.inf for id, x in enumerate(logits.tolist())], dtype=torch.float64)


def by_hand(model, ids):
    """The distributions of the model and after each filter of PARAMS, one after the other."""
    stages = {"model": model_logits(model, ids)}
    stages["repetition_penalty"] = penalised(stages["model"].clone(), ids, 1.3)
    stages["temperature"] = stages["repetition_penalty"] / 0.7
    best = sorted(range(128), key=lambda id: -stages["temperature"][id])[:6]
    stages["top_k"] = only(stages["temperature"], best)
    probs, kept = stages["top_k"].softmax(-1), []
    for id in best:
        kept.append(id)
        if sum(probs[each] for each in kept) >= 0.8:
            break
    stages["top_p"] = only(stages["top_k"], kept)
    return {name: logits.softmax(-1) for name, logits in stages.items()}


def test_each_stage_has_the_probabilities_of_a_hand_computation(tiny_llama, tiny_tokenizer):
    [result] = generate(tiny_llama, tiny_tokenizer, [PROMPT], PARAMS, trace=True)
    found = records(result, ChoiceTrace)
    assert [position for position, _ in found] == list(range(8))
    for position, filtered in found:
        expected = by_hand(tiny_llama, PROMPT + result.ids[:position])
        names = [name for name, _ in filtered.stages]
        assert names[0] == "model" and names == [name for name in expected if name in names]
        assert {"repetition_penalty", "temperature", "top_k"} <= set(names)
        for name, candidates in filtered.stages:
            assert len(candidates) == min(10, int((expected[name] > 0).sum()))
            for id, p in candidates:
                assert p == pytest.approx(expected[name][id].item(), abs=1e-5)
        last = expected["top_p"]
        assert filtered.id == result.ids[position]
        assert filtered.probability == pytest.approx(last[filtered.id].item(), abs=1e-5) == pytest.approx(math.exp(result.logprobs[position]), abs=1e-5)
        assert filtered.entropy == pytest.approx(-sum(p * math.log(p) for p in last.tolist() if p > 0), abs=1e-4)


def test_a_filter_that_changes_nothing_is_no_stage(tiny_llama, tiny_tokenizer):
    params = SamplingParams(do_sample=True, top_k=128, suppress_tokens=(7,), no_repeat_ngram_size=4, seed=1, max_new_tokens=4)
    [result] = generate(tiny_llama, tiny_tokenizer, [PROMPT], params, trace=True)
    assert all([name for name, _ in filtered.stages] == ["model", "suppress_tokens"] for _, filtered in records(result, ChoiceTrace))
    [result] = generate(tiny_llama, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=3), trace=True)
    assert all([name for name, _ in filtered.stages] == ["model"] for _, filtered in records(result, ChoiceTrace))


def test_passes_count_positions_and_the_cache(tiny_llama, tiny_tokenizer):
    results = generate(tiny_llama, tiny_tokenizer, [PROMPT, [8, 9]], SamplingParams(max_new_tokens=3, ignore_eos=True), trace=True)
    passes = [what for _, what in records(results[0], PassTrace)]
    assert [(each.positions, each.of_all, each.cached, each.prefill) for each in passes] == [(4, 6, 4, True), (1, 2, 5, False), (1, 2, 6, False)]
    assert all(each.seconds > 0 for each in passes)


STRATEGIES = {
    "greedy": {},
    "sampling": {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "seed": 3},
    "several": {"temperature": 1.0, "seed": 3, "num_return_sequences": 3},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "sampled beam": {"num_beams": 3, "do_sample": True, "seed": 5},
    "assisted": {"prompt_lookup_num_tokens": 4, "no_repeat_ngram_size": 5},
    "sampled assisted": {"prompt_lookup_num_tokens": 4, "temperature": 0.8, "seed": 6},
    "early exit": {"assistant_early_exit": 1, "assistant_confidence_threshold": 0.0, "temperature": 0.8, "seed": 6},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": [0, 1]},
    "best_of_n": {"best_of": 3, "temperature": 1.0, "seed": 2},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_looking_changes_no_token(tiny_llama, tiny_tokenizer, name):
    prompts = [PROMPT, [40, 41, 42, 40, 41, 42, 40, 41], [99]]
    params = SamplingParams(max_new_tokens=12, **STRATEGIES[name])
    plain = generate(tiny_llama, tiny_tokenizer, prompts, params)
    traced = generate(tiny_llama, tiny_tokenizer, prompts, params, trace=True)
    assert [result.ids for result in traced] == [result.ids for result in plain]
    assert not any(result.trace for result in plain)
    for result in traced:
        told = [event for event in result.trace if isinstance(event, Committed) and event.choice == result.choice]
        assert [event.id for event in told] == result.ids and {event.prompt_index for event in result.trace} == {result.prompt_index}
        assert records(result, PassTrace)


@pytest.mark.parametrize(
    "name, kind", [("beam", BeamTrace), ("assisted", DraftTrace), ("early exit", DraftTrace), ("contrastive", ContrastTrace), ("dola", LayerTrace)]
)
def test_each_strategy_tells_its_own_records(tiny_llama, tiny_tokenizer, name, kind):
    prompt = [40, 41, 42, 40, 41, 42, 40, 41]
    [result, *_] = generate(tiny_llama, tiny_tokenizer, [prompt], SamplingParams(max_new_tokens=12, **STRATEGIES[name]), trace=True)
    assert records(result, kind)


def test_beams_tell_true_sums(tiny_llama, tiny_tokenizer):
    [result] = generate(tiny_llama, tiny_tokenizer, [PROMPT], SamplingParams(num_beams=3, max_new_tokens=5, ignore_eos=True), trace=True)
    paths = {0: ([], 0.0)}
    for _, record in records(result, BeamTrace):
        grown = {}
        for lane, (parent, id, total) in enumerate(record.live):
            ids, before = paths[parent]
            logprob = model_logits(tiny_llama, PROMPT + ids).log_softmax(-1)[id].item()
            assert total == pytest.approx(before + logprob, abs=1e-4)
            grown[lane] = (ids + [id], total)
        paths = grown or paths
    assert result.ids[:-1] in [ids for ids, _ in paths.values()]
