"""Requests of every kind in one run: each finds what it finds alone."""

from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import generate
from seodang.infer.engine.params import SamplingParams
from seodang.infer.engine.prompts import new_requests
from seodang.infer.requests.generation import Generation
from seodang.infer.runners.open import open_runner


def test_contrast_guidance_choice_and_plain_requests_share_a_run(golden_models, fresh_tiny, tokenizer):
    model, amateur = golden_models.build("llama_8_layers"), fresh_tiny("gpt2").double()
    prompts = [[5, 6, 7, 8], [9], [20, 21, 22], [5, 6, 5, 6, 5], [60, 61], [33, 34, 35], [70, 71, 72], [80], [90, 91]]
    settings = [
        {},
        {"temperature": 0.9, "seed": 1, "num_return_sequences": 2},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"dola_layers": "high", "repetition_penalty": 1.2},
        {"dola_layers": "low", "do_sample": True, "seed": 2, "num_return_sequences": 2},
        {"guidance_scale": 1.7, "negative_prompt": [40]},
        {"amateur_model": amateur, "do_sample": True, "seed": 3},
        {"best_of": 4, "do_sample": True, "seed": 4},
        {"penalty_alpha": 0.4, "top_k": 3, "guidance_scale": 1.3},
    ]
    params = [SamplingParams(max_new_tokens=10, ignore_eos=True, **each) for each in settings]
    together = generate(model, tokenizer, prompts, params)
    alone = [result for prompt, own in zip(prompts, params) for result in generate(model, tokenizer, [prompt], own)]
    assert [result.ids for result in together] == [result.ids for result in alone]
    assert len(together) == len(prompts) + 2


def test_they_share_passes_and_give_all_memory_back(golden_models, fresh_tiny, tokenizer):
    model, amateur = golden_models.build("llama_8_layers"), fresh_tiny("gpt2").double()
    settings = [{}, {"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "high"}, {"guidance_scale": 1.7}, {"amateur_model": amateur}]
    params = [SamplingParams(max_new_tokens=10, ignore_eos=True, **each) for each in settings]
    runner = open_runner(model)
    engine = Engine(runner)
    requests = [Generation(each) for each in new_requests(model, tokenizer, [[5, 6, 7]] * len(params), params, engine)]
    for request in requests:
        engine.submit(request)
    while engine.step():
        pass
    assert all(len(request.result.ids) == 10 for request in requests)
    assert runner.passes == 11  # contrastive search takes one more than its tokens
    assert engine.runner_of(amateur).passes == 10
    assert runner.live == engine.runner_of(amateur).live == 0
