"""A GGUF file as the model: its weights in their own blocks give what transformers' reader and llama.cpp make of them, and bad files are refused."""

import logging
import re
import struct

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGUFWriter, quants
from gguf import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoTokenizer

from seodang.data.errors import UserError
from seodang.infer import generate, load, open_runner
from seodang.infer.checkpoint import gguf_file
from seodang.infer.checkpoint.gguf import writing
from seodang.infer.checkpoint.gguf.checking import read_model
from seodang.infer.checkpoint.load import load_tokenizer
from seodang.infer.engine.params import SamplingParams
from seodang.infer.gguf import loading
from seodang.infer.gguf.configuration import config_of
from seodang.infer.gguf.reading import GgufFile
from seodang.infer.gguf.tokenizing import tokenizer_of
from seodang.infer.kernels.quantised_linear import Quantised
from seodang.infer.requests.runtime import runtime_of
from seodang.infer.runners.native.block_linear import SuperLinear6
from seodang.infer.runners.native_runner import MANY, NativeRunner
from seodang.train.stages.sft import SFT

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96}
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 512}
K_HALVES = {Kind.Q4_K: ([0, 2], [4e-4, 3e-3]), Kind.Q5_K: ([0, 2], [2e-4, 3e-3]), Kind.Q6_K: ([208], [4e-5]), Kind.Q3_K: ([108], [1e-3])}


