"""A PrefixCache serves overlapping calls and models that change: what it gives is what reading anew would give."""

from dataclasses import replace
from itertools import islice
from os.path import commonprefix

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from seodang.data.errors import UserError
from seodang.infer import Committed, PrefixCache, SamplingParams, generate, stream
from seodang.infer.engine.core import Engine
from seodang.infer.engine.pace import Pace
from seodang.infer.engine.prompts import new_requests
from seodang.infer.requests.generation import Generation, Stage
from seodang.infer.requests.sequence import TokenSequence, release

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


@torch.no_grad()
def test_a_model_that_was_another_between_two_tokens_of_a_stream_has_that_stream_shared_with_nobody(fresh_tiny, tiny_tokenizer):
    model = with_adapter(fresh_tiny())
    cache = PrefixCache(model)
    events = stream(model, tiny_tokenizer, PROMPT, PARAMS, prefix_cache=cache)
    ids = [next(events).id for _ in range(2)]
    with model.disable_adapter():
        ids.append(next(events).id)
    further = [*PROMPT, *ids, 13]
    assert same_as_read_anew(model, tiny_tokenizer, cache, further)  # while the stream lives
    list(events)
    assert same_as_read_anew(model, tiny_tokenizer, cache, further)
    assert cache.runner.live == len(cache.slots) == 1


class Served:
    """An engine that shares what it reads, and the requests that were sent to it, one after the other."""

    def __init__(self, model, tokenizer, cache, **how):
        self.model, self.tokenizer, self.engine = model, tokenizer, Engine(cache.runner, prefix_cache=cache, **how)

    def send(self, prompt, salt=None, **options) -> Generation:
        options = {"max_new_tokens": 6, "ignore_eos": True, **options}
        [request] = new_requests(self.model, self.tokenizer, [prompt], SamplingParams(**options), self.engine)
        generation = Generation(replace(request, cache_salt=salt))
        self.engine.submit(generation)
        return generation

    def steps(self, count=1000) -> None:
        while count and self.engine.step():
            count -= 1


@pytest.fixture
def served(tiny_llama, tiny_tokenizer):
    """`served(cache)`: an engine over the tiny model."""
    return lambda cache, **how: Served(tiny_llama, tiny_tokenizer, cache, **how)


def test_what_a_request_has_read_is_shared_while_it_is_answered(served, tiny_llama):
    cache = PrefixCache(tiny_llama)
    ours = served(cache)
    first = ours.send(PROMPT, max_new_tokens=40)
    ours.steps(4)
    answer = first._published[0].ids
    assert len(answer) == 4 and not cache.slots
    second, third = ours.send([*PROMPT, *answer, 90]), ours.send([*PROMPT[:5], 99])
    read = cache.runner.positions
    ours.steps(2)  # they are let in, and are in the next pass
    assert second.cached_tokens == len(PROMPT) + 3  # the newest token has been chosen, and not been read
    assert third.cached_tokens == 5 and first.cached_tokens == 0
    assert cache.runner.positions - read == (1 + 2 + 1) + 3  # a step of the first, the fourth token and 90, 99; a step of each
    ours.steps()
    assert (second.result.cached_tokens, third.result.cached_tokens) == (len(PROMPT) + 3, 5)


def test_the_longest_past_is_taken_whoever_has_it_and_one_id_is_always_left_to_read(served, tiny_llama):
    cache = PrefixCache(tiny_llama)
    ours = served(cache)
    ours.send(PROMPT, max_new_tokens=1)
    ours.steps()
    assert cache.known(PROMPT, cache.runner) == 7 and cache.known([*PROMPT, 90], cache.runner) == 8
    ours.send([*PROMPT, 90, 91, 92], max_new_tokens=20)
    ours.steps(2)
    assert cache.known([*PROMPT, 90, 91, 93], cache.runner) == 10  # of the live one
    assert cache.known([5], cache.runner) == cache.known([99, 5], cache.runner) == 0
    ours.engine.close()
    assert cache.known([*PROMPT, 90, 91, 93], cache.runner) == 8  # it has gone, and leaves nothing
    assert cache.runner.live == len(cache.slots) == 1


