import importlib.util
import json
import shutil
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate
from seodang.infer.checkpoint import default_encoder
from seodang.infer.checkpoint import default_model as module
from seodang.infer.checkpoint.default_model import default_model
from seodang.infer.checkpoint.load import load, load_tokenizer, resolve
from seodang.infer.checkpoint.manifest import verify
from seodang.infer.kernels import device

MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def saved(fresh_tiny, tiny_tokenizer, tmp_path):
    folder = tmp_path / "model"
    fresh_tiny("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("flags, expected", [({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16), ({"avx512_f": True}, torch.float32)])
def test_the_cpus_instructions_decide_the_default_dtype(monkeypatch, flags, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    device.cpu_has_bfloat16.cache_clear()
    dtype, reason = device.choose_dtype("auto", torch.device("cpu"))
    assert dtype == expected and "CPU" in reason
    device.cpu_has_bfloat16.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "nowhere/at/all"}, "is not a folder"),
        ({"path": "./nowhere"}, "is not a folder"),
        ({"path": ""}, "is not a folder"),
        ({"dtype": "int3"}, "int3"),
        ({"device": "abacus"}, "abacus"),
        ({"adapter": "./nowhere"}, "is not a folder"),
    ],
)
def test_mistakes_are_named(saved, arguments, message):
    with pytest.raises(UserError, match=message):
        load(**{"path": saved, "device": "cpu", "dtype": "float32", **arguments})


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        load(tmp_path)


def test_a_hub_name_that_cannot_be_reached_is_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as caught:
        load_tokenizer("nobody/nothing-of-the-kind")
    assert "nobody/nothing-of-the-kind" in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_name_in_the_cache_is_loaded_though_the_hub_does_not_answer(saved, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc", encoding="utf-8")
    shutil.copytree(saved, repository / "snapshots" / "0123abc")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("seodang.data.hub.answers", lambda endpoint: False)
    begun = time.monotonic()
    model, tokenizer = load("owner/name", device="cpu", dtype="float32")
    assert time.monotonic() - begun < 5 and model.config.name_or_path == "owner/name"
    own, _ = load(saved, device="cpu", dtype="float32")
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(own.state_dict().values(), model.state_dict().values(), strict=True))


def test_an_adapters_folder_brings_its_base(saved, fresh_tiny, tmp_path):
    model = get_peft_model(load(saved, device="cpu", dtype="float32")[0], LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.5)
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    expected = model.eval()(ids).logits
    for loaded in (load(tmp_path / "adapter", dtype="float32", device="cpu"), load(saved, adapter=tmp_path / "adapter", dtype="float32", device="cpu")):
        assert torch.equal(loaded[0](ids).logits, expected)
        assert loaded[1].chat_template
    with pytest.raises(UserError, match="is an adapter already"):
        load(tmp_path / "adapter", adapter=tmp_path / "adapter")


def test_an_adapter_of_another_shape_is_one_line(saved, fresh_tiny, tmp_path):
    other = get_peft_model(fresh_tiny("llama", hidden_size=16), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    other.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="does not fit the model"):
        load(saved, adapter=tmp_path / "adapter", dtype="float32", device="cpu")


def test_the_default_model_is_converted_once_and_sealed(tokenizer):
    folder = default_model()
    made = (folder / "manifest.json").stat().st_mtime_ns
    assert verify(folder)["base"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert default_model() == folder and (folder / "manifest.json").stat().st_mtime_ns == made
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 30 and "quantization_config" not in config
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2


def test_without_its_package_the_default_model_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == module.PACKAGE else find(name, *rest))
    with pytest.raises(UserError, match="run `seodang setup`"):
        default_model()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_cache_that_cannot_be_written_is_named_where_the_default_model_needs_it(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="file/seodang once, which cannot be written .Not a directory.: set XDG_CACHE_HOME"):
        default_model()


def test_the_default_encoder_is_found_in_its_package_without_an_import():
    folder = resolve("default-encoder")
    assert default_encoder.PACKAGE not in sys.modules
    assert sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest() == MINILM


def test_without_its_package_the_default_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(UserError, match="run `seodang setup --encoder`"):
        resolve("default-encoder")


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}), encoding="utf-8")


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def grow(*names):
    return lambda tensors: tensors.update({name: torch.cat([tensors[name], torch.zeros(8, 32)]) for name in names})


ENDS = ("lm_head.weight", "model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f: change_config(f, vocab_size=136), r'lm_head.weight has the shape \[128, 32\] in its file, but \[136, 32\] by config.json, and 1 more.*"vocab_size": 128'),
        (lambda f: change_tensors(f, grow(*ENDS)), r'lm_head.weight has the shape \[136, 32\] in its file, but \[128, 32\].*set "vocab_size": 136 in config.json'),
        (lambda f: change_tensors(f, grow(ENDS[1])), r"model.embed_tokens.weight has the shape \[136, 32\].*resize lm_head.weight as well"),
        (lambda f: change_config(f, intermediate_size=96), r'down_proj.weight has the shape \[32, 64\] in its file, but \[32, 96\].*"intermediate_size": 64'),
        (lambda f: change_config(f, num_key_value_heads=4), r'k_proj.weight has the shape \[16, 32\] in its file, but \[32, 32\].*"num_key_value_heads": 2'),
        (lambda f: change_tensors(f, lambda t: t.pop("model.norm.weight")), "lacks the tensor model.norm.weight"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is damaged .it is empty"),
        (lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "run git lfs pull"),
        (lambda f: (f / "generation_config.json").write_text("{"), "generation_config.json is damaged"),  # transformers would forget what ends an answer
        (lambda f: change_config(f, num_attention_heads=5), "could not be built: .*not a multiple of the number of attention heads"),
        (lambda f: change_config(f, hidden_size="big"), "could not be built: .*expected int, got str"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_together_are_named_with_a_remedy(saved, break_it, words):
    break_it(saved)
    with pytest.raises(UserError, match=words) as caught:
        load(saved, device="cpu", dtype="float32")
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_of_weights_that_the_index_names_and_is_not_there_is_named(saved, fresh_tiny):
    (saved / "model.safetensors").unlink()
    fresh_tiny("llama").save_pretrained(saved, max_shard_size="60KB")
    [*_, last] = sorted(saved.glob("model-*.safetensors"))
    last.unlink()
    with pytest.raises(UserError, match=f"{last.name} is missing, though model.safetensors.index.json lists it"):
        load(saved, device="cpu", dtype="float32")


def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings_is_told(saved, fresh_tiny, tiny_tokenizer, caplog):
    fresh_tiny("llama", vocab_size=100).save_pretrained(saved)
    model, tokenizer = load(saved, device="cpu", dtype="float32")
    assert f"its tokenizer has {len(tokenizer)} ids, its model embeddings for 100" in caplog.text
    with pytest.raises(UserError, match="the id 120"):
        generate(model, tokenizer, [[5, 120]], SamplingParams(max_new_tokens=1))
