"""DoLa against transformers 4.55, which had it, and against a computation without a cache."""

import math

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import generate, run
from seodang.infer.engine.params import SamplingParams
from seodang.infer.requests.events import Observed
from seodang.infer.requests.request import derived
from seodang.infer.requests.rng import draw, key
from seodang.infer.requests.trace import LayerTrace
from seodang.infer.runners.architecture import Capabilities
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.strategies.dola import candidate_layers, contrasted, divergence
from seodang.infer.strategies.registry import check

MODELS = ["llama_8_layers", "llama_8_layers_tied", "llama_12_layers_tied", "qwen3_8_layers", "qwen3_2_layers_tied", "gemma"]


@torch.no_grad()
def slow_scores(model, ids: list[int], layers: list[int]) -> torch.Tensor:
    """The contrast behind these ids, [vocab], by transformers 4.55's formulas."""
    out = model(torch.tensor([ids]), output_hidden_states=True)
    final = out.logits[0, -1].log_softmax(-1)
    bases = [model.lm_head(out.hidden_states[layer][0, -1]).log_softmax(-1) for layer in layers]

    def kl(log_p, log_q):
        return (log_p.exp() * (log_p - log_q)).sum()

    def apart(base):
        mean = ((final.exp() + base.exp()) / 2).log()
        return kl(mean, final) + kl(mean, base)

    return torch.where(final >= final.max() + math.log(0.1), final - max(bases, key=apart), -torch.inf)


def without_what_follows_no_choice(model, case: dict) -> int:
    """How many tokens transformers chose before its n-gram ban left none of the plausible ones: it emits token 0 there."""
    [answer] = case["sequences"]
    for at in range(len(answer)) if case["options"].get("no_repeat_ngram_size") == 2 else ():
        ids = case["prompt"] + answer[:at]
        banned = {after for before, after in zip(ids, ids[1:]) if before == ids[-1]}
        plausible = slow_scores(model, ids, case["candidates"]).isfinite().nonzero().flatten().tolist()
        if banned.issuperset(plausible):
            assert answer[at] == 0
            return at
    return len(answer)


@pytest.mark.parametrize("name", MODELS)
def test_all_golden_cases_of_a_model_in_one_run_give_tokens_and_layers_of_transformers(golden, golden_request, name):
    cases = [(model, case) for model, case in golden("dola") if case["model"] == name]
    assert len(cases) == 8
    model = cases[0][0]
    runner, requests, heard = open_runner(model), [], {}
    for index, (_, case) in enumerate(cases):
        requests.append(golden_request(model, case, index, traced=True))
    for event in run(Engine(runner), requests):
        if isinstance(event, Observed) and isinstance(event.what, LayerTrace):
            heard.setdefault(event.prompt_index, []).append(event.what)
    for each, (_, case) in zip(requests, cases):
        sane = without_what_follows_no_choice(model, case)
        assert each.result.ids[:sane] == case["sequences"][0][:sane], case["options"]
        assert [record.chosen for record in heard[each.request.index]][:sane] == case["layers"][:sane]
        assert all([layer for layer, _ in record.divergences] == case["candidates"] for record in heard[each.request.index])


def test_candidates_are_those_of_transformers(golden):
    for model, case in golden("dola"):
        config = model.config
        assert candidate_layers(case["options"]["dola_layers"], config.num_hidden_layers, config.tie_word_embeddings) == case["candidates"]
    assert candidate_layers("low", 30, True) == list(range(2, 15, 2))
    assert candidate_layers("high", 30, True) == list(range(15, 30, 2))
    assert candidate_layers("low", 48, False) == list(range(0, 20, 2))
    assert candidate_layers("high", 48, False) == list(range(28, 48, 2))


def test_divergence_is_the_mean_of_two_from_the_average():
    a, b = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.25, 0.75], dtype=torch.float64)
    by_hand = sum(m * math.log(m / p) for q in ((0.5, 0.5), (0.25, 0.75)) for m, p in zip((0.375, 0.625), q)) / 2
    assert float(divergence(a.log(), b.log())) == pytest.approx(by_hand, rel=1e-12)
    assert float(divergence(a.log(), a.log())) == pytest.approx(0.0, abs=1e-15)


