"""Keys and values in 8 bits: attention in float64 over what the cache holds, and the same as ever of rows, passes and strategies."""

import copy

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModel

from seodang.data.errors import UserError
from seodang.infer import LiveEngine, PrefixCache, SamplingParams, generate, load, runtime_of, score, set_kv_cache_dtype
from seodang.infer.checkpoint.quantise import quantise
from seodang.infer.engine import generate as calls
from seodang.infer.engine.budget import position_bytes
from seodang.infer.kernels.vectors8 import widened
from seodang.infer.runners import cache
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.native_runner import MANY, NativeRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.paradigm import Diffusion, declare

ODD = {"hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "intermediate_size": 75, "vocab_size": 131}
WIDE = {"hidden_size": 96, "head_dim": 64, "intermediate_size": 192, "num_attention_heads": 6, "num_key_value_heads": 2}
KINDS = {
    "llama": ("llama", {}),
    "sizes that no vector divides": ("llama", {**ODD, "attention_bias": True}),
    "three heads a key head, of whole vectors": ("llama", WIDE),
    "many heads a key head": ("llama", {"hidden_size": 144, "head_dim": 24, "num_attention_heads": 6, "num_key_value_heads": 1}),
    "mistral": ("mistral", {"sliding_window": 6}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {"hidden_activation": "gelu_pytorch_tanh"}),
    "smollm3 with windows": ("smollm3", {"use_sliding_window": True, "sliding_window": 5}),
    "phi3": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "gpt2": ("gpt2", {"n_embd": 36, "n_head": 4}),
    "experts": ("qwen3_moe", {"num_hidden_layers": 1}),
}  # fmt: skip
BUILDS = [None, ("haswell", "avx2"), ("x86-64", "sse4_1")]
CACHED = "over_what_is_cached"


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


def in_8(model):
    """The model, its cache to be in 8 bits."""
    set_kv_cache_dtype(model, "int8")
    return model


# ---- a pass: what it writes, and what it makes of what is there ----


@pytest.fixture
def exactly(monkeypatch):
    """`exactly(model, text, cached)`: the model in float64, its attention over keys and values of a cache in place of its own, [layers, 2, kv_heads, n, d].

    Returns the logits and, layer by layer, the keys and values that it would have written.
    """
    found, kept = [], []

    def attention(module, query, key, value, mask, scaling=None, sliding_window=None, softcap=None, **_):
        found.append(torch.stack([key[0], value[0]]))
        keys, values = kept[0][len(found) - 1].unsqueeze(1)
        groups, n = query.shape[1] // keys.shape[1], query.shape[2]
        scores = query @ keys.repeat_interleave(groups, 1).transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = scores if softcap is None else softcap * (scores / softcap).tanh()
        distance = torch.arange(n)[:, None] - torch.arange(n)
        seen = (distance >= 0) & (distance < (sliding_window or n))
        return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values.repeat_interleave(groups, 1)).transpose(1, 2), None

    AttentionInterface.register(CACHED, attention)
    AttentionMaskInterface.register(CACHED, lambda **_: None)

    @torch.no_grad()
    def run(model, text, cached):
        exact = copy.deepcopy(model).double()
        exact.config._attn_implementation = CACHED
        found.clear()
        kept[:] = [cached]
        return exact(input_ids=torch.tensor([text]), use_cache=False).logits[0], torch.stack(found)

    return run


