"""Rows with adapters beside rows without, in native passes: each as of the model that its adapter was merged into, and to the bit as by itself."""

import copy
import gc
import weakref

import pytest
import torch

from seodang.infer.checkpoint.quantise import quantise
from seodang.infer.kernels.low_rank import Adapter, LowRank, width_of
from seodang.infer.runners import native_runner
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.early_exit import open_first_layers
from seodang.infer.runners.native.block_linear import GroupedLinear5
from seodang.infer.runners.native_runner import MANY, NativeRunner
from seodang.infer.runners.ragged import RaggedRunner

ODD = {
    "hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "intermediate_size": 75, "vocab_size": 131, "attention_bias": True,
    "mlp_bias": True,
}  # fmt: skip
WIDE = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32, "intermediate_size": 136}
KINDS = {"odd": ("llama", ODD), "wide": ("llama", WIDE), "qwen3": ("qwen3", {}), "mistral": ("mistral", {"sliding_window": 6})}
BUILDS = [None, ("x86-64", "sse4_1"), ("haswell", "avx2")]
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# name: the rank, and which linear layers of which layers
ADAPTERS = {"all": (16, ALL, (0, 1)), "one": (1, ("v_proj", "down_proj"), (0, 1)), "six": (6, ALL, (0, 1)), "last": (21, ("k_proj", "o_proj", "up_proj"), (1,)), "wide": (40, ALL, (0,))}


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def new_adapter(model, name: str, seed: int = 0) -> Adapter:
    """A random adapter that changes what the model says, of that rank over those of its layers, in its dtype."""
    rank, names, layers = ADAPTERS[name]
    generator, found = torch.Generator().manual_seed(seed), {}
    random = lambda *shape: (torch.randn(shape, generator=generator) * 0.5 / rank**0.25).to(model.dtype)
    for layer in layers:
        for path, linear in model.model.layers[layer].named_modules():
            if path.endswith(names):
                found[linear] = LowRank(random(rank, linear.in_features), random(linear.out_features, rank).t())
    return Adapter(name, found)


def merged(model, adapter: Adapter | None, dtype: torch.dtype = torch.float64):
    """The model with an adapter in its weights, computed in float64."""
    whole, names = copy.deepcopy(model).double(), {module: name for name, module in model.named_modules()}
    for layer, (down, up) in adapter.layers.items() if adapter else ():
        whole.get_submodule(names[layer]).weight.data += up.double().t() @ down.double()
    return whole.to(dtype)


