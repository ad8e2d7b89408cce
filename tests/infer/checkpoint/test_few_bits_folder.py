"""A folder of a model in few bits holds what quantising gives, to the bit; what does not belong to it is refused before a kernel reads it."""

import json
import shutil
import struct

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.checkpoint import few_bits_folder
from seodang.infer.checkpoint.few_bits_folder import FILE, few_bits_of, read_few_bits, write_few_bits
from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import write_manifest
from seodang.infer.checkpoint.quantise import quantise
from seodang.infer.kernels.quantised_linear import Linear4, Linear8, OutputSlice
from seodang.infer.runners.native.grouped_linear import GroupedLinear4
from seodang.infer.runners.open import open_runner

KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi3", "olmo2", "smollm3", "gpt2"]


def state(model):
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


@pytest.fixture
def kept(varied, tiny_tokenizer, tmp_path):
    """`kept(kind, weights)`: the folder of a tiny model in few bits, and the model."""

    def write(kind="llama", weights="int4", **config):
        model, folder = varied(kind, **config), tmp_path / f"{kind}-{weights}"
        model.config.architectures = [type(model).__name__]  # as a folder that is loaded says
        quantise(model, weights)
        write_few_bits(folder, model, weights)
        tiny_tokenizer.save_pretrained(folder)
        return folder, model

    return write


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_quantising_gives_to_the_bit(kept, kind, weights):
    folder, made = kept(kind, weights)
    read, _ = load(folder)
    wanted, found = state(made), state(read)
    assert list(found) == list(wanted) and len(found) > 10
    for name, tensor in wanted.items():
        assert tensor.dtype == found[name].dtype and torch.equal(tensor, found[name]), name
    ours, theirs = (each.config.to_dict() | {"_name_or_path": None} for each in (read, made))
    assert ours == theirs and read.generation_config.to_dict() == made.generation_config.to_dict()
    assert type(read) is type(made) and not read.training and not any(p.requires_grad for p in read.parameters())
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        assert torch.equal(read(input_ids=ids).logits, made(input_ids=ids).logits)


def test_packs_begin_with_a_line_of_the_cache_and_are_mapped(kept):
    """By the file's own header, and in memory."""
    folder, made = kept("qwen2", "int4", vocab_size=131)
    raw = (folder / FILE).read_bytes()
    [length] = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    packs = {name: each for name, each in header.items() if name.endswith(".packed")}
    assert len(packs) == 4 * 2 + 1 and all((8 + length + each["data_offsets"][0]) % 64 == 0 for each in packs.values())
    name = "model.layers.0.self_attn.q_proj"
    begin, end = packs[f"{name}.packed"]["data_offsets"]
    whole = made.model.layers[0].self_attn.q_proj.whole
    assert raw[8 + length + begin : 8 + length + end] == whole.packed.numpy().tobytes()
    assert json.loads(header["__metadata__"]["seodang"])["layers"][0] == {
        "name": name, "kind": "GroupedLinear4", "inputs": 32, "outputs": 64,
        "places": [[name, 0, 32], ["model.layers.0.self_attn.k_proj", 32, 48], ["model.layers.0.self_attn.v_proj", 48, 64]],
    }  # fmt: skip
    read = load(folder)[0]
    attention = read.model.layers[0].self_attn
    assert isinstance(attention.k_proj, OutputSlice) and attention.k_proj.whole is attention.q_proj.whole is attention.v_proj.whole
    addresses = [int(line.split("-")[0], 16) for line in open("/proc/self/maps", encoding="utf-8") if str(folder / FILE) in line]
    at = attention.q_proj.whole.packed.data_ptr()
    assert at % 64 == 0 and at - (8 + length + begin) in addresses


def test_it_speaks_as_the_model_that_it_was_made_of(fresh_tiny, tiny_tokenizer, tmp_path, natively):
    fresh_tiny("llama").save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    model, tokenizer = load(tmp_path / "base", weights="int4")
    write_few_bits(tmp_path / "small", model, "int4")
    tiny_tokenizer.save_pretrained(tmp_path / "small")
    params = SamplingParams(max_new_tokens=12, temperature=0.9, seed=3)
    [wanted] = generate(model, tokenizer, ["hello"], params)
    [again] = generate(*load(tmp_path / "small", weights="int4"), ["hello"], params)
    assert again.ids == wanted.ids and len(wanted.ids) > 3 and natively


