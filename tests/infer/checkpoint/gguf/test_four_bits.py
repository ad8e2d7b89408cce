"""Q4_0: a block's bytes by hand, its scale beside an enumeration of scales, and what llama.cpp computes of the file."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants

from seodang.data.errors import UserError
from seodang.infer.checkpoint.gguf.checking import check_weights, read_model
from seodang.infer.checkpoint.gguf.four_bits import BLOCK, q4_0
from seodang.infer.checkpoint.gguf.weights import file_tensors
from seodang.infer.checkpoint.load import load, load_tokenizer
from seodang.infer.gguf.families import family_of
from seodang.infer.gguf.reading import GgufFile
from seodang.recipes import export


def test_a_blocks_bytes_by_hand():
    """A scale of 0.5 in float16, 0x3800; level i in the low half of byte i, level i + 16 in the high one."""
    levels = torch.arange(32).remainder(16) - 8
    levels[16:] = levels[16:].flip(0)
    made = q4_0(levels[None] * 0.5)
    assert made.dtype == np.uint8 and made.shape == (1, 18)
    assert made[0].tolist() == [0x00, 0x38, *(i | (15 - i) << 4 for i in range(16))]


def test_zeros_and_what_is_too_small_for_a_scale_stay_zeros():
    made = quants.dequantize(q4_0(torch.tensor([[0.0] * 32, [1e-9] * 32])), GGMLQuantizationType.Q4_0)
    assert not made.any()


def errors(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Squared errors with each scale, [blocks, scales] as float16 holds them: [blocks, scales]."""
    scales = scales.half().double()[..., None]
    levels = (blocks.double()[:, None] / scales).round().clamp(-8, 7)
    return (levels * scales - blocks.double()[:, None]).square().sum(-1)


def test_searched_scales_are_nearly_the_best_and_never_worse_than_the_plain_one():
    blocks = torch.randn(200, BLOCK, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 200)[:, None]
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    plain = errors(blocks, largest / -8)[:, 0]
    shares = torch.cat([torch.linspace(0.6, 1.3, 1500), -torch.linspace(0.6, 1.3, 1500)])
    best = errors(blocks, largest / -8 * shares).amin(1)
    found = torch.from_numpy(quants.dequantize(q4_0(blocks), GGMLQuantizationType.Q4_0)).double() - blocks
    found = found.square().sum(-1)
    assert (found <= plain * 1.0001).all() and (found >= best * 0.99).all()
    relative = blocks.square().sum(1)
    assert (found / relative).mean() < 0.92 * (plain / relative).mean()
    assert (found / best).mean() < 1.04


def test_matrices_are_in_4_bits_and_the_ends_of_the_model_in_8(fresh_tiny, write):
    model = fresh_tiny("llama", tie_word_embeddings=False, intermediate_size=48)
    path = write(model, kind="q4_0")
    file, other = GgufFile(path), GGUFReader(path)
    kinds = {name.removeprefix("blk.0."): file.kind(name).name for name in file.names if not name.startswith("blk.1.")}
    assert kinds == {
        "token_embd.weight": "Q8_0", "output.weight": "Q8_0", "output_norm.weight": "F32", "attn_norm.weight": "F32", "ffn_norm.weight": "F32",
        "ffn_down.weight": "F16",  # 48 inputs are no whole blocks
        **dict.fromkeys(["attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "ffn_gate.weight", "ffn_up.weight"], "Q4_0"),
    }  # fmt: skip
    assert file.values["general.file_type"] == 2
    for name, tensor in file_tensors(model, family_of(model.config)):
        read = next(each for each in other.tensors if each.name == name)
        assert np.array_equal(file.tensor(name), quants.dequantize(read.data, read.tensor_type).reshape(tensor.shape))
        if file.kind(name) == GGMLQuantizationType.Q4_0:
            assert np.array_equal(read.data, q4_0(tensor))
    check_weights(file, model, family_of(model.config))


def test_a_file_whose_blocks_are_anothers_is_refused(fresh_tiny, write):
    model = fresh_tiny("llama")
    file, family = GgufFile(write(model, kind="q4_0")), family_of(model.config)
    weight = model.model.layers[1].mlp.up_proj.weight.data
    weight.copy_(weight.roll(1, dims=1))
    with pytest.raises(UserError, match="blk.1.ffn_up.weight is held only roughly in q4_0"):
        check_weights(file, model, family)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2"])
@torch.no_grad()
def test_llama_cpp_computes_what_the_files_weights_say(kind, fresh_tiny, write, llama_cpp):
    """But that it rounds what they are multiplied with to 8 bits."""
    model = fresh_tiny(kind)
    path, ids = write(model, kind="q4_0"), torch.randint(4, 128, (1, 24), generator=torch.Generator().manual_seed(2))
    held = read_model(GgufFile(path), model.config)(ids).logits[0].log_softmax(-1)
    floats = model(ids).logits[0].log_softmax(-1)
    engine = llama_cpp.load(path)
    found = torch.stack([engine.likely_after(ids[0, :length].tolist(), 128) for length in (1, 9, 24)])
    held, floats = held[[0, 8, 23]], floats[[0, 8, 23]]
    assert (found - held).square().mean().sqrt() < 0.1 * held.std()
    assert (found - held).square().mean() < 0.25 * (found - floats).square().mean()


@pytest.mark.full
def test_the_default_model_in_4_bits_speaks_in_llama_cpp_as_its_file_says(tmp_path, llama_cpp):
    assert export.main(["default", str(tmp_path / "smol"), "--gguf", "q4_0"]) == 0
    tokenizer = load_tokenizer("default")
    file = GgufFile(tmp_path / "smol" / "smol-Q4_0.gguf")
    held = read_model(file, load("default", device="cpu", dtype="float32")[0].config)
    engine = llama_cpp.load(file.path)
    likeliest = []
    for text in ("Which country is the city of Suwon located in?", "Write a Python function that adds two numbers.", "Name three colours.", "What is 2 + 2?"):
        ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        with torch.no_grad():
            wanted = held(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        found = engine.likely_after(ids, len(wanted))
        assert (found - wanted).square().mean().sqrt() < 0.1 * wanted.std()
        likeliest.append(found.argmax() == wanted.argmax())
    assert sum(likeliest) >= 3