@torch.no_grad()
def logits_of(model, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return (got.double() - wanted.double()).square().mean().sqrt().item()


@pytest.fixture
def by_torch(monkeypatch):
    """A list that comes to hold how many tokens each pass by torch has."""
    tokens, run = [], DirectRunner._run
    monkeypatch.setattr(DirectRunner, "_run", lambda self, plan, new, *rest: tokens.append(len(new)) or run(self, plan, new, *rest))
    return tokens


def passed(runner, texts: list[list[int]], adapters: list[Adapter | None]) -> list[torch.Tensor]:
    """The logits at all positions of texts that are taken side by side through a runner, by guesses and steps, each with its adapter."""
    slots, at, found = [runner.allocate() for _ in texts], 0, [[] for _ in texts]
    for slot, adapter in zip(slots, adapters):
        runner.adapt(slot, adapter)
    for count in (3, 1, 1, 9, 1, 2, 1):
        out = runner.forward(slots, [text[at : at + count] for text in texts], [count] * len(slots))
        for own, part in zip(found, out.split(count)):
            own.append(part)
        at += count
    runner.release(slots)
    return [torch.cat(own) for own in found]


ORDER = ["all", "six", None, "one", "one", "wide", "last", None, "all"]
TEXTS = [ids(18, seed) for seed in range(len(ORDER))]


@pytest.mark.parametrize("weights", ["int8", "int4", "int5"])
def test_over_weights_in_few_bits_every_row_is_that_of_the_weights_they_stand_for(varied, dequantised, natively, by_torch, weights):
    model = varied("llama", hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96)
    if weights == "int5":  # each layer by itself, as those of a GGUF file are
        for name, linear in [each for each in model.named_modules() if isinstance(each[1], torch.nn.Linear)]:
            model.set_submodule(name, GroupedLinear5(linear.weight))
        model.bfloat16().requires_grad_(False)
    else:
        quantise(model, weights)
    names = {module: name for name, module in model.named_modules()}
    sizes = {module: width_of(module) for module, name in names.items() if name.endswith(ALL)}
    generator = torch.Generator().manual_seed(0)
    random = lambda *shape: (torch.randn(shape, generator=generator) / 4).bfloat16()
    adapters = [Adapter(str(rank), {module: LowRank(random(rank, n), random(m, rank).t()) for module, (n, m) in sizes.items()}) for rank in (3, 17)]
    own = [adapters[1], None, adapters[0], adapters[0], None, *[adapters[1]] * 9]  # more neighbours than are rounded at a time
    texts = [ids(18, seed) for seed in range(len(own))]
    ours = passed(NativeRunner(model), texts, own)
    assert natively == [len(own) * count for count in (3, 1, 1, 9, 1, 2, 1)] and not by_torch
    for text, adapter, logits in zip(texts, own, ours):
        twin = dequantised(model)
        for layer, (down, up) in adapter.layers.items() if adapter else ():
            twin.get_submodule(names[layer]).weight.data += (up.double().t() @ down.double()).float()
        wanted, rounded = logits_of(copy.deepcopy(twin).double(), text), logits_of(twin.bfloat16(), text)
        assert off(logits, wanted) < 3 * off(rounded, wanted)
    alone = passed(NativeRunner(model), texts[:1], own[:1])
    assert torch.equal(alone[0], ours[0])


@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
@pytest.mark.parametrize("name", KINDS)
def test_every_row_is_that_of_its_merged_model_to_rounding(varied, other_build, natively, by_torch, name, build):
    if build:
        other_build(*build)
    kind, changes = KINDS[name]
    for dtype in (torch.float32, torch.bfloat16):
        model = varied(kind, **changes).to(dtype)
        adapters = {each: new_adapter(model, each) for each in ADAPTERS} | {None: None}
        own = [adapters[each] for each in ORDER]
        natively.clear()
        ours = passed(NativeRunner(model), TEXTS, own)
        assert natively == [len(ORDER) * count for count in (3, 1, 1, 9, 1, 2, 1)] and not by_torch
        theirs = passed(DirectRunner(model), TEXTS, own)
        by_torch.clear()
        plain = logits_of(model, TEXTS[0])
        for text, adapter, logits, their in zip(TEXTS, own, ours, theirs):
            wanted = logits_of(merged(model, adapter), text)
            if dtype == torch.float32:
                assert off(logits, wanted) < 1.5 * off(their, wanted) + 1e-7 < 1e-5
            else:
                assert off(logits, wanted) < off(their, wanted) < 0.08
        changed = [off(logits_of(merged(model, adapter), TEXTS[0]), plain) for adapter in own if adapter]
        assert min(changed) > 0.2  # else nothing is shown


def with_pasts(model, adapters: list[Adapter | None]):
    """A runner, and a slot for each of these, whose text is its own."""
    runner = NativeRunner(model)
    slots = [runner.allocate() for _ in adapters]
    for slot, adapter in zip(slots, adapters):
        runner.adapt(slot, adapter)
    runner.forward(slots, [ids(1 + 5 * i % 13, i) for i in range(len(slots))], [0] * len(slots))
    return runner, slots


def step(runner, slots: list[int], new: list[list[int]]) -> list[torch.Tensor]:
    """The logits of each slot's new ids; afterwards the slots are as they were."""
    before = [runner.length(slot) for slot in slots]
    out = runner.forward(slots, new, list(map(len, new)))
    for slot, length in zip(slots, before):
        runner.truncate(slot, length)
    return list(out.split(list(map(len, new))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("build", BUILDS, ids=lambda build: build[0] if build else "native")
@pytest.mark.parametrize("changes", [ODD, WIDE], ids=["odd", "wide"])
def test_a_row_is_the_same_to_the_bit_alone_and_beside_any_adapters(varied, other_build, monkeypatch, by_torch, changes, build, dtype):
    if build:
        other_build(*build)
    model = varied("llama", **changes).to(dtype)
    kinds = [*(new_adapter(model, name) for name in ADAPTERS), None]
    own = [kinds[i // 2 % len(kinds)] for i in range(20)]  # neighbours share one
    runner, slots = with_pasts(model, own)
    new = [ids(1 + (i % 7 == 0) * 3, i) for i in range(20)]
    alone = [step(runner, [slot], [ids_]) for slot, ids_ in zip(slots, new)]
    bare, its_slots = with_pasts(model, [None] * 20)
    for i, adapter in enumerate(own):
        same = torch.equal(step(bare, [its_slots[i]], [new[i]])[0], alone[i][0])
        assert same == (adapter is None), i
    for count in (*range(1, 20, 3), 20):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=count: 1 + count % 4)
        order = torch.randperm(20, generator=torch.Generator().manual_seed(count))[:count].tolist()
        for chosen in (order, sorted(order)):
            found = step(runner, [slots[i] for i in chosen], [new[i] for i in chosen])
            assert all(torch.equal(each, alone[i][0]) for each, i in zip(found, chosen, strict=True)), count
    assert not by_torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_with_adapters_that_end_amid_a_share_of_rows_get_what_their_ids_get_one_by_one(varied, natively, monkeypatch, reading, dtype):
    reading(True)
    model = varied("llama", max_position_embeddings=512, **WIDE).to(dtype)
    kinds = [new_adapter(model, "all"), None, new_adapter(model, "one"), new_adapter(model, "last"), new_adapter(model, "all", 2)]
    told = []
    for at_once in (512, 1):
        monkeypatch.setattr(native_runner, "AT_ONCE", at_once)
        runner, slots = with_pasts(model, kinds)
        told.append(runner.forward(slots, [ids(n, n) for n in (150, 60, 1, 40, 110)], [150, 60, 1, 40, 110]))
    assert natively[1] == 361 and natively[-361:] == [1] * 361
    assert torch.equal(*told)


def changing(runner, adapters: dict[str, Adapter]):
    """Slots with adapters are forked, cut and copied, get others, and stand beside prompts, which torch may read; logits of all passes."""
    slots = [runner.allocate() for _ in range(4)]
    for slot, name in zip(slots, ("all", "one", "last")):
        runner.adapt(slot, adapters[name])
    yield runner.forward(slots, [ids(5, 1), ids(MANY, 2), ids(7, 3), ids(3, 4)], [5, 2, 1, 1])
    forks = runner.fork(slots[:2])
    yield runner.forward([*forks, *slots], [[5], ids(3, 5), [6], ids(30, 6), [7], [8]], [1, 3, 1, 4, 1, 1])
    yield runner.forward([*forks, *slots], [ids(20, 7), [9], ids(19, 8), [10], ids(4, 9), [11]], [2, 1, 1, 1, 4, 1])
    runner.truncate(slots[0], 4)
    runner.copy(forks[1], slots[1], 3, 9)
    runner.release([slots[3]])
    fresh = runner.allocate()  # takes over a lane, not its adapter
    runner.adapt(slots[2], adapters["wide"])
    runner.adapt(slots[1], None)
    yield runner.forward([*slots[:3], *forks, fresh], [[5], [6], ids(2, 7), [8], ids(6, 9), [10]], [1, 1, 2, 1, 6, 1])


@pytest.mark.parametrize("prompts", ["native", "torch's"])
@pytest.mark.parametrize("name", ["odd", "qwen3"])
def test_whatever_becomes_of_slots_they_run_with_their_adapters(varied, natively, by_torch, reading, name, prompts):
    reading(prompts == "native")
    kind, changes = KINDS[name]
    model = varied(kind, **changes)
    exact, adapters = copy.deepcopy(model).double(), {each: new_adapter(model, each) for each in ADAPTERS}
    places = {module: path for path, module in model.named_modules()}
    doubled = {
        each: Adapter(each, {exact.get_submodule(places[layer]): LowRank(down.double(), up.double()) for layer, (down, up) in adapter.layers.items()})
        for each, adapter in adapters.items()
    }
    for ours, wanted in zip(changing(NativeRunner(model), adapters), changing(RaggedRunner(exact), doubled), strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=0, atol=3e-5)
    assert (natively, by_torch) == (([15, 7, 7, 12], [MANY, 30, 39]) if prompts == "torch's" else ([15 + MANY, 7 + 30, 7 + 39, 12], []))


def test_what_an_adapter_changes_later_is_in_the_next_pass(varied, natively, reading):
    """Its numbers in place, matrices in the place of others; torch's way to read a prompt lays some anew, the numbers the same."""
    reading(False)
    model = varied()
    adapter, runner = new_adapter(model, "all"), NativeRunner(model)
    layer = model.model.layers[0]

    def check() -> None:
        [logits] = passed(runner, [TEXTS[0]], [adapter])
        torch.testing.assert_close(logits.double(), logits_of(merged(model, adapter), TEXTS[0]), rtol=0, atol=2e-5)

    check()
    adapter.layers[layer.mlp.down_proj].up.mul_(-2)
    check()
    adapter.layers[layer.mlp.down_proj] = LowRank(torch.randn(5, 64), torch.randn(32, 5).t())
    check()
    before = adapter.layers[layer.self_attn.q_proj]
    slot = runner.allocate()
    runner.adapt(slot, adapter)
    runner.forward([slot], [ids(MANY)], [1])
    joined = adapter.layers[layer.self_attn.q_proj].up
    assert joined is not before.up and joined.stride(1) == 3 * 16
    check()
    adapter.layers[layer.self_attn.q_proj].up.mul_(-1)
    check()
    del adapter.layers[layer.mlp.down_proj]
    check()
    assert len(natively) == 6 * 7


def test_an_adapter_goes_with_its_last_slot_and_another_of_its_name_is_another(varied, natively):
    model = varied()
    runner = NativeRunner(model)
    for seed in range(3):
        adapter = new_adapter(model, "all", seed)
        held, matrix = weakref.ref(adapter), weakref.ref(next(iter(adapter.layers.values())).down)
        [logits] = passed(runner, [TEXTS[0]], [adapter])
        torch.testing.assert_close(logits.double(), logits_of(merged(model, adapter), TEXTS[0]), rtol=0, atol=2e-5)
        del adapter
        gc.collect()
        assert held() is None and matrix() is None
    assert len(natively) == 3 * 7


def test_what_the_step_cannot_read_is_torchs(varied, natively, by_torch):
    model = varied()
    good, down = new_adapter(model, "one"), model.model.layers[0].mlp.down_proj
    turned = Adapter("turned", {down: LowRank(torch.randn(64, 3).t(), torch.randn(32, 3).t())})
    turned_up = Adapter("turned up", {down: LowRank(torch.randn(3, 64), torch.randn(3, 32))})
    other = Adapter("of the head", {model.lm_head: LowRank(torch.zeros(2, 32), torch.zeros(128, 2).t()), **good.layers})
    for adapter in (turned, turned_up, other):
        for own in ([adapter], [good, adapter]):
            natively.clear()
            ours = passed(NativeRunner(model), TEXTS[: len(own)], own)
            assert not natively
            for each, text, logits in zip(own, TEXTS, ours):
                each = good if each is other else each
                torch.testing.assert_close(logits.double(), logits_of(merged(model, each), text), rtol=0, atol=2e-5)
    by_torch.clear()
    runner = NativeRunner(model.bfloat16())
    slot = runner.allocate()
    runner.adapt(slot, good)  # which is float32
    with pytest.raises(RuntimeError, match="dtype"):  # as torch has it
        runner.forward([slot], [[5]], [1])
    runner.adapt(slot, None)
    runner.forward([slot], [[5]], [1])
    assert natively == [1] and by_torch == [1]


def test_the_first_layers_run_with_what_an_adapter_changes_of_them(varied, natively, by_torch):
    model = varied(num_hidden_layers=3)
    first = open_first_layers(NativeRunner(model), 1)
    adapters = [new_adapter(model, name) for name in ("all", "last")]
    ours = passed(first, TEXTS[:2], adapters)
    assert len(natively) == 7 and not by_torch
    for adapter, text, logits in zip(adapters, TEXTS, ours):
        cut = merged(model, adapter)
        cut.model.layers = cut.model.layers[:1]
        torch.testing.assert_close(logits.double(), logits_of(cut, text), rtol=0, atol=2e-5)
