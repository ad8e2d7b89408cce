"""Guidance against transformers' and against full recomputation; contrastive decoding likewise."""

import math

import pytest
import torch

from seodang.data.chat import prompt_ids, text_ids
from seodang.data.errors import UserError
from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import generate, stream
from seodang.infer.engine.params import SamplingParams
from seodang.infer.engine.prefix_cache import PrefixCache
from seodang.infer.requests.request import derived
from seodang.infer.requests.rng import draw, key
from seodang.infer.runners.open import open_runner
from seodang.infer.strategies.guidance import classifier_free, expert_minus_amateur, guidance_of
from seodang.infer.strategies.registry import choose

PROMPT, NEGATIVE = [5, 6, 7, 8], [11, 12]


def guided_by_transformers(model, prompt: list[int], new: int, **options) -> list[int]:
    if "negative_prompt_ids" in options:
        options["negative_prompt_ids"] = torch.tensor([options["negative_prompt_ids"]])
    mask = torch.ones(1, len(prompt), dtype=torch.long)
    out = model.generate(torch.tensor([prompt]), attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=0, **options)
    return out[0, len(prompt) :].tolist()


@torch.no_grad()
def next_logprobs(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


def drawn(scores: torch.Tensor, seed: int, position: int) -> int:
    return int(draw(scores.softmax(-1)[None], torch.tensor([key(seed, position)])))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_guided_greedy_search_of_many_requests_is_transformers_one_by_one(fresh_tiny, tokenizer, kind):
    model = fresh_tiny(kind).double()
    prompts = [PROMPT, [9], [20, 21, 22], PROMPT, PROMPT, [30, 31, 30, 31]]
    cases = [
        {"guidance_scale": 1.5, "negative_prompt": NEGATIVE},
        {"guidance_scale": 3.0},
        {"guidance_scale": 0.4, "negative_prompt": [60]},
        {"guidance_scale": 2.0, "negative_prompt": [40, 41, 42, 43, 44], "repetition_penalty": 1.3},
        {},
        {"guidance_scale": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 9},
    ]
    results = generate(model, tokenizer, prompts, [SamplingParams(max_new_tokens=12, **case) for case in cases])
    for prompt, case, result in zip(prompts, cases, results):
        named = {("negative_prompt_ids" if name == "negative_prompt" else name): value for name, value in case.items()}
        assert result.ids == guided_by_transformers(model, prompt, 12, **named), case


def test_scale_of_one_runs_no_guidance(tiny, tokenizer):
    engine, params = Engine(open_runner(tiny("llama"))), SamplingParams(guidance_scale=1.0, negative_prompt=NEGATIVE)
    assert guidance_of(params, choose(params), PROMPT, NEGATIVE, engine) is None
    plain, guided = generate(
        tiny("llama"), tokenizer, [PROMPT] * 2, [SamplingParams(max_new_tokens=8), SamplingParams(max_new_tokens=8, guidance_scale=1.0)]
    )
    assert plain.ids == guided.ids and plain.logprobs == guided.logprobs


def test_negative_prompt_is_a_text_or_messages_or_ids(real_model, tokenizer):
    talk = [{"role": "system", "content": "Answer rudely."}, {"role": "user", "content": "How are you?"}]
    options = {"guidance_scale": 1.5, "max_new_tokens": 3}
    for negative, ids in (("a rude answer", text_ids(tokenizer, "a rude answer")), (talk, prompt_ids(tokenizer, talk))):
        params = [SamplingParams(negative_prompt=each, **options) for each in (negative, ids)]
        given, as_ids = generate(real_model, tokenizer, ["How are you?"] * 2, params)
        assert given.ids == as_ids.ids and given.logprobs == pytest.approx(as_ids.logprobs, abs=1e-4)


def test_guided_samples_are_drawn_from_the_guided_distribution(fresh_tiny, tokenizer):
    model = fresh_tiny("llama").double()
    params = SamplingParams(
        guidance_scale=1.6, negative_prompt=NEGATIVE, temperature=0.8, seed=3, num_return_sequences=3, max_new_tokens=8, ignore_eos=True
    )
    for choice, result in enumerate(generate(model, tokenizer, [PROMPT], params)):
        new: list[int] = []
        for position, (id, logprob) in enumerate(zip(result.ids, result.logprobs)):
            positive, negative = next_logprobs(model, PROMPT + new), next_logprobs(model, NEGATIVE + new)
            scores = (negative + 1.6 * (positive - negative)) / 0.8
            assert id == drawn(scores, 3 if choice == 0 else derived(3, choice), position)
            assert logprob == pytest.approx(float(scores.log_softmax(-1)[id]))
            new.append(id)


def test_a_guided_prompt_from_memory_gives_the_same_answer(fresh_tiny, tokenizer):
    model = fresh_tiny("llama").double()
    params, cache = SamplingParams(guidance_scale=1.6, negative_prompt=NEGATIVE, max_new_tokens=8), PrefixCache(model)
    first, second = (generate(model, tokenizer, [PROMPT], params, prefix_cache=cache)[0].ids for _ in range(2))
    assert first == second == guided_by_transformers(model, PROMPT, 8, guidance_scale=1.6, negative_prompt_ids=NEGATIVE)
    assert cache.runner.live == len(cache.slots)


def test_guided_tokens_are_streamed(tiny, tokenizer):
    params = SamplingParams(guidance_scale=1.6, max_new_tokens=6, ignore_eos=True)
    [result] = generate(tiny("llama"), tokenizer, [PROMPT], params)
    events = list(stream(tiny("llama"), tokenizer, PROMPT, params))
    assert [event.id for event in events[:-1]] == result.ids


def test_contrastive_decoding_is_expert_less_amateur_among_the_plausible(fresh_tiny, tokenizer):
    expert, amateur = fresh_tiny("llama").double(), fresh_tiny("gpt2", seed=5).double()
    alpha, temperature = 0.1, 0.7

    def scores(ids):
        e, a = next_logprobs(expert, ids), (next_logprobs(amateur, ids) / temperature).log_softmax(-1)
        return torch.where(e.exp() >= alpha * e.exp().max(), e - a, -torch.inf)

    shared = {"amateur_model": amateur, "amateur_alpha": alpha, "amateur_temperature": temperature, "max_new_tokens": 12, "ignore_eos": True}
    params = [SamplingParams(**shared), SamplingParams(**shared, do_sample=True, seed=4), SamplingParams(max_new_tokens=12)]
    greedy, sampled, plain = generate(expert, tokenizer, [PROMPT] * 3, params)
    for result in (greedy, sampled):
        ids = list(PROMPT)
        for position, (id, logprob) in enumerate(zip(result.ids, result.logprobs)):
            own = scores(ids)
            assert id == (int(own.argmax()) if result is greedy else drawn(own, 4, position))
            assert logprob == pytest.approx(float(own.log_softmax(-1)[id]))
            ids.append(id)
    assert greedy.ids != plain.ids


def test_a_ban_of_every_plausible_token_leaves_the_choice_to_the_expert(fresh_tiny, tokenizer):
    expert, amateur = fresh_tiny("llama").double(), fresh_tiny("gpt2", seed=5).double()
    own = next_logprobs(expert, PROMPT)
    plausible = (own >= own.max() + math.log(0.5)).nonzero().flatten().tolist()
    params = SamplingParams(amateur_model=amateur, amateur_alpha=0.5, suppress_tokens=plausible, max_new_tokens=1)
    own[plausible] = -torch.inf
    assert generate(expert, tokenizer, [PROMPT], params)[0].ids == [int(own.argmax())]


def test_a_draft_leaves_contrastive_decoding_as_it_is_and_beams_stay_among_the_plausible(fresh_tiny, tokenizer):
    expert, amateur = fresh_tiny("llama").double(), fresh_tiny("gpt2", seed=5).double()
    shared = {"amateur_model": amateur, "max_new_tokens": 12, "ignore_eos": True, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2}
    settings = [{}, {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}, {"num_beams": 3}]
    greedy, drafted, beams = generate(expert, tokenizer, [PROMPT] * 3, [SamplingParams(**shared, **each) for each in settings])
    assert drafted.ids == greedy.ids
    for at, id in enumerate(beams.ids):
        own = next_logprobs(expert, PROMPT + beams.ids[:at])
        assert own[id] >= own.max() + math.log(0.1)


def test_guidance_by_hand():
    logits, negative = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
    combined = classifier_free(2.0)(logits, negative)
    assert combined[0].tolist() == pytest.approx([math.log(0.25 / 0.8), math.log(0.25 / 0.2)])
    probs, weak = torch.tensor([[0.6, 0.35, 0.05]]), torch.tensor([[0.5, 0.25, 0.25]])
    contrast = expert_minus_amateur(0.5, 1.0)(probs.log(), weak.log())
    assert contrast[0, :2].tolist() == pytest.approx([math.log(0.6 / 0.5), math.log(0.35 / 0.25)])
    assert contrast[0].softmax(-1)[2] == 0
    hot = expert_minus_amateur(0.5, 0.5)(probs.log(), weak.log())  # the amateur's squares: 1/4, 1/16, 1/16 of 3/8
    assert hot[0, 0] == pytest.approx(math.log(0.6 / (0.25 / 0.375)))


def test_a_token_that_the_model_rules_out_stays_ruled_out():
    combined = classifier_free(1.5)(torch.tensor([[0.0, -torch.inf, 0.0]]), torch.tensor([[0.0, -torch.inf, 1.0]]))
    assert combined[0, 1] == -torch.inf and combined.isnan().sum() == 0


def test_amateur_of_another_vocabulary_is_refused_with_both_sizes(fresh_tiny, tiny, tokenizer):
    other = fresh_tiny("llama", vocab_size=96)
    with pytest.raises(UserError, match="96 tokens, the model one of 128"):
        generate(tiny("llama"), tokenizer, [PROMPT], SamplingParams(amateur_model=other, max_new_tokens=2))


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"guidance_scale": 2.0, "negative_prompt": []}, "negative prompt of prompt 1 is empty"),
        ({"guidance_scale": 2.0, "negative_prompt": [9] * 250, "max_new_tokens": 8}, "negative prompt of prompt 1 has 250 tokens"),
        ({"guidance_scale": 2.0, "negative_prompt": 7}, "negative_prompt must be a text, messages or ids, got 7"),
        ({"negative_prompt": [9]}, "without guidance_scale"),
        ({"amateur_alpha": 0.2}, "without amateur_model"),
    ],
)
def test_what_guidance_cannot_do_is_refused_by_name(tiny, tokenizer, settings, named):
    with pytest.raises(UserError, match=named):
        generate(tiny("llama"), tokenizer, [PROMPT], SamplingParams(**{"max_new_tokens": 2, **settings}))


def test_encoder_decoders_are_refused(golden_models, tiny, tokenizer):
    seq2seq = golden_models.build("t5")
    for model, settings in ((seq2seq, {"guidance_scale": 2.0}), (seq2seq, {"amateur_model": tiny("llama")}), (tiny("llama"), {"amateur_model": seq2seq})):
        with pytest.raises(UserError, match="t5 is an encoder-decoder"):
            generate(model, tokenizer, [PROMPT], SamplingParams(max_new_tokens=2, **settings))


def test_hidden_prompt_and_amateur_are_refused_together(tiny, tokenizer):
    params = SamplingParams(amateur_model=tiny("gpt2"), attention_mask=[1, 0, 1, 1], max_new_tokens=2)
    with pytest.raises(UserError, match="hide and attention_mask"):
        generate(tiny("llama"), tokenizer, [PROMPT], params)
