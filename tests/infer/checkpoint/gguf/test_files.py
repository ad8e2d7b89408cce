"""What is written is what is read, and a file that is not the model is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants

from seodang.data.errors import UserError
from seodang.infer.checkpoint.gguf.checking import check_ids, check_weights
from seodang.infer.checkpoint.gguf.export import save_gguf
from seodang.infer.checkpoint.gguf.vocabulary import vocabulary_of
from seodang.infer.checkpoint.gguf.weights import file_tensors
from seodang.infer.gguf.families import FAMILIES, as_it_is, family_of
from seodang.infer.gguf.reading import GgufFile


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_matrices_are_rounded_once_and_read_back_as_ggufs_own_reader_does(kind, fresh_tiny, write):
    model = fresh_tiny("llama")
    path = write(model, kind=kind)
    file, other = GgufFile(path), GGUFReader(path)
    assert file.values == {key: field.contents() for key, field in other.fields.items() if not key.startswith("GGUF.")}
    assert file.names == {tensor.name for tensor in other.tensors}
    rounded = {"f32": lambda x: x, "f16": lambda x: x.half().float(), "bf16": lambda x: x.bfloat16().float(), "q8_0": by_blocks}
    for name, tensor in file_tensors(model, family_of(model.config)):
        read = next(each for each in other.tensors if each.name == name)
        assert np.array_equal(file.tensor(name), quants.dequantize(read.data, read.tensor_type).reshape(tensor.shape))
        assert torch.equal(torch.from_numpy(file.tensor(name)), rounded[kind](tensor) if tensor.dim() > 1 else tensor)
    check_weights(file, model, family_of(model.config))


def by_blocks(tensor):
    """Each 32 weights as whole steps of their largest / 127."""
    blocks = tensor.reshape(-1, 32)
    step = blocks.abs().amax(-1, keepdim=True) / 127
    steps = blocks / step
    whole = torch.where(steps.abs() % 1 == 0.5, steps.sign() * (steps.abs() + 0.5), steps.round())
    return (whole * step.half().float()).reshape(tensor.shape)


def test_rows_that_are_no_whole_blocks_stay_in_float16(fresh_tiny, write):
    file = GgufFile(write(fresh_tiny("gpt2", n_embd=24, n_inner=64), kind="q8_0"))
    kinds = {name: file.kind(name).name for name in ("blk.0.ffn_up.weight", "blk.0.ffn_down.weight", "blk.0.ffn_up.bias", "position_embd.weight")}
    assert list(kinds.values()) == ["F16", "Q8_0", "F32", "F32"]


def test_a_file_that_is_not_the_models_is_refused(fresh_tiny, write, tiny_tokenizer):
    model, other = fresh_tiny("llama"), fresh_tiny("llama", seed=1)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 5] += 0.01
    file, family = GgufFile(write(model, kind="bf16")), family_of(model.config)
    with pytest.raises(UserError, match=r"blk.1.ffn_up.weight is held only roughly in bf16, up to 1.0% of its largest weight off"):
        check_weights(file, other, family)
    model.model.layers = model.model.layers[:1]
    with pytest.raises(UserError, match="holds blk.1.attn_k.weight, which the model has not"):
        check_weights(file, model, family)
    vocabulary = vocabulary_of(tiny_tokenizer, 128, [2])
    check_ids(file, tiny_tokenizer, vocabulary)
    with pytest.raises(UserError, match="does not hold the tokenizer that was to be written"):
        check_ids(file, tiny_tokenizer, replace(vocabulary, ids={**vocabulary.ids, "eot_token_id": 3}))


def test_weights_beyond_a_kind_are_named(fresh_tiny, write):
    model = fresh_tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5
    with pytest.raises(UserError, match="blk.0.ffn_up.weight has weights up to 1e[+]05, beyond what f16 holds"):
        write(model, kind="f16")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.data *= 1e-12
    with pytest.raises(UserError, match="blk.0.ffn_up.weight is held only roughly in q8_0"):
        check_weights(GgufFile(write(model, kind="q8_0")), model, family_of(model.config))


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_a_file_is_checked_as_it_is_saved(kind, fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    model, ids = fresh_tiny(kind), torch.tensor([[5, 6, 7, 8]])
    vocabulary = vocabulary_of(tiny_tokenizer, 128, [2])
    notes, change = save_gguf(tmp_path / "a-F32.gguf", model, tiny_tokenizer, vocabulary, "f32", ids)
    assert notes == [] and (change < 1e-6 if kind == "llama" else np.isnan(change))
    assert GgufFile(tmp_path / "a-F32.gguf").values["general.name"] == "a"
    with torch.no_grad():
        flat = fresh_tiny(kind)
        flat.get_output_embeddings().weight.zero_()
    assert kind == "gemma" or save_gguf(tmp_path / "flat-F32.gguf", flat, tiny_tokenizer, vocabulary, "f32", ids)[1] == 0
    if kind == "llama":  # a mapping that forgets how heads are laid out: what transformers reads differs
        monkeypatch.setitem(FAMILIES, "llama", replace(FAMILIES["llama"], change=as_it_is))
        with pytest.raises(UserError, match="gives logits that differ by"):
            save_gguf(tmp_path / "b-F32.gguf", model, tiny_tokenizer, vocabulary, "f32", ids)