@pytest.mark.parametrize("waits", [False, True], ids=["at the same time", "after it"])
def test_a_past_is_given_to_equal_salts_alone(served, tiny_llama, waits):
    cache, salts = PrefixCache(tiny_llama), [None, "", "a", "b", "a"]
    ours, sent = served(cache), []
    for salt in salts:
        assert cache.known(PROMPT, cache.runner, salt) == (7 if salt == "a" and len(sent) == 4 else 0)
        sent.append(ours.send(PROMPT, salt, max_new_tokens=3))
        ours.steps(1000 if waits else 1)
    assert [each.cached_tokens for each in sent] == [0, 0, 0, 0, 7]
    ours.steps()
    assert len(cache.slots) == 4  # the two answers of "a" are the same
    cache.make_room(10**12)


def test_a_request_that_asks_how_likely_its_prompt_is_reads_it_itself(served, tiny_llama):
    cache = PrefixCache(tiny_llama)
    ours = served(cache)
    cold = ours.send(PROMPT, prompt_logprobs=2)
    ours.steps(2)
    warm = ours.send(PROMPT, prompt_logprobs=2)
    ours.steps()
    again = ours.send(PROMPT, prompt_logprobs=2)
    ours.steps()
    assert cold.result.prompt_logprobs == warm.result.prompt_logprobs == again.result.prompt_logprobs
    assert [each.result.cached_tokens for each in (cold, warm, again)] == [0, 0, 0]


def test_what_was_longest_unused_goes_first_within_the_bytes(served, tiny_llama):
    cache = PrefixCache(tiny_llama, sequences=None, max_bytes=500)
    cache.runner.bytes_for = lambda positions, source=0: 10 * positions
    ours = served(cache)
    for first in (20, 30, 40):
        ours.send([first] * 10, max_new_tokens=6)  # 15 positions: the last token is not read
        ours.steps()
    assert cache.bytes == 450
    assert cache.known([20, 20, 90], cache.runner) == 2  # which counts as used
    ours.send([50] * 5, max_new_tokens=6)
    ours.steps()
    assert cache.bytes == 150 + 150 + 100
    assert [cache.known([id, id, 90], cache.runner) for id in (30, 40, 20, 50)] == [0, 2, 2, 2]
    cache.make_room(1)
    assert (cache.bytes, cache.known([40, 40, 90], cache.runner)) == (250, 0)
    ours.send([60] * 50, max_new_tokens=6)  # 550 bytes, more than all: what is kept stays
    ours.steps()
    assert (cache.bytes, cache.runner.live, len(cache.slots)) == (250, 2, 2)
    cache.make_room(1000)
    assert (cache.bytes, cache.runner.live) == (0, 0)


def test_a_continued_past_makes_way_and_a_shorter_one_is_not_kept_beside_it(served, tiny_llama):
    cache = PrefixCache(tiny_llama)
    ours = served(cache)
    one = ours.send(PROMPT, max_new_tokens=3)
    ours.steps()
    ours.send([*PROMPT, *one.result.ids, 90], max_new_tokens=3)
    ours.steps()
    assert len(cache.slots) == cache.runner.live == 1
    ours.send(PROMPT, max_new_tokens=2)  # the beginning of what is kept
    ours.steps()
    assert len(cache.slots) == cache.runner.live == 1 and cache.known([*PROMPT, *one.result.ids, 90, 7], cache.runner) == 12


def test_a_sequence_that_was_released_is_shared_no_more_though_its_request_goes_on(tiny_llama, new_request):
    cache = PrefixCache(tiny_llama)
    generation = new_request(tiny_llama, PROMPT)
    generation.request = replace(generation.request, prefix_cache=cache)
    sequence = TokenSequence.open(generation, cache.runner)
    cache.runner.forward([sequence.cache_slot], [PROMPT], [1])
    other = sequence.fork_slot()
    assert cache.known([*PROMPT, 90], cache.runner) == 8
    release([sequence])
    assert cache.known([*PROMPT, 90], cache.runner) == 0 and generation.slots_held == {(cache.runner, other)}