def cached_of(runner, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What a slot's cache holds, in float64 and keys turned back by arithmetic of its own, and the steps of it, [layers, 2, kv_heads, n, d or 1]."""
    pool, lane = runner.cache.locate(slot)
    packed = pool.stack[:, :, lane, :, : runner.length(slot)]
    scale = packed[..., -2:].contiguous().view(torch.bfloat16).double()
    return turned(packed[..., :-2].double() * scale), scale


def turned(both: torch.Tensor) -> torch.Tensor:
    """Keys, of keys and values [layers, 2, kv_heads, n, d], turned as they are kept, or back."""
    both, width = both.clone(), both.shape[-1]
    block = next(2**i for i in reversed(range(12)) if width % 2**i == 0)
    signs = torch.tensor([[(-1.0) ** (i & j).bit_count() for j in range(block)] for i in range(block)], dtype=torch.float64)
    both[:, 0] = (both[:, 0].unflatten(-1, (-1, block)) @ signs).flatten(-2) / block**0.5
    return both


def read_by_parts(runner, text: list[int]) -> tuple[int, torch.Tensor]:
    """A slot whose text was read by prompts, guesses and steps beside other slots, and the logits of all its ids."""
    slot, others, logits, at = runner.allocate(), [runner.allocate() for _ in range(3)], [], 0
    for count in (5, 1, MANY - 1, 1, 2, *[1] * 6):
        beside = others[: count % 4]
        out = runner.forward([*beside, slot], [*([7 + at] for _ in beside), text[at : at + count]], [0] * len(beside) + [count])
        logits.append(out)
        at += count
    return slot, torch.cat(logits)


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_attention_in_float64_over_what_the_cache_holds(varied, other_build, natively, exactly, name, build):
    if build:
        other_build(*build)
    kind, changes = KINDS[name]
    model, text = in_8(varied(kind, **changes)), ids(31, 3)
    runner = open_runner(model)
    assert type(runner) is NativeRunner and runtime_of(runner).kv_cache_dtype == "int8"
    natively.clear()
    slot, logits = read_by_parts(runner, text)
    assert sum(natively) == runner.positions
    cached, scale = cached_of(runner, slot)
    wanted, own = exactly(model, text, cached)
    assert (logits - wanted).abs().max() < 2e-5 * max(1, wanted.std())
    written = turned(own)
    assert ((turned(cached) - written).abs() <= 0.501 * scale + 1e-5).all()  # each as near as its step allows
    largest = written.abs().amax(dim=-1, keepdim=True)
    assert (scale * 127 >= 0.99999 * largest - 1e-6).all() and (scale * 127 <= largest * 129 / 128 + 1e-5).all()
    plain = DirectRunner(model)
    assert (wanted - plain.forward([plain.allocate()], [text], [len(text)])).abs().max() > 1e-4  # which float keys are not


@pytest.mark.parametrize("kind, changes", [("llama", WIDE), ("mistral", {"sliding_window": 300}), ("gemma2", {**ODD, "sliding_window": 300})])
def test_pasts_of_several_pieces_are_put_together_right(varied, exactly, kind, changes):
    model, text = varied(kind, max_position_embeddings=1024, **changes), ids(600, 4)
    runner = NativeRunner(model, "int8")
    slot = runner.allocate()
    runner.forward([slot], [text[:500]], [0])  # by torch
    for at in (*range(500, 592, 13), 598, 599):  # 256 and 512 within
        runner.forward([slot], [text[runner.length(slot) : at]], [1]) if at > runner.length(slot) else None
    logits = runner.forward([slot], [text[599:]], [1])
    wanted, _ = exactly(model, text, cached_of(runner, slot)[0])
    assert (logits - wanted[-1:]).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["three heads a key head, of whole vectors", "sizes that no vector divides", "gemma2"])
def test_in_bfloat16_they_are_as_near_as_its_rounding_and_that_of_the_cache_make_them(varied, name):
    kind, changes = KINDS[name]
    model, text = varied(kind, **changes).bfloat16(), ids(31, 3)
    plain = DirectRunner(copy.deepcopy(model).float())
    exact = plain.forward([plain.allocate()], [text], [31])
    of_dtype, of_cache, of_both = (rms(read_by_parts(NativeRunner(each, kept), text)[1] - exact) for each, kept in ((model, None), (plain.model, "int8"), (model, "int8")))
    assert of_both < 1.5 * (of_dtype.square() + of_cache.square()).sqrt() and of_both < 0.1 * exact.std()


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
@pytest.mark.parametrize("name", ["three heads a key head, of whole vectors", "sizes that no vector divides", "gemma2"])
def test_a_step_is_the_same_to_the_bit_alone_and_among_others(varied, other_build, name, build):
    if build:
        other_build(*build)
    kind, changes = KINDS[name]
    runner = NativeRunner(varied(kind, **changes), "int8")
    slots = [runner.allocate() for _ in range(20)]
    runner.forward(slots, [ids(1 + 7 * i % 15, i) for i in range(20)], [0] * 20)

    def step(some: list[int]) -> torch.Tensor:
        logits = runner.forward([slots[i] for i in some], [[5 + i] for i in some], [1] * len(some))
        for i in some:
            runner.truncate(slots[i], runner.length(slots[i]) - 1)
        return logits

    alone = torch.cat([step([i]) for i in range(20)])
    assert len({tuple(row[:3].tolist()) for row in alone}) == 20
    for count in (2, 3, 5, 8, 20):
        order = torch.randperm(20, generator=torch.Generator().manual_seed(count))[:count].tolist()
        assert torch.equal(step(order), alone[order])


