"""What requests may come to, by hand, and what a machine has to give."""

import types

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import PrefixCache, SamplingParams, generate
from seodang.infer.engine import budget as module
from seodang.infer.engine.budget import Budget, left_in_groups, size
from seodang.infer.engine.core import Engine
from seodang.infer.engine.prompts import new_requests
from seodang.infer.runners.open import open_runner


@pytest.fixture
def host(tiny):
    """An engine of a tiny model, which gives the runners of others."""
    return Engine(open_runner(tiny("llama")))


@pytest.fixture
def asked(host, tiny_tokenizer):
    """`asked(prompt ids, **settings)`: the request."""

    def make(ids, model=None, **settings):
        own = host if model is None else Engine(open_runner(model))
        [request] = new_requests(own.runner.model, tiny_tokenizer, [ids], SamplingParams(**settings), own)
        return request

    return make


PROMPT = [5] * 20


@pytest.mark.parametrize(
    "settings, slots",
    [
        ({}, 1),
        ({"do_sample": True, "num_return_sequences": 3}, 3),
        ({"do_sample": True, "best_of": 4}, 4),
        ({"num_beams": 5}, 5),
        ({"penalty_alpha": 0.6, "top_k": 4}, 4),
        ({"prompt_lookup_num_tokens": 4}, 1),
    ],
    ids=str,
)
def test_a_request_needs_its_slots_of_prompt_and_longest_answer(host, asked, settings, slots):
    request = asked(PROMPT, max_new_tokens=110, **settings)
    assert Budget(10**9).needs(request, host) == slots * host.runner.bytes_for(130)


def test_guidance_needs_slots_for_its_own_prompt(host, asked):
    request = asked(PROMPT, max_new_tokens=110, guidance_scale=2.0, negative_prompt=[6] * 40, num_beams=2)
    assert Budget(10**9).needs(request, host) == 2 * (host.runner.bytes_for(130) + host.runner.bytes_for(150))


def test_an_amateur_and_drafts_need_slots_in_their_own_runners(host, asked, tiny):
    small = tiny("llama", num_hidden_layers=1)
    runner = host.runner_of(small)
    assert runner.bytes_for(130) < host.runner.bytes_for(130)
    for settings in ({"amateur_model": small}, {"assistant_model": small}):
        assert Budget(10**9).needs(asked(PROMPT, max_new_tokens=110, **settings), host) == host.runner.bytes_for(130) + runner.bytes_for(130)
    first = asked(PROMPT, max_new_tokens=110, assistant_early_exit=1, do_sample=True, num_return_sequences=2)
    assert Budget(10**9).needs(first, host) == 2 * (host.runner.bytes_for(130) + host.first_layers(1).bytes_for(130))


def test_drafts_of_another_tokenizer_are_counted_in_its_ids(host, asked, tiny, tiny_tokenizer):
    small = tiny("llama", num_hidden_layers=1, max_position_embeddings=512)
    request = asked(PROMPT, max_new_tokens=30, assistant_model=small, assistant_tokenizer=tiny_tokenizer)
    assert Budget(10**9).needs(request, host) == host.runner.bytes_for(50) + host.runner_of(small).bytes_for(20 + 4 * 30)


def test_an_encoder_decoder_needs_its_source_too(tiny, asked):
    model = tiny("bart")
    request = asked([5] * 30, model, max_new_tokens=10, num_beams=2)
    engine = Engine(open_runner(model))
    assert Budget(10**9).needs(request, engine) == 2 * engine.runner.bytes_for(11, 30)


def test_what_is_more_than_the_budget_is_refused_with_the_numbers(host, asked):
    request = asked(PROMPT, max_new_tokens=200, num_beams=4, guidance_scale=2.0)
    needs = Budget(10**9).check(request, host)
    assert Budget(needs).check(request, host) == needs
    each, other = (size(host.runner.bytes_for(n) / n) for n in (220, 201))
    words = (
        f"request 0 needs {size(needs)} of memory (4 x (20 + 200) positions of {each}, and for guidance 4 x (1 + 200) positions of {other}), "
        f"more than the budget of {size(needs - 1)}: lower max_new_tokens=200, lower num_beams=4, shorten the prompt, or raise the budget"
    )
    with pytest.raises(UserError) as caught:
        Budget(needs - 1).check(request, host)
    assert str(caught.value) == words


