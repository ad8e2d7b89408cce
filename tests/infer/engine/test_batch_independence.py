"""A row's answer does not depend on its batch: always in float64, and in float32 on real requests; streams begin at once."""

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seodang.infer import Committed, SamplingParams, generate, stream
from seodang.infer.engine import generate as calls
from seodang.infer.runners.open import open_runner

SAMPLES = Path(__file__).parents[3] / "data" / "samples"

STRATEGIES = {
    "greedy": {},
    "sampling": {"temperature": 1.2, "top_k": 40, "top_p": 0.95},
    "beam": {"num_beams": 3},
    "beam_sampling": {"num_beams": 3, "do_sample": True, "temperature": 1.5},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "constrained_beam": {"num_beams": 3, "force_words_ids": [[30, 31]]},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "best_of_n": {"best_of": 3, "temperature": 1.0},
}
FILTERS = st.fixed_dictionaries(
    {"seed": st.integers(0, 2**40), "max_new_tokens": st.integers(3, 8)},
    optional={
        "repetition_penalty": st.sampled_from([0.8, 1.5]), "no_repeat_ngram_size": st.just(2), "bad_words_ids": st.just([[40], [41, 42]]),
        "min_new_tokens": st.just(3), "logit_bias": st.just({50: 3.0}), "frequency_penalty": st.just(0.7), "dry_multiplier": st.just(0.8),
    },
)  # fmt: skip
REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(4, 123), min_size=1, max_size=12), st.sampled_from(sorted(STRATEGIES)), FILTERS), min_size=2, max_size=6
)


@given(REQUESTS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_float64_any_mix_of_strategies_says_what_each_says_alone(wide_tiny, tiny_tokenizer, requests):
    prompts = [prompt for prompt, *_ in requests]
    params = [SamplingParams(**{**STRATEGIES[name], **more}) for _, name, more in requests]
    together = generate(wide_tiny, tiny_tokenizer, prompts, params)
    for row, (prompt, own) in enumerate(zip(prompts, params)):
        [alone] = generate(wide_tiny, tiny_tokenizer, [prompt], own)
        [same] = [result for result in together if result.prompt_index == row]
        assert (same.ids, same.text, same.finish_reason) == (alone.ids, alone.text, alone.finish_reason), own.given


@pytest.fixture(scope="module")
def wide_tiny(tiny):
    return tiny("llama", seed=9, num_hidden_layers=4).double()


def real_requests(count: int) -> list[list[dict]]:
    """Questions of the sample data, as they would be asked."""
    found = []
    for name in ("geography_heldout.jsonl", "korean_english_heldout.jsonl", "geography.jsonl"):
        for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            found.append([{"role": "user", "content": "\n".join(filter(None, (record["instruction"], record.get("input"))))}])
    return found[:: max(len(found) // count, 1)][:count]


def same_alone(model, tokenizer, prompts, settings, new: int) -> int:
    """How many answers of a batch are those given alone."""
    params = [SamplingParams(**{**settings, "max_new_tokens": new, "seed": n}) for n in range(len(prompts))]
    together = generate(model, tokenizer, prompts, params)
    return sum(generate(model, tokenizer, [prompt], own)[0].ids == mate.ids for prompt, own, mate in zip(prompts, params, together))


REAL = {**STRATEGIES, "constrained_beam": {"num_beams": 3, "force_words": ["city"]}}


@pytest.mark.parametrize("name", ["greedy", "sampling", *(pytest.param(name, marks=pytest.mark.full) for name in ("beam", "lookup"))])
def test_in_float32_real_requests_are_answered_alike_alone_and_together(real_model, tokenizer, name):
    assert same_alone(real_model, tokenizer, real_requests(3), REAL[name], 6) == 3


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(REAL))
def test_in_float32_256_real_requests_are_answered_alike_alone_and_together(real_model, tokenizer, name):
    assert same_alone(real_model, tokenizer, real_requests(256), REAL[name], 12) == 256


@pytest.mark.parametrize("name", [name for name in STRATEGIES if "beam" not in name and name != "best_of_n"])
def test_the_first_piece_of_a_stream_comes_within_two_passes(wide_tiny, tiny_tokenizer, monkeypatch, name):
    runners = []
    monkeypatch.setattr(calls, "open_runner", lambda model: runners.append(open_runner(model)) or runners[-1])
    events = stream(wide_tiny, tiny_tokenizer, [5, 6, 7, 8], SamplingParams(max_new_tokens=20, seed=1, ignore_eos=True, **STRATEGIES[name]))
    assert list(islice((event for event in events if isinstance(event, Committed)), 1))
    assert runners[0].passes <= 2


BROKEN = {"logit_bias": {5: 1e30}, "temperature": 1e-30, "seed": 1}  # infinite in float32


def test_scores_that_overflow_end_their_own_prompt_alone(tiny, tiny_tokenizer):
    model, further = tiny("llama"), tiny("llama", seed=1)
    for way in ({}, {"prompt_lookup_num_tokens": 3}, {"assistant_model": further}, {"dola_layers": [0]}):
        whole = SamplingParams(**{"max_new_tokens": 6, "temperature": 1.0, "seed": 4, **way})
        broken = SamplingParams(max_new_tokens=6, **BROKEN, **way)
        found = generate(model, tiny_tokenizer, [[5, 6, 7]] * 2, [broken, whole])
        assert found[0].finish_reason == "error" and "the scores are not finite" in found[0].error, way
        assert found[1].ids == generate(model, tiny_tokenizer, [[5, 6, 7]], whole)[0].ids, way