def test_one_whose_keys_are_not_finite_is_nan_and_the_others_are_as_ever(varied):
    model = varied("llama")
    runner = NativeRunner(model, "int8")
    slots = [runner.allocate(), runner.allocate()]
    wanted = runner.forward(slots[1:], [[6, 7]], [2])
    runner.truncate(slots[1], 0)
    model.get_input_embeddings().weight.data[5] = torch.inf
    got = runner.forward(slots, [[6, 5], [6, 7]], [2, 2])
    assert got[0].isfinite().all() and got[1].isnan().all() and torch.equal(got[2:], wanted)


# ---- by torch ----


def test_what_torch_runs_reads_and_writes_the_same_cache(varied, natively):
    """Prompts, passes both ways, under autocast, and of a model that something was put into."""
    model, text = varied("llama", **WIDE), ids(60, 5)
    native, torchs, plain = NativeRunner(model, "int8"), DirectRunner(model, "int8"), DirectRunner(model)
    found = []
    for runner in (native, torchs, plain):
        slots = [runner.allocate(), runner.allocate()]
        out = [runner.forward(slots, [text[:40], text[:3]], [3, 1]), runner.forward(slots, [[5], [6]], [1, 1])]
        fork = runner.fork(slots[:1])[0]
        runner.truncate(slots[0], 20)
        out.append(runner.forward([*slots, fork], [text[20:23], [7], [8]], [3, 1, 1]))
        runner.attend_both_ways(slots[0], True)
        out.append(runner.forward(slots, [text[23:50], [9]], [27, 1]))
        runner.rewrite(slots[0], 25)
        out.append(runner.forward([slots[0]], [ids(4, 6)], [4]))
        runner.copy(fork, slots[1], 0, 30)
        hook = model.model.layers[0].register_forward_hook(lambda *_: None)
        runner.refresh(keep=[*slots, fork])
        assert not runner.covers
        out.append(runner.forward([slots[1], fork], [[5], [6]], [1, 1]))
        hook.remove()
        runner.refresh(keep=[*slots, fork])
        out.append(runner.forward([slots[1], fork], [[5], [6]], [1, 1]))
        found.append(torch.cat(out))
    ours, theirs, exact = found
    assert rms(ours - theirs) < 0.1 * rms(ours - exact)  # a number between two levels may be written as either
    assert 1e-3 < (ours - exact).abs().max() < 0.1 * exact.std()
    assert natively
    with torch.autocast("cpu", torch.bfloat16):
        a, b = (runner.forward([runner.allocate()], [[5, 6, 7]], [3]) for runner in (native, plain))
    assert a.dtype == torch.bfloat16 and (a - b).abs().max() < 0.1 * b.std()