@pytest.mark.parametrize("limit", [0, -5, 1.5, True, "2 GB"], ids=str)
def test_a_budget_is_a_number_of_bytes(limit):
    with pytest.raises(UserError, match="number of bytes above 0, got"):
        Budget(limit)


def test_the_default_is_half_of_what_is_free(tiny, monkeypatch):
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=3_000_000))
    monkeypatch.setattr(module, "left_in_groups", list)
    assert Budget.default(tiny("llama")) == Budget(1_500_000)
    monkeypatch.setattr(module, "left_in_groups", lambda: [5_000_000, 1_000_000])
    assert Budget.default(tiny("llama")) == Budget(500_000)
    monkeypatch.setattr(module, "left_in_groups", lambda: [0])
    assert Budget.default(tiny("llama")) == Budget(1)  # and everything is refused, with the numbers


def test_a_container_leaves_what_its_groups_do(tmp_path):
    inner = tmp_path / "pods" / "mine"
    inner.mkdir(parents=True)
    values = {inner: ("1000000", "400000", 100000), inner.parent: ("max", "7", 0), tmp_path: ("500000", "450000", 0)}
    for folder, (most, used, files) in values.items():
        (folder / "memory.max").write_text(most + "\n", encoding="utf-8")
        (folder / "memory.current").write_text(used + "\n", encoding="utf-8")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n", encoding="utf-8")
    old = tmp_path / "memory" / "job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("800000", encoding="utf-8")
    (old / "memory.usage_in_bytes").write_text("900000", encoding="utf-8")
    (old / "memory.stat").write_text("total_inactive_file 0\n", encoding="utf-8")
    (tmp_path / "groups").write_text("5:cpuset,memory:/job\n3:cpu:/\n0::/pods/mine\n", encoding="utf-8")
    assert left_in_groups(tmp_path, tmp_path / "groups") == [0, 700000, 50000]
    assert left_in_groups(tmp_path, tmp_path / "none") == []


def test_the_budget_is_described_in_words(host):
    each, weights = module.position_bytes(host.runner), sum(p.numel() for p in host.runner.model.parameters()) * 4
    lines = Budget(int(each * 5_000)).describe(host.runner.model, host.runner).splitlines()
    assert lines[0].startswith(f"model {size(weights)}; KV cache up to {size(each * 5_000)}: 5,000 positions of {size(each)}; a pass up to ")
    assert len(lines) == 1
    lines = Budget(int(each * 7.5)).describe(host.runner.model, host.runner).splitlines()
    assert len(lines) == 2 and lines[1].startswith("only 7 positions fit: requests whose prompt")


@pytest.mark.parametrize(
    "count, words",
    [(1, "1 bytes"), (999, "999 bytes"), (46_080, "46 KB"), (537_900_000, "538 MB"), (999_600_000, "1.0 GB"), (2_140_000_000, "2.1 GB"), (43e12, "43 TB")],
    ids=str,
)
def test_sizes_are_written_with_two_or_three_figures(count, words):
    assert size(count) == words


def test_a_models_weights_count_once(tiny):
    model = tiny("gpt2")  # whose head is its embeddings
    assert module.model_bytes(model) == sum(p.numel() * 4 for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight)


def test_what_guesses_took_that_did_not_come_counts_too(tiny, tiny_tokenizer):
    model, draft, prompt = tiny("llama", head_dim=64, num_hidden_layers=4), tiny("llama", seed=1), [5 + at % 20 for at in range(90)]
    [first] = generate(model, tiny_tokenizer, [prompt], SamplingParams(max_new_tokens=1))
    cache = PrefixCache(model)
    params = SamplingParams(
        max_new_tokens=60, stop_token_ids=first.ids, assistant_model=draft, num_assistant_tokens=40, assistant_confidence_threshold=0.0
    )
    generate(model, tiny_tokenizer, [prompt], params, prefix_cache=cache)
    [slot] = cache.slots
    assert cache.runner.length(slot) == 90 and cache.bytes == cache.runner.bytes_for(90 + 40)
    assert cache.runner.memory <= cache.runner.bytes_for(90)  # of what lies on the shelf no more is there than is kept