def test_without_kernels_of_our_own_it_is_written_out_for_torchs(kept, monkeypatch, caplog):
    for kind, weights, layer in (("llama", "int4", Linear4), ("gpt2", "int8", Linear8), ("phi3", "int4", Linear4)):
        folder, made = kept(kind, weights)
        blocks = made.transformer.h if kind == "gpt2" else made.model.layers
        wanted = blocks[1].mlp.c_proj.dequantised() if kind == "gpt2" else blocks[1].mlp.down_proj.dequantised()
        with monkeypatch.context() as patch:
            patch.setenv("SEODANG_NATIVE", "0")
            read, _ = load(folder)
            assert f"weights={weights} is slower here than it could be" in caplog.text and "(SEODANG_NATIVE=0)" in caplog.text
            caplog.clear()
            with pytest.raises(UserError, match="cannot be saved in few bits on this machine \\(SEODANG_NATIVE=0\\)"):
                write_few_bits(folder / "again", read, weights)
            blocks = read.transformer.h if kind == "gpt2" else read.model.layers
            down = blocks[1].mlp.c_proj if kind == "gpt2" else blocks[1].mlp.down_proj
            assert type(down) is layer
            # bfloat16 scales, and in 8 bits one an output; of 4 bits small inputs count little, so a level here and there is another
            assert (down.dequantised() - wanted).square().mean() < 0.02**2 * wanted.square().mean()
            ids = torch.tensor([[5, 6, 7, 8]])
            with torch.no_grad():
                ours, theirs = read(input_ids=ids).logits.float(), made(input_ids=ids).logits.float()
            assert (ours - theirs).square().mean().sqrt() < 0.1 * theirs.std()


def test_what_it_cannot_be_loaded_with_is_refused_by_name(kept, monkeypatch, tmp_path):
    folder, _ = kept("llama", "int4")
    for beside, told in (
        ({"weights": "int8"}, "holds weights in int4, got weights=int8: leave weights out"),
        ({"device": "cuda"}, "weights=int4 computes on the CPU, got device='cuda'"),
        ({"dtype": "float32"}, "weights=int4 computes in bfloat16, got dtype='float32'"),
        ({"adapter": tmp_path}, "an adapter cannot be merged into weights in int4, .*seodang export ADAPTER FOLDER --weights int4"),
        ({"model_class": AutoModelForCausalLM}, "for a language model that speaks and scores"),
    ):
        with pytest.raises(UserError, match=told):
            load(folder, **beside)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}), encoding="utf-8")
    with pytest.raises(UserError, match="an adapter cannot be merged into weights in int4"):
        load(adapter)
    with pytest.raises(OSError, match="no file named model.safetensors"):  # behind a warning that it knows no such quantisation
        AutoModelForCausalLM.from_pretrained(folder)