def test_bounds_that_are_none_are_refused(tiny_llama):
    for bounds, said in (({"sequences": 0}, "sequences must be at least 1, got 0"), ({"max_bytes": 0}, "max_bytes must be at least 1, got 0"),
                         ({"sequences": None}, "give one of them")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            PrefixCache(tiny_llama, **bounds)


FEW = st.lists(st.integers(5, 6), max_size=9)


@given(st.lists(st.tuples(FEW, st.sampled_from([None, "a"])), max_size=12), st.lists(FEW, min_size=1, max_size=8))
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_longest_shared_beginning_is_found_among_many(tiny_llama, new_request, kept, asked):
    """Against a search through all of them."""
    cache = PrefixCache(tiny_llama, sequences=100)
    for ids, salt in kept:
        generation = new_request(tiny_llama, [*ids, 7])
        generation.request = replace(generation.request, cache_salt=salt, prefix_cache=cache)
        sequence = TokenSequence.open(generation, cache.runner, recall=False)
        if ids:
            cache.runner.forward([sequence.cache_slot], [ids], [0])
        generation.hand_over_slot(cache.runner, sequence.cache_slot)
        cache.remember(sequence)
    for ids in asked:
        for salt in (None, "a"):
            shared = [len(commonprefix([other, ids])) for other, own in kept if own == salt]
            assert cache.known([*ids, 7], cache.runner, salt) == max(shared, default=0)
    assert cache.runner.live == len(cache.slots)


WAYS = [
    {}, {"temperature": 1.2}, {"num_beams": 3}, {"num_beams": 3, "do_sample": True}, {"num_beams": 2, "strategy": "stochastic_beam"},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, {"num_beams": 3, "force_words_ids": [[30, 31]]},
    {"penalty_alpha": 0.5, "top_k": 3}, {"dola_layers": "low"}, {"prompt_lookup_num_tokens": 4}, {"assistant_early_exit": 1},
    {"best_of": 3, "temperature": 1.0}, {"guidance_scale": 1.5, "negative_prompt": [9, 8]}, {"logprobs": 2},
]  # fmt: skip
BEGINNING = [5, 6, 7, 8, 5, 6, 7, 9, 10, 11]
ARRIVAL = st.tuples(
    st.integers(0, 4),  # steps after the one before
    st.integers(0, len(BEGINNING)), st.integers(0, 6), st.lists(st.integers(4, 123), min_size=1, max_size=3),  # of the beginning, its answer, own
    st.sampled_from(WAYS), st.sampled_from([None, None, "a"]), st.integers(0, 1),
)  # fmt: skip


@given(st.lists(ARRIVAL, min_size=3, max_size=7), st.sampled_from([1, 4, 64]), st.integers(1, 3), st.sampled_from([1, 4, 1000]))
@settings(max_examples=16, deadline=None, suppress_health_check=list(HealthCheck))
def test_in_float64_answers_over_shared_pasts_are_those_of_prompts_read_anew(wide_tiny, tiny_tokenizer, arrivals, max_rows, sequences, part):
    cache = PrefixCache(wide_tiny, sequences=sequences)
    ours, sent, ended = Served(wide_tiny, tiny_tokenizer, cache, max_rows=max_rows, pace=Pace(part, stall=None)), [], {}
    for steps, first, answered, own, way, salt, seed in arrivals:
        ours.steps(steps)
        known = [*BEGINNING, *continued(wide_tiny, tiny_tokenizer, ended)[:answered]] if first == len(BEGINNING) else BEGINNING[:first]
        prompt, options = [*known, *own], {**way, "seed": seed, "max_new_tokens": 6}
        sent.append((ours.send(prompt, salt, **options), prompt, SamplingParams(**options, ignore_eos=True)))
    ours.steps()
    for generation, prompt, params in sent:
        [alone] = generate(wide_tiny, tiny_tokenizer, [prompt], params)
        assert generation.result.ids == alone.ids, params.given
        assert generation.result.logprobs == pytest.approx(alone.logprobs, abs=1e-9)
    assert cache.runner.live == len(cache.slots) <= sequences


def continued(model, tokenizer, known: dict) -> list[int]:
    """The greedy answer to the common beginning, which prompts of further turns begin with."""
    if not known:
        [known[0]] = generate(model, tokenizer, [BEGINNING], PARAMS)
    return known[0].ids


@pytest.fixture(scope="module")
def wide_tiny(tiny):
    return tiny("llama", seed=11, num_hidden_layers=3).double()


def test_requests_that_come_together_wait_for_one_reading_of_what_they_share(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny(max_position_embeddings=1024)
    cache = PrefixCache(model)
    common, ours = [5 + i % 90 for i in range(500)], Served(model, tiny_tokenizer, cache)
    prompts = [[*common, 100 + i, 101] for i in range(8)]
    want = [each.ids for each in generate(model, tiny_tokenizer, prompts, PARAMS)]
    sent = [ours.send(prompt) for prompt in prompts]
    ours.steps(1)
    assert cache.runner.positions == 502
    ours.steps()
    assert cache.runner.positions == 502 + 7 * 2 + 8 * 5
    assert [each.cached_tokens for each in sent] == [0] + [500] * 7 and [each.result.ids for each in sent] == want


def test_who_waits_for_another_prompt_to_be_read_keeps_nobody_else_waiting(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny(max_position_embeddings=1024)
    cache = PrefixCache(model)
    common, ours = [5 + i % 90 for i in range(500)], Served(model, tiny_tokenizer, cache, pace=Pace(64, stall=None), max_rows=4)
    long, alike, short, gone, last = [ours.send(prompt) for prompt in ([*common, 7], [*common, 8], [9, 8], [*common, 9], [7, 8])]
    ours.steps(3)
    assert len(short._published[0].ids) >= 2 and {long.stage, alike.stage} == {Stage.PREFILLING, Stage.WAITING}
    assert last.stage is Stage.WAITING  # the four rows are taken, by those that wait as well
    assert ours.engine.cancel(gone)
    ours.steps(1)
    assert last.stage is not Stage.WAITING
    ours.steps()
    assert [each.result.cached_tokens for each in (long, alike, short, gone, last)] == [0, 448, 0, 0, 0]  # for less than 64 it waits no more
    assert cache.runner.positions == 501 + 53 + 2 + 2 + 4 * 5 and not ours.engine.scheduler.aside
    assert alike.result.ids == generate(model, tiny_tokenizer, [[*common, 8]], PARAMS)[0].ids


def test_nobody_waits_for_little_for_another_salt_or_for_a_call_that_stands_still(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny(max_position_embeddings=1024)
    cache = PrefixCache(model)
    ours, prompt = Served(model, tiny_tokenizer, cache), [5 + i % 90 for i in range(200)]
    first = ours.send(prompt, "a")
    ours.engine._admit()  # it stands there unread
    asked = lambda ids, salt="a", among=None: cache.awaited(ids, cache.runner, salt, among)
    assert asked([*prompt, 99]) and asked(prompt) and asked([*prompt[:64], 99]) and asked(prompt, among=[first])
    assert not asked([*prompt[:63], 99]) and not asked(prompt[:64])  # 63 to be shared: the last id is read in any case
    assert not asked(prompt, None) and not asked(prompt, "b") and not asked(prompt, among=[])
    ours.steps(1)
    assert not asked([*prompt, 99]) and cache.known([*prompt, 99], cache.runner, "a") == 200
    second = ours.send([*prompt, *range(5, 100)], "a")
    ours.engine._admit()
    assert asked([*prompt, *range(5, 100), 3]) and not asked([*prompt, *range(5, 60), 3])  # beyond what is known already
    second.fail(UserError("gone"))
    assert not asked([*prompt, *range(5, 100), 3])