def encoded(name, tensor, kind):
    """A tensor in blocks: as gguf rounds it, or of kinds that it cannot write, made up, of about the size of a trained model's."""
    if kind not in K_HALVES:
        return quants.quantize(tensor.numpy(), kind)
    random, (block, size) = np.random.default_rng(sum(name.encode())), GGML_QUANT_SIZES[kind]
    raw = random.integers(0, 256, (len(tensor), tensor.shape[1] // block, size), dtype=np.uint8)
    for at, number in zip(*K_HALVES[kind]):
        raw[..., at : at + 2] = np.full((*raw.shape[:2], 1), number, np.float16).view(np.uint8)
    return raw.reshape(len(tensor), -1)


@pytest.fixture
def held(write, monkeypatch):
    """`held(model, kinds)`: a GGUF file of a model whose matrices are of these kinds by what their names contain, the first that fits; of others "" says it."""

    def run(model, kinds, tokenizer=None):
        kind_of = lambda name: next(kind for part, kind in kinds.items() if part in name)
        monkeypatch.setattr(writing, "_stored", lambda name, tensor, kind: Kind.F32 if tensor.dim() < 2 or name in writing.PRECISE else kind_of(name))
        monkeypatch.setattr(writing, "_rounded", encoded)
        return write(model, tokenizer)

    return run


def said_by(model, ids, read):
    """A runner's logits of ids, the first `read` at once, then one by one."""
    runner = open_runner(model)
    slot = runner.allocate()
    return runner, torch.cat([runner.forward([slot], [ids[:read]], [read]), *(runner.forward([slot], [[id]], [1]) for id in ids[read:])])


FILES = {
    "llama, Q4_0": ("llama", SIZES, {"": Kind.Q4_0}),
    "llama, Q4_1, tied, in Q8_0": ("llama", {**SIZES, "tie_word_embeddings": True}, {"token_embd": Kind.Q8_0, "": Kind.Q4_1}),
    "llama, Q5_0 and Q5_1": ("llama", SIZES, {"attn_v": Kind.Q5_1, "ffn_up": Kind.Q5_1, "": Kind.Q5_0}),
    "mistral, Q8_0": ("mistral", SIZES, {"": Kind.Q8_0}),
    "qwen2, Q8_0": ("qwen2", {**SIZES, "vocab_size": 131}, {"": Kind.Q8_0}),
    "qwen3, Q4_1": ("qwen3", SIZES, {"": Kind.Q4_1}),
    "gemma2, Q8_0": ("gemma2", {**SIZES, "query_pre_attn_scalar": 16}, {"": Kind.Q8_0}),
    "llama, Q4_K_M": ("llama", {**WIDE, "tie_word_embeddings": True}, {"attn_v": Kind.Q6_K, "1.ffn_down": Kind.Q6_K, "token_embd": Kind.Q6_K, "": Kind.Q4_K}),
    "qwen2, Q5_K with biases": ("qwen2", WIDE, {"attn_k": Kind.Q6_K, "output.weight": Kind.Q6_K, "token_embd": Kind.F16, "": Kind.Q5_K}),
    "llama, a head in bfloat16": ("llama", SIZES, {"token_embd": Kind.BF16, "output.weight": Kind.BF16, "": Kind.Q4_0}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("read", [12, 2 * MANY], ids=["guesses", "a prompt"])
def test_a_model_in_its_files_blocks_gives_what_transformers_reads_of_it(name, varied, held, natively, read):
    kind, config, kinds = FILES[name]
    model = varied(kind, **config)
    path = held(model, kinds)
    loaded, _ = load(path)
    ids = torch.randint(3, 128, (2 * MANY + 8,), generator=torch.Generator().manual_seed(0)).tolist()
    own = read_model(GgufFile(path), model.config)
    with torch.no_grad():
        wanted = own(torch.tensor([ids])).logits[0].double()
        rounded = own.bfloat16()(torch.tensor([ids])).logits[0].double()
    runner, got = said_by(loaded, ids, read)
    assert type(runner) is NativeRunner and sum(natively) > len(ids)  # its first layer was tried beside
    error, allowed = (got.double() - wanted).square().mean().sqrt(), (rounded - wanted).square().mean().sqrt()
    assert error < 3 * allowed
    assert runtime_of(runner).weights in {"Q4_0": "int4", "Q4_1": "int4", "Q5_0": "int5", "Q8_0": "int8", "Q4_K": "q4_k", "Q5_K": "q5_k"}[kinds[""].name]


@pytest.mark.parametrize("name", ["llama, Q4_K_M", "gemma2, Q8_0", "qwen2, Q8_0"])
def test_a_dtype_that_is_asked_for_writes_the_weights_out(name, varied, held):
    kind, config, kinds = FILES[name]
    model = varied(kind, **config)
    path = held(model, kinds)
    ids = torch.randint(3, 128, (1, 20), generator=torch.Generator().manual_seed(0))
    plain, own = load(path, dtype="float32")[0], read_model(GgufFile(path), model.config)
    assert not [module for module in plain.modules() if isinstance(module, Quantised)] and next(plain.parameters()).requires_grad
    state, wanted = plain.state_dict(), own.state_dict()
    assert state.keys() == wanted.keys() and all(torch.equal(state[each], wanted[each]) for each in state)
    assert load(path, dtype="bfloat16")[0].dtype == torch.bfloat16
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, own(ids).logits)


GEMMA = {"head_dim": 16, "hidden_size": 64, "intermediate_size": 96}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
FLOATS = {
    "llama3": ("llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}}),
    "yarn": ("qwen2", {"rope_parameters": YARN}),
    "wide heads": ("qwen3", {"head_dim": 16}),
    "gemma": ("gemma", GEMMA),
    "gemma2": ("gemma2", {}),
    "gpt2": ("gpt2", {}),
    "gpt2, untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 48}),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOATS)
def test_a_file_of_floats_is_the_model_that_was_written(name, varied, write):
    kind, config = FLOATS[name]
    model = varied(kind, **config)
    loaded, _ = load(write(model), dtype="float32")
    ids = torch.randint(3, 128, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)


def test_gpt2_in_blocks_reads_what_lies_across(varied, held):
    model = varied("gpt2", n_embd=64)
    path = held(model, {"": Kind.Q8_0})
    ids = torch.randint(3, 128, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        wanted = load(path, dtype="float32")[0](torch.tensor([ids])).logits[0]
    runner, got = said_by(load(path)[0], ids, 4)
    assert type(runner) is NativeRunner and (got - wanted).square().mean().sqrt() < 0.03 * wanted.std()


def test_phi3_in_blocks(varied, tmp_path):
    """Written by hand: it is none of those that are exported."""
    model = varied("phi3", **{**SIZES, "pad_token_id": 0}, sliding_window=None)
    model.config.rope_parameters["partial_rotary_factor"] = 1.0
    writer = GGUFWriter(tmp_path / "phi3.gguf", "phi3")
    config = model.config
    for key, value in {
        "context_length": 256, "embedding_length": 64, "block_count": 2, "feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 2,
        "rope.dimension_count": 16,
    }.items():  # fmt: skip
        writer.add_uint32(f"phi3.{key}", value)
    writer.add_float32("phi3.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("phi3.rope.freq_base", config.rope_parameters["rope_theta"])
    names = {f"model.layers.{i}.{ours}": f"blk.{i}.{theirs}" for i in range(2) for ours, theirs in loading.PHI3.layer.items()}
    names |= {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in model.state_dict().items():
        held = Kind.Q8_0 if tensor.dim() > 1 else Kind.F32
        module, _, part = name.rpartition(".")
        writer.add_tensor(f"{names[module]}.{part}", quants.quantize(tensor.numpy(), held), raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "phi3.gguf")
    loaded, ids = loading.model_of(file, None, torch.float32), [5, 6, 7, 8, 9, 10]
    with torch.no_grad():
        wanted = loading.model_of(file, torch.float32, torch.float32)(torch.tensor([ids])).logits[0]
        before = model(torch.tensor([ids])).logits[0]
    assert (wanted - before).square().mean().sqrt() < 0.05 * before.std()
    runner, got = said_by(loaded, ids, 3)
    assert type(runner) is NativeRunner and (got - wanted).square().mean().sqrt() < 0.03 * wanted.std()


@pytest.mark.parametrize("kinds", [{"attn_v": Kind.Q6_K, "token_embd": Kind.Q6_K, "": Kind.Q4_K}, {"output.weight": Kind.Q6_K, "": Kind.Q5_K}, {"": Kind.Q5_0}], ids=["Q4_K", "Q5_K", "Q5_0"])
def test_llama_cpp_says_the_same_of_a_file(kinds, varied, held, llama_cpp):
    """Which rounds inputs to 8 bits too, by 256 of them: the same weights, not the same roundings."""
    path = held(varied("llama", **WIDE), kinds)
    ids = torch.randint(3, 128, (9,), generator=torch.Generator().manual_seed(2)).tolist()
    theirs = llama_cpp.load(path).likely_after(ids, 128)
    _, got = said_by(load(path)[0], ids, 4)
    with torch.no_grad():
        exact = load(path, dtype="float32")[0](torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    ours = got[-1].float().log_softmax(-1)
    assert (ours - exact).square().mean().sqrt() < 0.1 * exact.std()
    assert (theirs - exact).square().mean().sqrt() < 0.1 * exact.std()


@pytest.mark.parametrize("kind", ["smollm", "llama-bpe", "first"])
def test_values_and_tokenizer_are_those_that_transformers_reads(kind, varied, held, trained):
    tokenizer = trained(kind)
    path = held(varied("llama", **SIZES, vocab_size=len(tokenizer)), {"": Kind.Q4_0}, tokenizer)
    where = {"gguf_file": path.name}
    theirs, ours = AutoConfig.from_pretrained(path.parent, **where).to_dict(), config_of(GgufFile(path)).to_dict()
    differing = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
    assert differing <= {"_name_or_path", "_model_name_or_path", "architectures", "unk_token_id"}
    read, own = AutoTokenizer.from_pretrained(path.parent, **where), load_tokenizer(path)
    for text in ("안녕, 수원!", "  two\n\n spaces", "<|im_start|>user\nhi<|im_end|>", "def f(x): return x ** 2"):
        assert own(text)["input_ids"] == read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert len(own) == len(tokenizer) == config_of(GgufFile(path)).vocab_size
    assert own.special_tokens_map == read.special_tokens_map and own.chat_template == read.chat_template == tokenizer.chat_template


def test_the_public_calls_take_a_file(varied, held):
    path = held(varied("llama", **SIZES), {"": Kind.Q8_0})
    model, tokenizer = load(str(path))
    plain, _ = load(path, dtype="float32")
    params = SamplingParams(max_new_tokens=1)  # of more, near ties fall by the CPU's rounding
    [in_blocks], [written_out] = (generate(each, tokenizer, ["abc"], params) for each in (model, plain))
    assert in_blocks.ids == written_out.ids
    with pytest.raises(UserError, match="a quantised model cannot be saved"):
        model.save_pretrained(path.parent / "saved")
    renamed = path.rename(path.with_name("sha256-0123"))  # as Ollama keeps them
    assert load(renamed)[0].config.hidden_size == 64


def test_a_kind_without_a_kernel_is_written_out_and_said_once(varied, held, caplog):
    path = held(varied("llama", **WIDE), {"attn_q": Kind.Q3_K, "ffn_down": Kind.Q3_K, "": Kind.Q4_K})
    with caplog.at_level(logging.WARNING):
        model, _ = load(path)
    [told] = [record.message for record in caplog.records if "Q3_K" in record.message]
    assert told == f"{path}: no kernel multiplies Q3_K (4 matrices), which are written out in bfloat16"
    attention, feed = model.model.layers[0].self_attn, model.model.layers[0].mlp
    assert {type(each) for each in (attention.q_proj, attention.k_proj, attention.v_proj, feed.down_proj)} == {torch.nn.Linear}  # those that read one input go together
    assert all(isinstance(each, Quantised) for each in (attention.o_proj, feed.gate_proj, feed.up_proj, model.lm_head))
    ids = torch.randint(3, 128, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        wanted = load(path, dtype="float32")[0](torch.tensor([ids])).logits[0]
    runner, got = said_by(model, ids, 6)
    assert type(runner) is NativeRunner and (got - wanted).square().mean().sqrt() < 0.03 * wanted.std()


@pytest.mark.parametrize("reason", ["no kernels", "a kind without one"])
def test_without_kernels_all_is_written_out_and_said(varied, held, monkeypatch, caplog, reason):
    monkeypatch.setenv("SEODANG_NATIVE", "0" if reason == "no kernels" else "1")
    path = held(varied("llama", **WIDE), {"": Kind.Q4_K if reason == "no kernels" else Kind.Q3_K})
    with caplog.at_level(logging.WARNING):
        model, _ = load(path)
    assert not any(isinstance(module, Quantised) for module in model.modules())
    why = r"there are no native kernels \(SEODANG_NATIVE=0\)" if reason == "no kernels" else "no kernel multiplies Q3_K"
    assert re.search(rf"is written out in (float32|bfloat16), for {why}", caplog.text)


def test_wrong_kernels_leave_all_written_out(varied, held, monkeypatch, caplog):
    path = held(varied("llama", **WIDE), {"": Kind.Q6_K})
    right = SuperLinear6.product
    monkeypatch.setattr(SuperLinear6, "product", lambda self, x: right(self, x) * 1.05)
    with caplog.at_level(logging.WARNING):
        model, _ = load(path)
    assert not any(isinstance(module, Quantised) for module in model.modules())
    assert re.search(r"is written out in (float32|bfloat16), for a kernel is wrong here .SuperLinear6 multiplies wrongly on this CPU", caplog.text)


def test_damaged_blocks_are_told_by_tensor_and_file(varied, held):
    path = held(varied("llama", **SIZES), {"": Kind.Q4_0})
    file = GgufFile(path)
    content = bytearray(path.read_bytes())
    at = file._held["blk.1.attn_v.weight"].begin
    content[at : at + 2] = np.float16(np.inf).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match="tiny-f32.gguf, tensor blk.1.attn_v.weight: a block's scale is no number: the file is damaged"):
        load(path)


def test_bits_of_ones_own_are_for_files_of_floats(varied, held):
    path = held(varied("llama", **SIZES), {"token_embd": Kind.Q8_0, "": Kind.Q4_0})
    with pytest.raises(UserError, match=f"{path} has its weights in Q4_0 and Q8_0 already: leave weights out"):
        load(path, weights="int8")
    path = held(varied("llama", **SIZES), {"": Kind.F16})
    assert isinstance(load(path, weights="int4")[0].model.layers[0].mlp.down_proj, Quantised)
    assert not isinstance(load(path)[0].model.layers[0].mlp.down_proj, Quantised)
    with pytest.raises(UserError, match="holds a language model and no other"):
        load(path, num_labels=1)


def test_an_adapter_is_put_on_floats(varied, held, write_adapter, tmp_path):
    path = held(varied("llama", **SIZES), {"": Kind.Q8_0})
    plain, _ = load(path, dtype="float32")
    folder = write_adapter(plain, tmp_path / "adapter", 0)
    adapted, _ = load(path, dtype="float32", adapter=folder)
    assert not any(isinstance(module, Quantised) for module in load(path, adapter=folder)[0].modules())
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert not torch.allclose(adapted(ids).logits, plain(ids).logits)


def test_training_refuses_blocks(varied, held):
    path = held(varied("llama", **SIZES), {"": Kind.Q8_0})
    with pytest.raises(UserError, match="weights in few bits cannot be trained: load the model with a dtype"):
        SFT.refuse_model(load(path)[0])
    SFT.refuse_model(load(path, dtype="float32")[0])


def test_bad_files_are_told_by_name(varied, held, tmp_path, monkeypatch):
    whole = held(varied("llama", **SIZES), {"": Kind.Q4_0})
    content = whole.read_bytes()
    bad = tmp_path / "bad.gguf"

    def told(content: bytes, message: str) -> None:
        bad.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load(bad)

    told(b"", "is no GGUF file .it is empty.")
    told(b"<!doctype html>" + content, "is no GGUF file .it is a web page.")
    told(content[:-1], "bad.gguf is cut short, it has [0-9,]+ bytes of [0-9,]+: fetch or write it again")
    for length in (30, 200, 900, len(content) // 40):
        told(content[:length], "is damaged or cut short, its header cannot be read|is cut short")
    told(content[:4] + struct.pack(">I", 3) + content[8:], "bad.gguf is big-endian: write it again without --bigendian")
    told(content[:4] + struct.pack("<I", 1) + content[8:], "is of version 1, only 2 and 3 are read")
    told(content[:8] + struct.pack("<Q", 1 << 60) + content[16:], "its header cannot be read")
    told(content.replace(b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama", b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0mamba"), "a model of the architecture 'mamba', of which no GGUF file is read: gemma, ")
    name = b"blk.1.ffn_up.weight"
    at = content.index(name) + len(name) + 4  # behind how many dimensions there are
    told(content[:at] + struct.pack("<Q", 65) + content[at + 8 :], r"blk.1.ffn_up.weight of the shape .96, 65. is no whole number of Q4_0's blocks")
    told(content[:at] + struct.pack("<Q", 32) + content[at + 8 :], r"the tensor blk.1.ffn_up.weight has the shape .96, 32., but .96, 64. by the file's own values")
    told(content.replace(b"llama.block_count", b"llama.clock_count"), "says no llama.block_count")
    told(content.replace(b"blk.1.ffn_up.weight", b"blk.7.ffn_up.weight"), "lacks the tensor blk.1.ffn_up.weight")
    told(content.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"), "holds no tokenizer")
    (tmp_path / "folder").mkdir()
    whole.rename(tmp_path / "folder" / "model.gguf")
    with pytest.raises(UserError, match="there is no file .*/absent.gguf: name a GGUF file"):
        load(tmp_path / "absent.gguf")
    with pytest.raises(UserError, match=r"holds no model .*: name a file in it, as .*model.gguf"):
        load(tmp_path / "folder")
    monkeypatch.setattr(gguf_file, "can_read", lambda: False)
    with pytest.raises(UserError, match='needs the package gguf: run pip install "seodang.gguf."'):
        load(tmp_path / "folder" / "model.gguf")


def test_a_part_of_a_file_is_refused(tmp_path):
    writer = GGUFWriter(tmp_path / "model-00001-of-00003.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="is one of 3 parts of a model: join them first, `llama-gguf-split --merge"):
        load(tmp_path / "model-00001-of-00003.gguf")


def test_frequencies_that_are_not_llama3s_are_refused(varied, write):
    path = write(varied("llama", rope_parameters={**LLAMA3, "original_max_position_embeddings": 100, "rope_theta": 1000.0}))
    with pytest.raises(UserError, match="changes its frequencies .rope_freqs.weight. otherwise than Llama 3 does"):
        load(path)


def test_the_default_model_in_four_bits_is_the_shipped_file_as_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # nothing is converted
    model, tokenizer = load("default", weights="int4")
    assert tokenizer_of(gguf_file.opened(model.config.name_or_path)).get_vocab() == tokenizer.get_vocab()
    assert not (tmp_path / "seodang" / "SmolLM2-135M-Instruct").exists()
    file = gguf_file.opened(model.config.name_or_path)
    layer = model.model.layers[3]
    assert torch.equal(layer.mlp.down_proj.dequantised(), torch.from_numpy(file.tensor("blk.3.ffn_down.weight")))
    assert (layer.mlp.down_proj.kind, model.lm_head.kind) == ("int4", "int8")
    whole, heads = torch.from_numpy(file.tensor("blk.3.attn_k.weight")), 3  # rows that turn together lie apart in transformers, side by side in llama.cpp
    assert torch.equal(layer.self_attn.k_proj.dequantised(), whole.view(heads, 32, 2, 576).transpose(1, 2).reshape(192, 576))
