"""Beam sampling: the distribution of its draws, and that they belong to the request."""

from itertools import permutations

import pytest
import torch

from seodang.infer.engine.generate import generate
from seodang.infer.engine.params import SamplingParams
from seodang.infer.requests.rng import key
from seodang.infer.strategies.hypotheses import drawn

PROMPTS = [[5, 6, 7, 8], [9], [20, 21, 22, 90, 3, 11], [77, 5]]
STOPS = [64, 101, 15, 33]
NEW = 14


def logprobs_after(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)


def outcomes(logprobs, prompt: list[int], width: int, new: int, ends=frozenset({2})) -> dict[tuple[int, ...], float]:
    """The probability of each answer of beam sampling, by transformers' rule over every ordered draw, length_penalty 1."""
    found: dict[tuple[int, ...], float] = {}

    def go(live, done, length, p):
        grown = [(*ids, id) for ids, _ in live for id in range(logprobs(prompt, []).shape[-1])]
        totals = [total + float(each) for ids, total in live for each in logprobs(prompt, list(ids))]
        weights = [float(w) for w in torch.tensor(totals, dtype=torch.float64).softmax(dim=-1)]
        states: dict[tuple, float] = {}
        for order in permutations(range(len(grown)), min(2 * width, len(grown))):
            chance, left = 1.0, 1.0
            for i in order:
                chance *= weights[i] / left
                left -= weights[i]
            over = [(grown[i], totals[i] / length) for i in order[:width] if grown[i][-1] in ends or length == new]
            on = [(grown[i], totals[i]) for i in order if grown[i][-1] not in ends and length < new]
            key = tuple(sorted(on, key=lambda each: -each[1])[:width]), tuple(sorted(over, key=lambda each: -each[1]))
            states[key] = states.get(key, 0.0) + chance
        for (on, over), chance in states.items():
            kept = sorted([*done, *over], key=lambda each: -each[1])[:width]
            hopeless = len(kept) == width and on and on[0][1] / length <= kept[-1][1]
            if not on or hopeless:
                found[kept[0][0]] = found.get(kept[0][0], 0.0) + p * chance
            else:
                go(list(on), kept, length + 1, p * chance)

    go([((), 0.0)], [], 1, 1.0)
    return found


def test_beam_sampling_draws_answers_as_often_as_the_rule_of_transformers_says(double, tiny_tokenizer):
    model, prompt, draws = double(vocab_size=4, bos_token_id=1, eos_token_id=2), [1, 3], 1200
    known: dict[tuple, torch.Tensor] = {}

    def flat(prompt, ids):
        if tuple(ids) not in known:
            known[tuple(ids)] = logprobs_after(model, prompt + ids) / 2  # temperature 2 of log-probabilities
        return known[tuple(ids)]

    expected = outcomes(flat, prompt, 2, 2)
    assert sum(expected.values()) == pytest.approx(1)
    settings = [SamplingParams(num_beams=2, max_new_tokens=2, do_sample=True, temperature=2.0, seed=seed) for seed in range(draws)]
    results = generate(model, tiny_tokenizer, [prompt] * draws, settings)
    counts = {ids: 0 for ids in expected}
    for each in results:
        counts[tuple(each.ids)] += 1  # an answer that cannot come would be a KeyError
    common = {ids: p for ids, p in expected.items() if p * draws >= 5}
    chi = sum((counts[ids] - p * draws) ** 2 / (p * draws) for ids, p in common.items())
    freedom = len(common) - 1
    assert len(common) >= 5 and chi < freedom + 4 * (2 * freedom) ** 0.5


def test_draws_are_without_replacement_each_by_what_is_left():
    sums, logprobs = torch.tensor([0.0, -0.7]).double(), torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]]).double().log()
    weights = (logprobs.exp() * sums.exp()[:, None]).flatten()
    weights = (weights / weights.sum()).tolist()
    counts = {pair: 0 for pair in permutations(range(6), 2)}
    for seed in range(3000):
        first, second = drawn(logprobs, sums, 2, torch.tensor([key(seed, 0, "a"), key(seed, 0, "b")]))
        assert first.total == pytest.approx(float(sums[first.parent] + logprobs[first.parent, first.id]))
        counts[first.parent * 3 + first.id, second.parent * 3 + second.id] += 1
    expected = {(a, b): 3000 * weights[a] * weights[b] / (1 - weights[a]) for a, b in counts}
    assert sum((counts[pair] - n) ** 2 / n for pair, n in expected.items()) < 29 + 4 * 58**0.5


def test_what_was_dropped_is_never_drawn_nor_taken():
    logprobs = torch.tensor([[-torch.inf, -torch.inf, -torch.inf], [0.0, -torch.inf, -1.0]])
    found = [(each.parent, each.id) for each in drawn(logprobs, torch.zeros(2), 3, torch.tensor([key(0, 0), key(1, 0)]))]
    assert found in ([(1, 0), (1, 2)], [(1, 2), (1, 0)])


def test_a_seed_draws_the_same_alone_and_beside_others_of_every_strategy(double, tiny_tokenizer):
    model = double()
    common = {"max_new_tokens": NEW, "stop_token_ids": STOPS}
    settings = [
        SamplingParams(num_beams=3, do_sample=True, temperature=1.5, seed=7, num_return_sequences=2, **common),
        SamplingParams(**common),
        SamplingParams(num_beams=4, repetition_penalty=1.2, **common),
        SamplingParams(temperature=1.3, seed=5, **common),
        SamplingParams(num_beams=4, num_beam_groups=2, diversity_penalty=0.7, num_return_sequences=3, **common),
        SamplingParams(num_beams=3, force_words_ids=[[40, 41], [50]], **common),
        SamplingParams(num_beams=2, guidance_scale=1.5, **common),
        SamplingParams(num_beams=3, do_sample=True, top_p=0.9, seed=8, mirostat_tau=None, xtc_probability=0.3, **common),
    ]
    prompts = (PROMPTS * 2)[: len(settings)]
    together = generate(model, tiny_tokenizer, prompts, settings)
    for i, (prompt, own) in enumerate(zip(prompts, settings)):
        mixed = [(each.ids, each.score) for each in together if each.prompt_index == i]
        alone = [(each.ids, each.score) for each in generate(model, tiny_tokenizer, [prompt], own)]
        assert [ids for ids, _ in mixed] == [ids for ids, _ in alone]
        assert own.num_beams == 1 or [score for _, score in mixed] == pytest.approx([score for _, score in alone])
    assert [each.seed for each in together if each.prompt_index == 0] == [7, 7]
    again = generate(model, tiny_tokenizer, prompts[:1], SamplingParams(**{**settings[0].given, "seed": 9}))
    assert [each.ids for each in again] != [each.ids for each in together if each.prompt_index == 0]
