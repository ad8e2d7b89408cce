"""All runners satisfy one contract: the same calls with the same arguments, and a refusal by name where one cannot honour a call."""

import inspect

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.data.errors import UserError
from seodang.infer.runners.contract import Runner
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.direct_encoder_decoder import DirectEncoderDecoder
from seodang.infer.runners.early_exit import FirstLayersDirect, FirstLayersNative, FirstLayersRagged, open_first_layers
from seodang.infer.runners.encoder_decoder import EncoderDecoderRunner
from seodang.infer.runners.native_runner import NativeRunner
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.padded import PaddedRunner
from seodang.infer.runners.ragged import RaggedRunner
from seodang.infer.runners.stateful import StatefulRunner

RUNNERS = [
    RaggedRunner, DirectRunner, NativeRunner, PaddedRunner, StatefulRunner, EncoderDecoderRunner, DirectEncoderDecoder,
    FirstLayersRagged, FirstLayersDirect, FirstLayersNative,
]  # fmt: skip
CALLS = [name for name, member in vars(Runner).items() if inspect.isfunction(member) and not name.startswith("_")]
VALUES = [*Runner.__annotations__, *(name for name, member in vars(Runner).items() if isinstance(member, property))]
SIZES = {"vocab_size": 128, "hidden_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OTHERS = {"bloom": {"n_layer": 2, "n_head": 4}, "mamba": {"num_hidden_layers": 2, "state_size": 4}, "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4}}


@pytest.fixture
def opened(tiny):
    """`opened(kind)`: the runner of a tiny model."""

    def open_one(kind: str):
        if kind not in OTHERS:
            return open_runner(tiny(kind))
        torch.manual_seed(0)
        return open_runner(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **OTHERS[kind]})).eval())

    return open_one


def test_the_contract_has_the_calls_of_a_cache_and_of_a_pass():
    of_a_slot = {"allocate", "length", "bytes_for", "fork", "copy", "mask", "adapt", "attend_both_ways", "rewrite", "truncate", "shelve", "release", "refresh"}
    assert {*of_a_slot, "forward", "observe", "head"} == set(CALLS)
    assert {"live", "memory", "vocab_size", "model", "config", "limit", "capabilities", "passes", "positions"} == set(VALUES)


@pytest.mark.parametrize("kind", RUNNERS, ids=lambda kind: kind.__name__)
def test_every_runner_has_every_call_with_the_arguments_of_the_contract(kind):
    for name in CALLS:
        wanted, own = (inspect.signature(getattr(each, name)).parameters for each in (Runner, kind))
        assert [(each.name, each.default) for each in own.values()] == [(each.name, each.default) for each in wanted.values()], name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "mamba", "t5"])
def test_a_runner_counts_its_slots_and_their_lengths(opened, kind):
    runner = opened(kind)
    assert all(hasattr(runner, name) for name in VALUES)
    slot = runner.allocate([5, 6]) if kind == "t5" else runner.allocate()
    assert (runner.live, runner.length(slot)) == (1, 0)
    logits = runner.forward([slot], [[5, 6, 7]], [2])
    assert logits.shape == (2, runner.vocab_size) and runner.length(slot) == 3
    [fork] = runner.fork([slot])
    runner.forward([fork], [[8]], [1])
    assert (runner.live, runner.length(slot), runner.length(fork)) == (2, 3, 4)
    runner.copy(fork, slot, 3)
    assert runner.length(slot) == 4
    if runner.capabilities.truncate:
        runner.truncate(slot, 1)
        assert runner.length(slot) == 1
    runner.refresh(keep=[fork])
    runner.release([fork])
    assert runner.live == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom", "t5", "openai-gpt"])
def test_a_first_part_of_a_past_goes_on_as_if_no_more_had_been_read(opened, kind):
    runner = opened(kind)
    new = lambda: runner.allocate([5, 6] if kind == "t5" else ())
    long, short, alone = new(), new(), new()
    runner.forward([long], [list(range(5, 45))], [1])
    runner.copy(long, short, 0, 30)
    assert (runner.length(short), runner.length(long)) == (30, 40)
    got = runner.forward([short, long], [[90, 91], [92]], [2, 1])
    want = runner.forward([alone], [[*range(5, 35), 90, 91]], [2])
    torch.testing.assert_close(got[:2], want, rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="42"):
        runner.copy(long, alone, 0, 42)
    assert runner.length(alone) == 32


def test_a_state_has_no_first_part(opened):
    runner = opened("mamba")
    slot, other = runner.allocate(), runner.allocate()
    runner.forward([slot], [[5, 6, 7]], [1])
    with pytest.raises(UserError, match="carries a state"):
        runner.copy(slot, other, 0, 2)
    runner.copy(slot, other, 0, 3)
    assert runner.length(other) == 3


def test_masked_positions_are_not_in_the_cache(opened):
    runner = opened("llama")
    slot = runner.allocate()
    runner.mask(slot, [0, 2])
    runner.forward([slot], [[6, 8, 9]], [1])  # of a prompt of five
    assert runner.length(slot) == 3


@pytest.mark.parametrize(
    "kind, ask, words",
    [
        ("bloom", lambda runner, slot: runner.mask(slot, [0]), "bloom cannot leave out a part of its prompt"),
        ("mamba", lambda runner, slot: runner.mask(slot, [0]), "mamba cannot leave out a part of its prompt"),
        ("mamba", lambda runner, slot: runner.observe([slot], [[5]], [1], [0]), "hidden states of mamba"),
        ("mamba", lambda runner, slot: runner.head(torch.zeros(1, 32)), "hidden states of mamba"),
        ("llama", lambda runner, slot: runner.allocate([5, 6]), "llama is a decoder, which reads no source"),
        ("llama", lambda runner, slot: runner.truncate(slot, 1), "cannot be cut to 1"),
    ],
)
def test_what_a_runner_cannot_honour_it_refuses_by_name(opened, kind, ask, words):
    runner = opened(kind)
    slot = runner.allocate()
    with pytest.raises(UserError, match=words):
        ask(runner, slot)


def test_the_runner_of_the_first_layers_is_one_too(tiny):
    runner = open_first_layers(open_runner(tiny("llama")), 1)
    slot = runner.allocate()
    runner.forward([slot], [[5, 6]], [1])
    assert all(hasattr(runner, name) for name in VALUES) and runner.length(slot) == 2