def rewritten(folder, change):
    """Write the file anew with what `change` makes of its tensors and of what it says of its layers."""
    with safe_open(folder / FILE, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        told = json.loads(file.metadata()["seodang"])
    change(tensors, told)
    few_bits_folder._write(folder / FILE, tensors, {"seodang": json.dumps(told)})


Q = "model.layers.0.self_attn.q_proj"
CHANGES = {
    "short packs": (lambda tensors, told: tensors.update({f"{Q}.packed": tensors[f"{Q}.packed"][:-1].clone()}), f"{Q} has packs of"),
    "other inputs": (lambda tensors, told: told["layers"][0].update(inputs=64), "has packs of"),
    "no group": (lambda tensors, told: told["layers"][0].update(inputs=33), "33 inputs are no whole number of groups of 32"),
    "beyond the outputs": (lambda tensors, told: told["layers"][0]["places"][2].__setitem__(slice(1, 3), [56, 72]), "v_proj has"),
    "another kind": (lambda tensors, told: told["layers"][0].update(kind="GroupedLinear2"), "GroupedLinear2"),
    "no such module": (lambda tensors, told: told["layers"][0]["places"].append(["model.layers.9.q", 0, 16]), "damaged"),
    "a tensor less": (lambda tensors, told: tensors.pop("model.norm.weight"), "model.norm.weight"),
    "a tensor more": (lambda tensors, told: tensors.update(more=torch.zeros(1)), "there is no place for more"),
    "another shape": (lambda tensors, told: tensors.update({"model.norm.weight": torch.zeros(31)}), "model.norm.weight is .31. of torch.float32, by config.json .32."),
    "a bias of half the outputs": (lambda tensors, told: tensors.update({f"{Q}.bias": torch.zeros(32, dtype=torch.bfloat16)}), "or no such bias"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_does_not_fit_is_refused_before_a_kernel_reads_it(kept, what):
    folder, _ = kept("qwen2", "int4")
    change, told = CHANGES[what]
    rewritten(folder, change)
    with pytest.raises(UserError, match=told) as error:
        read_few_bits(folder)
    assert f"{folder / FILE} is damaged" in str(error.value) and "export the model again" in str(error.value)


def test_damage_and_other_layouts_are_named(kept, monkeypatch):
    folder, _ = kept("llama", "int8")
    raw = bytearray((folder / FILE).read_bytes())
    write_manifest(folder)
    raw[-1] ^= 1
    (folder / FILE).write_bytes(raw)
    with pytest.raises(UserError, match="is damaged: its sha256 or size differs"):
        load(folder)
    monkeypatch.setattr(few_bits_folder, "HASHED", 1)  # of a large file the size alone is compared
    load(folder)
    (folder / FILE).write_bytes(raw[:-1])
    with pytest.raises(UserError, match="is damaged: its sha256 or size differs"):
        load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="is damaged .*export the model again"):
        load(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}), encoding="utf-8")
    with pytest.raises(UserError, match="config.json is no configuration .*export the model again"):
        load(folder)
    config["quantization_config"]["layout"] = 99
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="holds weights in int8, layout 99, where this version of Seodang reads layout 1 .*export the model again"):
        load(folder)
    (folder / "config.json").write_text(json.dumps(config["quantization_config"].update(layout=1) or config), encoding="utf-8")
    (folder / FILE).unlink()
    with pytest.raises(UserError, match="is missing"):
        load(folder)


def test_folders_of_others_are_none(tmp_path, kept):
    folder, _ = kept()
    assert few_bits_of(folder) == "int4" and few_bits_of("SomeOne/on-the-hub") is None and few_bits_of(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}), encoding="utf-8")
    assert few_bits_of(tmp_path) is None


def test_a_layer_stands_where_another_machine_would_look_for_it(kept, other_build, tmp_path):
    """Packs are the same for other instructions, which compute the same of them."""
    folder, made = kept("llama", "int4")
    assert isinstance(made.model.layers[0].mlp.down_proj, GroupedLinear4)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    here = load(folder)[0].model.layers[0].mlp.down_proj.product(x)
    other_build("haswell", "avx2")
    shutil.copytree(folder, tmp_path / "elsewhere")
    there = load(tmp_path / "elsewhere")[0].model.layers[0].mlp.down_proj.product(x)
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


def test_without_kernels_what_was_in_8_bits_among_4_stays_so(varied, tiny_tokenizer, tmp_path, monkeypatch):
    model = varied("llama")
    quantise(model, "int4", eight={model.model.layers[1].mlp.down_proj})
    assert type(model.model.layers[1].mlp.down_proj).__name__ == "GroupedLinear8" and type(model.model.layers[0].mlp.down_proj) is GroupedLinear4
    write_few_bits(tmp_path / "mixed", model, "int4")
    tiny_tokenizer.save_pretrained(tmp_path / "mixed")
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    read, _ = load(tmp_path / "mixed")
    assert [type(layer.mlp.down_proj) for layer in read.model.layers] == [Linear4, Linear8]
    wanted = model.model.layers[1].mlp.down_proj.dequantised()
    assert (read.model.layers[1].mlp.down_proj.dequantised() - wanted).abs().amax() <= wanted.abs().amax() / 127  # of 4 bits it is a fifteenth


def test_without_kernels_a_cache_in_8_bits_is_refused_for_what_turned_them_off(kept, monkeypatch):
    folder, _ = kept("llama", "int4")
    monkeypatch.setenv("SEODANG_NATIVE", "0")
    model, _ = load(folder, kv_cache_dtype="int8")
    with pytest.raises(UserError, match="kv_cache_dtype=int8 needs the native step, .*\\(SEODANG_NATIVE=0\\)"):
        open_runner(model)