def test_each_row_is_contrasted_with_the_layer_furthest_from_it_whatever_its_neighbours_do():
    mature = torch.tensor([[2.0, 0.0], [0.0, 2.0]]).double()
    premature = torch.tensor([[[2.0, 0.0], [3.0, 0.0]], [[0.0, 3.0], [0.0, 2.0]]]).double()  # [layers, rows, vocab]
    chosen, _, scores = contrasted(mature, premature)
    assert chosen == [1, 0]
    assert scores[0, 0] == pytest.approx(float(mature[0].log_softmax(-1)[0] - premature[1, 0].log_softmax(-1)[0]))
    assert scores[1, 1] == pytest.approx(float(mature[1].log_softmax(-1)[1] - premature[0, 1].log_softmax(-1)[1]))


def test_sampled_tokens_are_drawn_from_the_filtered_contrast_one_prompt_pass_for_all(golden_models, tokenizer):
    model, layers = golden_models.build("llama_8_layers"), [2, 4, 6]
    params = SamplingParams(dola_layers=layers, temperature=1.5, top_k=5, seed=11, num_return_sequences=3, max_new_tokens=8, ignore_eos=True)
    results = generate(model, tokenizer, [[5, 6, 7]], params)
    assert len({tuple(result.ids) for result in results}) > 1
    for choice, result in enumerate(results):
        ids, seed = [5, 6, 7], 11 if choice == 0 else derived(11, choice)
        for position, (id, logprob) in enumerate(zip(result.ids, result.logprobs)):
            scores = slow_scores(model, ids, layers) / 1.5
            scores[scores < scores.topk(5).values[-1]] = -torch.inf
            probs = scores.softmax(-1)
            assert id == int(draw(probs[None], torch.tensor([key(seed, position)])))
            assert logprob == pytest.approx(float(probs[id].log()))
            ids.append(id)


def test_where_every_plausible_token_is_banned_the_model_itself_decides(golden_models, tokenizer):
    model, prompt = golden_models.build("llama_8_layers"), [5, 6, 7]
    plausible = [id for id, score in enumerate(slow_scores(model, prompt, [4]).tolist()) if score > -math.inf]
    [result] = generate(model, tokenizer, [prompt], SamplingParams(dola_layers=[4], suppress_tokens=plausible, max_new_tokens=1))
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1]
    logits[plausible] = -torch.inf
    assert result.ids == [int(logits.argmax())]
    kept = logits[logits.softmax(-1) >= 0.1 * logits.softmax(-1).max()]
    assert result.logprobs[0] == pytest.approx(float(kept.log_softmax(-1).max()))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "granite", "cohere"])
def test_head_of_the_last_states_gives_the_logits_on_both_runners(tiny, kind):
    for runner in [RaggedRunner(tiny(kind))] + ([DirectRunner(tiny(kind))] if kind in ("llama", "gemma2", "gpt2") else []):
        row = runner.allocate()
        logits, states = runner.observe([row], [[5, 6, 7]], [3], [-1, 1])
        torch.testing.assert_close(runner.head(states[-1]), logits, rtol=1e-5, atol=1e-5)
        expected = tiny(kind)(torch.tensor([[5, 6, 7]]), output_hidden_states=True).hidden_states
        torch.testing.assert_close(states[-1], expected[-1][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(states[1], expected[1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"dola_layers": "middle"}, "middle"),
        ({"dola_layers": []}, r"\[\]"),
        ({"dola_layers": [0, 2]}, "has 2, but of the model's 2 layers"),
        ({"dola_layers": [-1]}, "has -1"),
        ({"dola_layers": "low", "num_beams": 3}, "num_beams=3"),
        ({"dola_layers": "low", "guidance_scale": 2.0}, "guidance_scale=2.0"),
        ({"dola_layers": "low", "num_return_sequences": 2}, "num_return_sequences=2"),
        ({"strategy": "dola"}, "None"),
    ],
)
def test_what_dola_cannot_do_is_refused_by_name(tiny, tokenizer, settings, named):
    with pytest.raises(UserError, match=named):
        generate(tiny("llama"), tokenizer, [[5, 6]], SamplingParams(max_new_tokens=3, **settings))


def test_encoder_decoders_are_refused():
    with pytest.raises(UserError, match="encoder-decoder"):
        check(SamplingParams(dola_layers="low"), Capabilities(hidden_states=True), encoder_decoder=True)