STRATEGIES = {
    "greedy": {},
    "sampling": {"temperature": 1.2, "top_k": 40, "top_p": 0.95},
    "guidance": {"guidance_scale": 1.5, "negative_prompt": [6, 7]},
    "beam": {"num_beams": 3},
    "beam_sampling": {"num_beams": 3, "do_sample": True, "temperature": 1.5},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "constrained_beam": {"num_beams": 3, "force_words_ids": [[30, 31]]},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "early_exit": {"assistant_early_exit": 1},
    "best_of_n": {"best_of": 3, "temperature": 1.0},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_says_what_it_says_over_the_dequantised_cache_in_torch(tiny, tiny_tokenizer, monkeypatch, natively, name):
    model = in_8(copy.deepcopy(tiny("llama", seed=9, num_hidden_layers=3)))
    prompts = [ids(5, 1), ids(30, 2), [7, 8, 7, 8, 7]]
    params = SamplingParams(max_new_tokens=10, seed=3, repetition_penalty=1.1, **STRATEGIES[name])
    ours = generate(model, tiny_tokenizer, prompts, params)
    rows = sum(natively)
    assert rows > 30 and ours[0].stats.runtime.kv_cache_dtype == "int8"
    monkeypatch.setattr(calls, "open_runner", lambda model: DirectRunner(model, "int8"))
    theirs = generate(model, tiny_tokenizer, prompts, params)
    assert [each.ids for each in ours] == [each.ids for each in theirs] and sum(natively) == rows


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_in_few_bits_go_with_it_and_a_text_read_at_once_or_by_steps_is_the_same_to_the_bit(varied, dequantised, exactly, weights):
    model = varied(**WIDE)
    quantise(model, weights)
    runner, text = open_runner(in_8(model)), ids(40, 7)
    slot, other = runner.allocate(), runner.allocate()
    at_once = runner.forward([slot], [text], [40])
    by_steps = torch.cat([runner.forward([other], [[id]], [1]) for id in text])
    assert torch.equal(at_once, by_steps) and torch.equal(cached_of(runner, slot)[0], cached_of(runner, other)[0])
    wanted, _ = exactly(dequantised(model), text, cached_of(runner, slot)[0])
    assert (at_once - wanted).square().mean().sqrt() < 0.05 * wanted.std()  # inputs of products are in 8 bits too


# ---- memory ----


def test_a_position_takes_a_byte_a_number_and_two_a_vector(varied):
    model = varied(**WIDE, max_position_embeddings=8192).bfloat16()
    own, eight = NativeRunner(model), NativeRunner(model, "int8")
    for runner, each in ((own, 2 * 64), (eight, 64 + 2)):
        slot = runner.allocate()
        runner.forward([slot], [[5]], [1])
        runner.cache.reserve(slot, 4096)
        assert position_bytes(runner) == pytest.approx(1.25 * 2 * 2 * 2 * each, rel=0.01)  # layers, keys and values, heads; one of four regions is there twice while it moves
        assert runner.memory == pytest.approx(4096 * 2 * 2 * 2 * each, rel=0.01)
        assert runner.bytes_for(4096) >= runner.memory
    assert own.bytes_for(4096) / eight.bytes_for(4096) == pytest.approx(2 * 64 / 66, rel=0.01)


def test_a_server_lets_twice_the_rows_in_for_the_same_budget(varied, tiny_tokenizer):
    model, params, most = varied(**WIDE, max_position_embeddings=1024).bfloat16(), SamplingParams(max_new_tokens=12, ignore_eos=True), {}
    for kept in ("auto", "int8"):
        set_kv_cache_dtype(model, kept)
        runner, seen = open_runner(model), []
        budget, forward = 8 * NativeRunner(model).bytes_for(512), runner.forward
        runner.forward = lambda *call: seen.append(runner.live) or forward(*call)
        with LiveEngine(model, tiny_tokenizer, cache_bytes=budget, reuse_prefixes=False, runner=runner) as engine:
            assert engine.runtime.kv_cache_dtype == kept
            tickets = [engine.submit(ids(500, i), params) for i in range(17)]
            assert all(len(ticket.results()[0].ids) == 12 for ticket in tickets)
        most[kept] = max(seen)
    assert most == {"auto": 8, "int8": 15}  # 15.5 by the bytes, less what begins within a page


@pytest.mark.parametrize("weights", ["int8", None])
def test_a_reused_prefix_gives_what_a_fresh_one_does(varied, tiny_tokenizer, weights):
    model = in_8(varied(**WIDE))
    if weights:
        quantise(model, weights)
    prefixes, params = PrefixCache(model), SamplingParams(max_new_tokens=6, ignore_eos=True)
    prompts = [ids(50, 1), [*ids(50, 1), 9, 10], [*ids(30, 1), *ids(9, 2)]]
    for prompt in prompts:
        before = prefixes.runner.positions
        [reused] = generate(model, tiny_tokenizer, [prompt], params, prefix_cache=prefixes)
        [fresh] = generate(model, tiny_tokenizer, [prompt], params)
        assert prefixes.runner.positions - before < 50 or prompt is prompts[0]
        assert reused.ids == fresh.ids
        if weights:  # else torch reads a prompt, which sums otherwise by how many ids there are
            assert reused.logprobs == fresh.logprobs
        else:
            assert reused.logprobs == pytest.approx(fresh.logprobs, abs=1e-4)


def test_a_prefix_cache_keeps_caches_of_two_kinds_apart(varied, tiny_tokenizer):
    model, params = varied("llama"), SamplingParams(max_new_tokens=6, ignore_eos=True)
    prefixes, prompt, found = PrefixCache(model), ids(30, 1), {}
    for kept in ("auto", "int8", "auto", "int8"):
        set_kv_cache_dtype(model, kept)
        [result] = generate(model, tiny_tokenizer, [prompt], params, prefix_cache=prefixes)
        assert result.stats.runtime.kv_cache_dtype == kept
        assert found.setdefault(kept, result.logprobs) == pytest.approx(result.logprobs, abs=1e-5)
    assert found["auto"] != pytest.approx(found["int8"], abs=1e-5)


def test_a_canvas_of_diffusion_is_kept_so_too(fresh_tiny, tiny_tokenizer, monkeypatch, natively):
    model = in_8(fresh_tiny("llama", seed=2))
    declare(model.config, Diffusion(127, 1, "bidirectional"))
    params = [SamplingParams(max_new_tokens=8, steps=4, ignore_eos=True), SamplingParams(max_new_tokens=12, steps=9, block_length=4, cache_refresh=3, dual_cache=True, ignore_eos=True)]
    ours = generate(model, tiny_tokenizer, [[5, 6, 7], ids(20)], params)
    rows = sum(natively)
    assert rows and ours[0].stats.runtime.kv_cache_dtype == "int8"
    monkeypatch.setattr(calls, "open_runner", lambda model: DirectRunner(model, "int8"))
    assert [each.ids for each in ours] == [each.ids for each in generate(model, tiny_tokenizer, [[5, 6, 7], ids(20)], params)] and sum(natively) == rows


# ---- who may have it ----


def test_what_cannot_keep_it_so_is_refused_by_what_keeps_it_from_that(varied, tiny, tiny_tokenizer, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="kv_cache_dtype='int4' is unknown: choose auto or int8"):
        set_kv_cache_dtype(varied(), "int4")
    with pytest.raises(UserError, match="kv_cache_dtype='fp8' is unknown"):
        load(tmp_path / "nowhere", kv_cache_dtype="fp8")
    refused = {"granite is none of its families": tiny("granite"), "t5 is none of its families": tiny("t5"), "torch.float16 on cpu": varied().half()}
    hooked = varied()
    hooked.model.layers[0].mlp.register_forward_hook(lambda *_: None)
    refused["something was put in, on or around its layers"] = hooked
    for reason, model in refused.items():
        in_8(model)
        try:
            with pytest.raises(UserError, match=rf"kv_cache_dtype=int8 needs the native step, .*{reason}.*: leave it out"):
                generate(model, tiny_tokenizer, [[5, 6]])
        finally:
            set_kv_cache_dtype(model, None)
    model = in_8(varied())
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    for call in (lambda: generate(model, tiny_tokenizer, [[5, 6]]), lambda: LiveEngine(model, tiny_tokenizer), lambda: score(model, tiny_tokenizer, [[5]], [[6]])):
        with pytest.raises(UserError, match="kv_cache_dtype=int8 needs the native step.*SEODANG_NATIVE=0"):
            call()
    set_kv_cache_dtype(model, "auto")
    assert runtime_of(open_runner(model)).runner == "direct"


def test_numbers_that_are_not_torchs_refuse_it(varied, monkeypatch):
    model = in_8(varied())
    monkeypatch.setattr(cache, "widened", lambda packed: 1.5 * widened(packed))  # torch's half of the check
    with pytest.raises(UserError, match="what the compiler made does not compute what torch does"):
        open_runner(model)


def test_loading_sets_it_and_refuses_it_off_the_cpu_and_for_an_encoder(varied, tiny_tokenizer, tmp_path, encoder_folder, monkeypatch, write_adapter):
    varied(vocab_size=tiny_tokenizer.vocab_size).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    for kept, told in (("int8", "int8"), ("auto", "auto"), (None, "auto")):
        model, _ = load(tmp_path, kv_cache_dtype=kept)
        assert runtime_of(open_runner(model)).kv_cache_dtype == told
    assert "int8 KV cache" in str(runtime_of(open_runner(load(tmp_path, kv_cache_dtype="int8", weights="int8")[0])))
    adapter = write_adapter(model, tmp_path / "adapter", 0)
    adapted, beside = (open_runner(load(tmp_path, dtype="float32", adapter=adapter, kv_cache_dtype=kept)[0]) for kept in ("int8", None))
    ours, theirs, without = (runner.forward([runner.allocate()], [[5, 6, 7]], [3]) for runner in (adapted, beside, open_runner(model)))
    assert runtime_of(adapted).kv_cache_dtype == "int8" and (ours - theirs).abs().max() < 0.1 * (without - theirs).abs().max()  # it is merged
    with pytest.raises(UserError, match="kv_cache_dtype=int8 is there on the CPU, got device=meta"):
        monkeypatch.setattr("seodang.infer.checkpoint.load.choose_device", lambda device: torch.device("meta"))
        load(tmp_path, kv_cache_dtype="int8")
    monkeypatch.undo()
    with pytest.raises(UserError, match="kv_cache_dtype=int8 is for models that speak, and bert is an encoder"):
        load(encoder_folder, kv_cache_dtype="int8", model_class=AutoModel)
