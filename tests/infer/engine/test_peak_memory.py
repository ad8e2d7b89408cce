"""What requests come to in a real run stays within what was reserved for them, and all of it is given back."""

import sys

import pytest

from seodang.infer import SamplingParams
from seodang.infer.engine.budget import Budget
from seodang.infer.engine.core import Engine
from seodang.infer.engine.prompts import new_requests
from seodang.infer.requests.generation import Generation
from seodang.infer.runners.lane_block import LaneBlock
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.ragged import RaggedRunner

PROMPT = list(range(3, 90))  # with its answer it outgrows the first pool
ASKED = {
    "greedy": {},
    "several": {"do_sample": True, "num_return_sequences": 3},
    "best of n": {"do_sample": True, "best_of": 4},
    "beams": {"num_beams": 4},
    "groups of beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "early exit": {"assistant_early_exit": 1, "do_sample": True, "num_return_sequences": 2},
    "guidance": {"guidance_scale": 2.0, "negative_prompt": list(range(3, 60)), "num_beams": 2},
    "read first": {"prompt_logprobs": 1, "penalty_alpha": 0.6, "top_k": 2},
    "stochastic": {"strategy": "stochastic_beam", "num_beams": 3, "num_return_sequences": 3},
}


@pytest.fixture
def watched(monkeypatch):
    """`watched(engine)`: a list of what all its runners' slots took, after each pass and wherever a lane was taken or copied."""
    seen, engines = [], []

    def look() -> None:
        for engine in engines:
            seen.append((sum(runner.memory for runner in engine._runners.values()), engine.scheduler.reserved))

    def watching(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(*args):
            result = original(*args)
            look()
            return result

        monkeypatch.setattr(owner, name, call)

    for name in ("copy", "discard", "fit"):
        watching(LaneBlock, name)
    watching(RaggedRunner, "observe")

    def watch(engine: Engine) -> list[tuple[int, int]]:
        engines.append(engine)
        return seen

    return watch


def run(engine: Engine, model, tokenizer, requests: list[tuple[list[int], dict]]) -> list[Generation]:
    """Answer requests, all at once."""
    generations = []
    for ids, settings in requests:
        [request] = new_requests(model, tokenizer, [ids], SamplingParams(ignore_eos=True, **settings), engine)
        generations.append(Generation(request))
        engine.submit(generations[-1])
    while engine.step():
        pass
    assert [generation.error for generation in generations] == [None] * len(generations)
    return generations


@pytest.mark.parametrize("asked", ASKED)
def test_every_strategy_stays_within_what_it_was_said_to_need(asked, tiny, tiny_tokenizer, watched):
    model = tiny("llama", head_dim=64, num_hidden_layers=3)  # a page of a head is 16 positions
    engine = Engine(open_runner(model), budget=Budget(10**9))
    seen = watched(engine)
    [generation] = run(engine, model, tiny_tokenizer, [(PROMPT, {"max_new_tokens": 45, **ASKED[asked]})])
    needs = generation.bytes_reserved
    assert needs == engine.scheduler.budget.needs(generation.request, engine)
    assert needs / 2 < max(memory for memory, _ in seen) <= needs  # and is no idle fear either
    assert sum(runner.memory for runner in engine._runners.values()) == 0


def test_requests_in_a_narrow_budget_wait_for_each_other_and_never_exceed_it(tiny, tiny_tokenizer, watched):
    model = tiny("llama", head_dim=64, num_hidden_layers=3)
    runner = open_runner(model)
    engine = Engine(runner, budget=Budget(3 * runner.bytes_for(127)))
    seen = watched(engine)
    settings = [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {}, {"assistant_early_exit": 1}]
    generations = run(engine, model, tiny_tokenizer, [(PROMPT, {"max_new_tokens": 40, **each}) for each in settings])
    assert all(len(result.ids) == 40 for generation in generations for result in generation.results.values())
    assert all(memory <= reserved <= engine.scheduler.budget.limit for memory, reserved in seen if reserved)
    assert max(reserved for _, reserved in seen) > 2 * runner.bytes_for(127) and runner.memory == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident, and takes memory by the page")
def test_the_real_models_resident_memory_stays_within_what_is_reserved(real_model, tokenizer, monkeypatch, resident):
    runner = open_runner(real_model)
    engine, peaks, before = Engine(runner, budget=Budget(10**9)), [], resident()
    observe = runner.observe
    monkeypatch.setattr(runner, "observe", lambda *args: (observe(*args), peaks.append((resident() - before, runner.memory, engine.scheduler.reserved)))[0])
    settings = [{}, {"num_beams": 2}, {"guidance_scale": 1.5, "negative_prompt": PROMPT[:9]}]
    run(engine, real_model, tokenizer, [(PROMPT + [40 + i] * 36, {"max_new_tokens": 8, **each}) for i, each in enumerate(settings)])
    assert len(peaks) >= 8 and all(now <= memory <= reserved for now, memory, reserved in peaks)
    assert max(now for now, _, _ in peaks) > 20e6  # four times 123 positions of 46 KB and more
    assert resident() == before and runner.memory == 0
