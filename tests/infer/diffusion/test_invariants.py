"""What holds in every step by every order and rule: what is certain stays, unless it is taken back by name; counts, seeds, log-probabilities."""

import pytest

from seodang.infer import Committed, Observed, SamplingParams, generate, stream
from seodang.infer.requests.trace import DiffusionStep

from .conftest import MASK
from .test_denoising import KINDS, PROMPTS, steps_in

NEW = 9
DRAWN = {"max_new_tokens": NEW, "ignore_eos": True, "temperature": 1.0}
ASKED = [
    {"alg": "low_confidence", "steps": 4}, {"alg": "random", "steps": 6}, {"alg": "origin", "steps": 20}, {"alg": "entropy", "alg_temp": 0.5, "steps": 5},
    {"confidence_threshold": 0.02, "alg": "random"}, {"entropy_bound": 9.0, "alg": "low_confidence", "alg_temp": 1.0},
    {"remask": 1.0, "alg": "origin", "steps": 12}, {"remask": 0.7, "alg": "topk_margin", "steps": 5}, {"remask": 1.0, "alg": "random"},
    {"block_length": 4, "steps": 5}, {"block_length": 2, "alg": "origin", "steps": 5, "remask": 1.0}, {"block_length": 5, "confidence_threshold": 0.03},
    {"block_length": 100, "alg": "random", "steps": 3}, {"block_length": 4, "cfg_scale": 2.0, "remask": 0.5},
]  # fmt: skip


@pytest.mark.parametrize("attention, own", KINDS)
def test_what_is_certain_stays_unless_it_is_remasked_and_what_was_published_stays_in_any_case(denoiser, tiny_tokenizer, attention, own):
    model, remasked = denoiser(attention, 1, own), 0
    for seed, settings in enumerate(ASKED):
        if own is not None and "block_length" in settings:
            continue
        length, canvas, published = own or settings.get("block_length", NEW), (None,) * NEW, 0
        events = list(stream(model, tiny_tokenizer, PROMPTS[2], SamplingParams(**DRAWN, seed=seed, logprobs=0, **settings), trace=True))
        logprobs = {}
        for event in events:
            if isinstance(event, Committed):
                assert canvas[event.position] == event.id and event.position == published and logprobs[event.position] == event.logprob
                published += 1
            elif isinstance(event, Observed) and isinstance(event.what, DiffusionStep):
                step, new = event.what, {position: id for position, id, _ in event.what.committed}
                assert all(canvas[at] is not None and at >= published for at in step.remasked if at not in new)
                before = [None if at in step.remasked else id for at, id in enumerate(canvas)]
                assert all(before[at] is None for at in new) and MASK not in new.values()
                assert new and len({at // length for at in new}) == 1  # of one block
                assert list(step.canvas) == [new.get(at, before[at]) for at in range(NEW)]
                assert all(id is not None for id in step.canvas[: min(new) // length * length])  # those before it are done
                logprobs |= dict(zip(new, step.logprobs, strict=True))
                remasked += len(step.remasked)
                canvas = step.canvas
        assert published == NEW
    assert remasked > (20 if own is None else 3)


@pytest.mark.parametrize(
    "settings, counts",
    [
        ({"alg": "low_confidence", "steps": 4}, [3, 2, 2, 2]), ({"alg": "random", "steps": 2}, [5, 4]), ({"alg": "low_confidence"}, [1] * 9),
        ({"block_length": 4, "steps": 5}, [2, 2, 2, 2, 1]), ({"block_length": 4, "steps": 2}, [4, 4, 1]), ({"block_length": 4, "alg": "random"}, [1] * 9),
        ({"confidence_threshold": 1.01}, [1] * 9), ({"confidence_threshold": 1e-9}, [9]), ({"entropy_bound": 0}, [1] * 9), ({"entropy_bound": 999.0}, [9]),
        ({"confidence_threshold": 1e-9, "block_length": 4}, [4, 4, 1]), ({"remask": 1.0, "alg": "entropy", "steps": 4}, [3, 2, 2, 2]),
        ({"remask": 0.6, "block_length": 5, "steps": 6}, [2, 2, 1, 2, 1, 1]),
    ],
)  # fmt: skip
def test_each_row_has_its_own_count_whatever_the_others_have(denoiser, tiny_tokenizer, settings, counts):
    other = SamplingParams(**DRAWN, seed=1, steps=7)
    params = SamplingParams(**DRAWN, seed=4, **settings)
    results = generate(denoiser("prompt_causal"), tiny_tokenizer, PROMPTS, [params, other, params], trace=True)
    for result, want in zip(results, [counts, [2, 2, 1, 1, 1, 1, 1], counts]):
        certain = [sum(id is not None for id in step.canvas) for step in steps_in(result)]
        assert [now - before for before, now in zip([0, *certain], certain)] == want


def test_a_threshold_above_one_is_one_token_a_pass(denoiser, tiny_tokenizer):
    model = denoiser("prompt_causal", 1)
    for alg in ("entropy", "low_confidence", "random"):
        params = [SamplingParams(**DRAWN, seed=2, alg=alg, confidence_threshold=threshold) for threshold in (None, 1.5)]
        plain, ruled = (generate(model, tiny_tokenizer, PROMPTS, each, trace=True) for each in params)
        assert [steps_in(each) for each in plain] == [steps_in(each) for each in ruled]


def test_a_seed_repeats_orders_of_chance_and_remasking_and_another_does_not(denoiser, tiny_tokenizer):
    model = denoiser()
    for settings in ({"alg": "random"}, {"alg": "random", "temperature": 0}, {"remask": 1.0}, {"remask": 1.0, "temperature": 0}, {"remask": 1.0, "alg": "origin"}):
        first, again, other = (
            [steps_in(each) for each in generate(model, tiny_tokenizer, PROMPTS, SamplingParams(**{**DRAWN, **settings, "seed": seed}), trace=True)]
            for seed in (3, 3, 4)
        )
        assert first == again and all(one != two for one, two in zip(first, other))
    answers = generate(model, tiny_tokenizer, PROMPTS[:1], SamplingParams(**{**DRAWN, "temperature": 0, "alg": "random"}, num_return_sequences=4, seed=1))
    assert len({tuple(each.ids) for each in answers}) > 1
