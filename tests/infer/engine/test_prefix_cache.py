"""A PrefixCache serves overlapping calls and models that change: what it gives is what reading anew would give."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Event

import pytest
import torch
from peft import LoraConfig, get_peft_model

from seodang.infer import Committed, PrefixCache, SamplingParams, generate, open_runner, stream
from seodang.infer.engine.prefix_cache import state_of
from seodang.infer.runners.early_exit import open_first_layers

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]
PARAMS = SamplingParams(max_new_tokens=6, ignore_eos=True)


def with_adapter(model):
    """The model with a LoRA whose weights are far from nothing."""
    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()


def same_as_read_anew(model, tokenizer, cache, prompt=PROMPT) -> bool:
    """Whether answers with the cache have the ids and log-probabilities of answers without it."""
    [cached] = generate(model, tokenizer, [prompt], PARAMS, prefix_cache=cache)
    [anew] = generate(model, tokenizer, [prompt], PARAMS)
    return cached.ids == anew.ids and cached.logprobs == pytest.approx(anew.logprobs, abs=1e-5)


def test_a_stream_goes_on_while_another_call_uses_its_cache(tiny_llama, tiny_tokenizer):
    cache, long = PrefixCache(tiny_llama), SamplingParams(max_new_tokens=20, ignore_eos=True)
    events = stream(tiny_llama, tiny_tokenizer, PROMPT, long, prefix_cache=cache)
    ids = [event.id for event in islice(events, 5)]
    others = generate(tiny_llama, tiny_tokenizer, [[*PROMPT, 13], [20, 21]], PARAMS, prefix_cache=cache, max_rows=1)
    ids += [event.id for event in events if isinstance(event, Committed)]
    assert ids == generate(tiny_llama, tiny_tokenizer, [PROMPT], long)[0].ids
    assert [each.ids for each in others] == [each.ids for each in generate(tiny_llama, tiny_tokenizer, [[*PROMPT, 13], [20, 21]], PARAMS)]
    assert cache.runner.live == len(cache.slots) == 3


def test_two_streams_take_turns_and_a_third_is_left_early(tiny_llama, tiny_tokenizer):
    cache, prompts = PrefixCache(tiny_llama), [PROMPT, PROMPT[:4], [30, 31]]
    first, second, third = (stream(tiny_llama, tiny_tokenizer, prompt, PARAMS, prefix_cache=cache) for prompt in prompts)
    begun = [(next(first), next(second))]
    next(third)
    third.close()
    for each, prompt in zip(zip(*begun, *zip(first, second)), prompts):
        assert [event.id for event in each if isinstance(event, Committed)] == generate(tiny_llama, tiny_tokenizer, [prompt], PARAMS)[0].ids
    assert cache.runner.live == len(cache.slots) == 2


def test_clearing_leaves_a_live_stream_its_rows(tiny_llama, tiny_tokenizer):
    cache = PrefixCache(tiny_llama)
    generate(tiny_llama, tiny_tokenizer, [[40, 41]], PARAMS, prefix_cache=cache)
    events = stream(tiny_llama, tiny_tokenizer, PROMPT, PARAMS, prefix_cache=cache)
    ids = [next(events).id]
    cache.clear()
    ids += [event.id for event in events if isinstance(event, Committed)]
    assert ids == generate(tiny_llama, tiny_tokenizer, [PROMPT], PARAMS)[0].ids


def test_a_cache_tells_adapters_on_from_adapters_off(fresh_tiny, tiny_tokenizer):
    model = with_adapter(fresh_tiny())
    cache = PrefixCache(model)
    assert same_as_read_anew(model, tiny_tokenizer, cache)
    with model.disable_adapter():
        assert same_as_read_anew(model, tiny_tokenizer, cache, [*PROMPT, 3])
    read = cache.runner.positions
    assert same_as_read_anew(model, tiny_tokenizer, cache)  # what was read with the adapter is still there
    assert cache.runner.positions - read <= len(PROMPT) + 6


def test_a_cache_filled_before_an_adapter_was_attached_answers_with_it(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny()
    cache = PrefixCache(model)
    assert same_as_read_anew(model, tiny_tokenizer, cache)
    bare = generate(model, tiny_tokenizer, [PROMPT], PARAMS)[0].logprobs
    wrapped = with_adapter(model)
    assert same_as_read_anew(wrapped, tiny_tokenizer, cache)
    assert generate(wrapped, tiny_tokenizer, [PROMPT], PARAMS, prefix_cache=cache)[0].logprobs != pytest.approx(bare, abs=1e-3)


def scale_up(model):
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 3.0)


CHANGES = {
    "weights trained in place": lambda model: [p.add_(0.1) for p in model.parameters()],
    "a weight replaced": lambda model: setattr(
        layer := model.get_base_model().model.layers[0].mlp.down_proj, "weight", torch.nn.Parameter(2 * layer.weight)
    ),
    "another adapter": lambda model: (model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)),
                                      model.set_adapter("other")),
    "an adapter scaled": scale_up,
    "a hook": lambda model: model.get_base_model().model.layers[0].register_forward_hook(lambda layer, given, states: states + 0.3),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_of_the_model_is_seen(fresh_tiny, tiny_tokenizer, change):
    model = with_adapter(fresh_tiny())
    cache = PrefixCache(model)
    assert same_as_read_anew(model, tiny_tokenizer, cache)
    CHANGES[change](model)
    assert same_as_read_anew(model, tiny_tokenizer, cache)


def test_what_was_read_half_with_an_adapter_and_half_without_is_not_kept(fresh_tiny, tiny_tokenizer):
    model = with_adapter(fresh_tiny())
    cache = PrefixCache(model)
    events = stream(model, tiny_tokenizer, PROMPT, PARAMS, prefix_cache=cache)
    next(events)
    with model.disable_adapter():
        list(events)
        assert same_as_read_anew(model, tiny_tokenizer, cache)
    assert same_as_read_anew(model, tiny_tokenizer, cache)
    assert cache.runner.live == len(cache.slots)


def test_the_state_of_a_model_is_that_between_passes(fresh_tiny):
    """Another thread has the model down to its first layer: the state waits until it is whole."""
    model = fresh_tiny()
    whole, cut, enough = state_of(model), Event(), Event()

    def draft():
        with open_first_layers(open_runner(model), 1)._with_attention():
            cut.set()
            enough.wait(10)

    with ThreadPoolExecutor() as pool:
        drafting = pool.submit(draft)
        cut.wait(10)
        found = pool.submit(state_of, model)
        assert len(list(model.model.layers)) == 1 and not found.done()
        enough.set()
        assert found.result(10) == whole and drafting.result(10) is None
