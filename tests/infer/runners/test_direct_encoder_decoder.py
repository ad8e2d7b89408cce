"""The direct runner of encoder-decoders: every family computes what its model computes, in one pass, and sources are read and kept once."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.kernels.low_rank import Adapter, LowRank
from seodang.infer.runners import direct_encoder_decoder
from seodang.infer.runners import open as opening
from seodang.infer.runners.cache import source_capacity
from seodang.infer.runners.direct_encoder_decoder import DirectEncoderDecoder
from seodang.infer.runners.encoder_decoder import EncoderDecoderRunner
from seodang.infer.runners.encoder_decoder_layers import RelativeBias, padding_left_out
from seodang.infer.runners.open import open_runner

T5 = {
    "vocab_size": 128, "d_model": 32, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
}  # fmt: skip
BART = {
    "vocab_size": 128, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 48, "max_position_embeddings": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "decoder_start_token_id": 2, "forced_eos_token_id": None, "scale_embedding": True,
}  # fmt: skip
MODELS = {
    "t5": ("t5", T5),
    "t5 gated, its head apart": ("t5", {**T5, "num_decoder_layers": 3, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", T5),
    "umt5": ("umt5", T5),
    **{kind: (kind, BART) for kind in ("bart", "plbart", "mbart", "pegasus", "m2m_100", "blenderbot")},
    "marian, two vocabularies": ("marian", {**BART, "share_encoder_decoder_embeddings": False, "decoder_vocab_size": 112, "tie_word_embeddings": False}),
    "bart, norms of its own": ("bart", {**BART, "activation_function": "relu", "scale_embedding": False}),
}


@pytest.fixture(scope="module")
def model():
    """`model(name)`: a random model in float64 whose biases and norms say something too."""
    built = {}

    def get(name: str):
        if name not in built:
            kind, settings = MODELS[name]
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(kind, **settings)).double().eval()
                for parameter in made.parameters():
                    torch.nn.init.normal_(parameter, mean=0.5 if parameter.dim() == 1 else 0.0, std=0.3)
                if hasattr(made, "final_logits_bias"):
                    made.final_logits_bias.normal_()
            built[name] = made
        return built[name]

    return get


def ids(n: int, seed: int, least: int = 3) -> list[int]:
    return torch.randint(least, 112, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def whole(model, source: list[int], answer: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([answer]), use_cache=False).logits[0]


SOURCES = [ids(n, n) for n in (40, 3, 17, 17, 1, 33)]
ANSWERS = [ids(20, 50 + n) for n in range(6)]
# where the passes of each answer end: prompts of several ids, steps beside them, slots that wait
CUTS = [[1, 9, 10, 11, 20], [5, 6, 7, 20], [1, 2, 3, 4, 20], [1, 2, 3, 4, 20], [19, 20], [2, 4, 6, 7, 8]]


def passed(runner, which: list[int]) -> list[torch.Tensor]:
    """The logits of these answers, taken through one runner together by their cuts, as far as these go."""
    slots, got = {i: runner.allocate(SOURCES[i]) for i in which}, {i: [] for i in which}
    for step in range(max(len(CUTS[i]) for i in which)):
        now = [i for i in which if step < len(CUTS[i])]
        new = [ANSWERS[i][runner.length(slots[i]) : CUTS[i][step]] for i in now]
        logits = runner.forward([slots[i] for i in now], new, [len(own) for own in new])
        for i, part in zip(now, logits.split([len(own) for own in new])):
            got[i].append(part)
    runner.release(list(slots.values()))
    return [torch.cat(got[i]) for i in which]


@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_its_models_own_logits_in_one_pass(model, name):
    runner = open_runner(model(name))
    assert type(runner) is DirectEncoderDecoder
    everyone = list(range(6))
    together = passed(runner, everyone)
    assert runner.passes == 5
    for i, got in zip(everyone, together):
        torch.testing.assert_close(got, whole(model(name), SOURCES[i], ANSWERS[i])[: len(got)], rtol=0, atol=1e-11)
    for i in (0, 1, 5):  # who is beside it changes nothing
        torch.testing.assert_close(passed(runner, [i])[0], together[i], rtol=0, atol=1e-12)
    assert runner.live == runner.memory == 0


@pytest.mark.parametrize("both_ways", [True, False])
def test_the_bias_by_distance_is_the_models_own_as_far_as_texts_go(model, both_ways):
    stack = model("t5").encoder if both_ways else model("t5").decoder
    attention = stack.block[0].layer[0].SelfAttention
    bias = RelativeBias(attention)
    with torch.no_grad():
        for past, n in ((0, 5), (90, 3), (0, 300), (299, 1)):  # the table grows on the way
            got, want = bias.at(torch.arange(past, past + n), past + n), attention.compute_bias(n, past + n, past_seen_tokens=past)[0]
            assert torch.equal(got, want)
    near = bias.at(torch.tensor([9]), 10)[0, 0]
    assert len({round(value, 9) for value in near.tolist()}) == (4 if both_ways else 7)  # of 8 buckets for keys 0 to 9 before it, the wide ones shared


def test_beams_and_forks_share_what_was_read_of_their_source(model):
    runner = open_runner(model("bart"))
    slot = runner.allocate(SOURCES[0])
    runner.forward([slot], [[2]], [1])
    read, past, seen = runner.read.memory, runner.cache.memory, runner.positions
    assert read > 0
    beams = [slot, *runner.fork([slot] * 3)]
    runner.forward(beams, [[5], [6], [7], [8]], [1] * 4)
    assert runner.read.memory == read and runner.memory == read + 4 * past and runner.positions == seen + 4
    runner.copy(beams[1], beams[2])
    runner.release(beams[:3])
    assert runner.read.memory == read
    other = runner.allocate(SOURCES[1])
    runner.forward([other], [[2]], [1])
    runner.copy(other, beams[3])  # which was the last to answer to the first source
    assert len(runner.read) == 1
    runner.refresh()
    assert runner.memory == 0


def test_sources_of_like_length_lie_together_at_little_waste(model):
    found = {n: source_capacity(n) for n in (1, 16, 17, 24, 25, 33, 48, 49, 65, 97, 300)}
    assert found == {1: 16, 16: 16, 17: 24, 24: 24, 25: 32, 33: 48, 48: 48, 49: 64, 65: 96, 97: 128, 300: 384}
    runner = open_runner(model("t5"))
    slots = [runner.allocate(ids(n, n)) for n in (17, 60, 24, 55, 20)]
    runner.forward(slots, [[0]] * 5, [1] * 5)
    lengths = {capacity: sorted(runner.read.lengths[slot] for slot in pool.slots) for capacity, pool in runner.read.pools.items()}
    assert lengths == {24: [17, 20, 24], 64: [55, 60]}


@pytest.mark.parametrize("positions, source", [(1, 1), (3, 40), (130, 7)])
def test_a_slot_takes_no_more_than_was_promised(model, positions, source):
    runner = open_runner(model("t5"))
    slot = runner.allocate(ids(source, 1))
    runner.forward([slot], [ids(positions, 2)], [1])
    assert 0 < runner.memory <= runner.bytes_for(positions, source)


def test_trained_weights_speak_in_the_next_pass_and_moved_ones_are_found(model):
    trained = copy.deepcopy(model("mbart"))
    runner = open_runner(trained)
    before = passed(runner, [0])[0]
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    runner.refresh()
    got = passed(runner, [0])[0]
    torch.testing.assert_close(got, whole(trained, SOURCES[0], ANSWERS[0]), rtol=0, atol=1e-11)
    assert not torch.allclose(got, before, atol=1e-2)
    trained.float()
    got = passed(open_runner(trained), [0])[0]
    torch.testing.assert_close(got, whole(trained, SOURCES[0], ANSWERS[0]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["t5", "m2m_100"])
def test_in_bfloat16_and_under_autocast(model, name):
    narrow = copy.deepcopy(model(name)).bfloat16()
    got, want = passed(open_runner(narrow), [0])[0].float(), whole(narrow, SOURCES[0], ANSWERS[0]).float()
    exact = whole(model(name), SOURCES[0], ANSWERS[0]).float()
    assert (got - exact).norm() < 1.5 * (want - exact).norm() < 0.2 * exact.norm()  # as far from the truth as transformers' own
    plain = copy.deepcopy(model(name)).float()
    alone = passed(open_runner(plain), [0])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(passed(open_runner(plain), [0])[0], alone)


def test_places_of_m2m_pass_over_padding_within_a_text(model):
    places = padding_left_out(1)
    assert places([5, 6, 7], 0) == [2, 3, 4]
    assert places([5, 1, 7, 1], 3) == [5, 1, 6, 1]
    runner = open_runner(model("m2m_100"))
    source, answer = [5, 1, 7, 8], [2, 1, 9]
    got = runner.forward([runner.allocate(source)], [answer], [3])
    torch.testing.assert_close(got, whole(model("m2m_100"), source, answer), rtol=0, atol=1e-11)


def adapter_over(layers: list[torch.nn.Linear], seed: int) -> Adapter:
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 0.3
    return Adapter(f"adapter {seed}", {layer: LowRank(make(2, layer.in_features), make(2, layer.out_features)) for layer in layers})


def with_adapter(model, adapter: Adapter):
    """The model that an adapter makes of it."""
    names = {module: name for name, module in model.named_modules()}
    merged = copy.deepcopy(model)
    for layer, added in adapter.layers.items():
        merged.get_submodule(names[layer]).weight.data += added.up.T @ added.down
    return merged


def test_slots_of_a_pass_run_with_different_adapters_and_read_their_sources_with_them(model):
    bart = model("bart")
    layers = [m for name, m in bart.named_modules() if name.endswith(("q_proj", "v_proj", "fc2"))]  # of encoder and decoder
    one, two = adapter_over(layers, 1), adapter_over(layers[::2], 2)
    runner, source = open_runner(bart), SOURCES[2]
    assert runner.capabilities.adapters
    slots = [runner.allocate(source) for _ in range(3)]
    runner.adapt(slots[0], one)
    runner.adapt(slots[2], two)
    slots += runner.fork(slots[:1])
    merged = [with_adapter(bart, one), bart, with_adapter(bart, two), with_adapter(bart, one)]
    got = runner.forward(slots, [ANSWERS[0][:4]] * 4, [1] * 4)
    want = [whole(each, source, ANSWERS[0][:4])[-1] for each in merged]
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-11)
    assert len(runner.read) == 3 and (want[0] - want[1]).abs().max() > 0.01
    runner.truncate(slots[3], 0)
    runner.adapt(slots[3], two)  # it reads its source anew, the others' stays as it is
    got = runner.forward([slots[0], slots[3]], [[7], [2]], [1, 1])
    want = [whole(merged[0], source, [*ANSWERS[0][:4], 7])[-1], whole(merged[2], source, [2])[-1]]
    torch.testing.assert_close(got, torch.stack(want), rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["t5", "mbart"])
def test_four_beams_find_what_transformers_finds(model, name, tiny_tokenizer):
    sources = SOURCES[:3]
    own = model(name).generate
    found = generate(model(name), tiny_tokenizer, sources, SamplingParams(max_new_tokens=10, num_beams=4, ignore_eos=True))
    for source, result in zip(sources, found):
        want = own(torch.tensor([source]), num_beams=4, max_new_tokens=10, do_sample=False, eos_token_id=None, forced_bos_token_id=None)[0].tolist()
        assert result.ids == want[1:]


def test_what_is_not_plain_goes_through_the_model_as_it_is(fresh_tiny):
    adapted = get_peft_model(fresh_tiny("t5"), LoraConfig(r=2, target_modules=["q", "v"]))
    assert type(open_runner(adapted)) is EncoderDecoderRunner
    hooked = fresh_tiny("bart")
    runner = open_runner(hooked)
    assert type(runner) is DirectEncoderDecoder
    handle = hooked.model.decoder.layers[0].register_forward_hook(lambda module, inputs, output: output)
    assert type(open_runner(hooked)) is EncoderDecoderRunner
    with pytest.raises(UserError, match="open a runner anew"):
        runner.refresh()
    handle.remove()
    assert type(open_runner(hooked)) is DirectEncoderDecoder
    assert type(open_runner(fresh_tiny("t5").half())) is EncoderDecoderRunner  # which transformers clamps


def test_under_libraries_that_are_not_known_a_probe_tells(fresh_tiny, monkeypatch):
    monkeypatch.setattr(opening, "untried", lambda: "transformers 99 is not known")
    assert type(open_runner(fresh_tiny("t5"))) is DirectEncoderDecoder
    own = direct_encoder_decoder.bind_encoder_decoder

    def bind_otherwise(model, kernel):
        bound = own(model, kernel)
        bound.decoder.blocks = bound.decoder.blocks[:1] + bound.decoder.blocks[:1]
        return bound

    monkeypatch.setattr(direct_encoder_decoder, "bind_encoder_decoder", bind_otherwise)
    with pytest.warns(UserWarning, match="not the model's own"):
        assert type(open_runner(fresh_tiny("t5"))) is EncoderDecoderRunner
