"""An exported folder is what other engines load, and what lies beside it is true."""

import importlib.util
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from tokenizers.normalizers import Lowercase
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from seodang.__main__ import main
from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import load
from seodang.infer.gguf.reading import GgufFile
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.recipes import export
from seodang.recipes.run.one_writer import only_writer
from seodang.train.run.card import Exported, modelfile

OLLAMA = {"stop", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "repeat_last_n"}


def refused(*argv) -> None:
    assert export.main(list(map(str, argv))) == 2


def blocks(folder: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_a_folder_for_other_engines(base, tmp_path):
    """Readable by whom the umask lets, with every id that ends a text."""
    GenerationConfig(eos_token_id=1, temperature=0.6, do_sample=True).save_pretrained(base)
    (base / "model.safetensors").chmod(0o600)
    target = tmp_path / "out"
    assert export.main([str(base), str(target), "--dtype", "bfloat16"]) == 0
    names = {path.name: path.stat().st_mode & 0o777 for path in target.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"} < set(names)
    mask = os.umask(0)
    os.umask(mask)
    assert set(names.values()) == {0o666 & ~mask}
    config, generation = (json.loads((target / name).read_text(encoding="utf-8")) for name in ("config.json", "generation_config.json"))
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    assert generation["eos_token_id"] == [1, 2] and generation["temperature"] == 0.6  # the template's <|im_end|> too
    assert AutoModelForCausalLM.from_pretrained(target).generation_config.eos_token_id == [1, 2]
    assert "A text ends with `<s>` or `<|im_end|>`" in (target / "README.md").read_text(encoding="utf-8")


def test_a_gguf_file_of_a_merged_adapter(base, tmp_path, capsys):
    """Of the weights in full precision, whatever the folder's dtype."""
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(tmp_path / "adapter")
    target = tmp_path / "내 모델"
    assert export.main([str(tmp_path / "adapter"), str(target), "--gguf", "f32", "--dtype", "bfloat16"]) == 0
    assert "내 모델-F32.gguf: largest change of a logit" in capsys.readouterr().out
    held = torch.from_numpy(GgufFile(target / "내 모델-F32.gguf").tensor("blk.1.attn_v.weight"))
    merged = adapted.merge_and_unload().model.layers[1].self_attn.v_proj.weight
    assert torch.allclose(held, merged, atol=1e-6) and not torch.equal(held, held.bfloat16().float())
    assert torch.equal(AutoModelForCausalLM.from_pretrained(target).model.layers[1].self_attn.v_proj.weight, merged.bfloat16())
    assert "base_model:" not in (target / "README.md").read_text(encoding="utf-8")  # it lies on this machine alone


def test_a_gguf_file_becomes_a_folder_of_floats(base, tmp_path):
    assert main(["export", str(base), str(tmp_path / "out"), "--gguf", "q8_0"]) == 0
    file = tmp_path / "out" / "out-Q8_0.gguf"
    assert main(["export", str(file), str(tmp_path / "back")]) == 0
    state = load(tmp_path / "back", dtype="float32")[0].state_dict()
    assert torch.equal(state["model.layers.1.self_attn.v_proj.weight"], torch.from_numpy(GgufFile(file).tensor("blk.1.attn_v.weight")))


def test_the_default_models_folder_is_called_by_its_public_name(base, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "seodang").mkdir()
    shutil.copytree(base, tmp_path / "seodang" / "SmolLM2-135M-Instruct")
    assert export.main([str(tmp_path / "seodang" / "SmolLM2-135M-Instruct"), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card and "exported by Seodang from HuggingFaceTB/SmolLM2-135M-Instruct" in card


def test_the_cards_lines_run(base, tmp_path, monkeypatch, capsys):
    GenerationConfig(eos_token_id=[2], do_sample=True, temperature=0.6, top_k=20, repetition_penalty=1.1, max_new_tokens=4).save_pretrained(base)
    target = tmp_path / "내 모델"
    assert export.main([str(base), str(target), "--gguf", "q8_0"]) == 0
    monkeypatch.chdir(target)
    capsys.readouterr()
    [code] = blocks(target, "python")
    exec(code, {})  # noqa: S102
    assert capsys.readouterr().out
    commands = [shlex.split(line) for block in blocks(target, "sh") for line in block.splitlines()]
    assert [command[0] for command in commands] == ["vllm", "curl", "llama-server", "curl", "ollama", "ollama", "seodang", "seodang"]
    vllm, asked, llama_cpp, also, create, run, generate, serve = commands
    assert vllm[:5] == ["vllm", "serve", ".", "--served-model-name", "내 모델"]
    assert json.loads(asked[-1])["model"] == json.loads(also[-1])["model"] == "내 모델" and "temperature" not in json.loads(asked[-1])  # it draws
    card = (target / "README.md").read_text(encoding="utf-8")
    assert "--cache-type-k f32 --cache-type-v f32 --flash-attn off" in card and "In q8_0 weights, and what they are multiplied with, have 8 bits" in card
    assert (target / llama_cpp[llama_cpp.index("--model") + 1]).is_file() and (target / create[create.index("--file") + 1]).is_file()
    assert create[2] == run[2] and re.fullmatch(r"[a-z0-9][a-z0-9._-]*", run[2])
    assert main([*generate[1:], "--max_new_tokens", "3"]) == 0 and serve[1:3] == ["serve", "."]
    lines = [line.split(" ", 2) for line in (target / "Modelfile").read_text(encoding="utf-8").splitlines()]
    assert lines[0][0] == "FROM" and Path(" ".join(lines[0][1:])).is_file()
    assert {name: json.loads(value) for _, name, value in lines[1:]} == {
        "stop": "<|im_end|>", "temperature": 0.6, "top_k": 20, "repeat_penalty": 1.1, "repeat_last_n": -1,
    }  # fmt: skip


def test_without_a_template_the_words_go_bare(base, tmp_path):
    """Of a checkpoint that does not draw, every engine is asked for the likeliest tokens."""
    (base / "chat_template.jinja").unlink()
    target = tmp_path / "out"
    assert export.main([str(base), str(target), "--gguf", "bf16"]) == 0
    ollama = (target / "Modelfile").read_text(encoding="utf-8").splitlines()
    assert {'TEMPLATE "{{ .Prompt }}"', "PARAMETER temperature 0"} < {*ollama}
    [code], shell = blocks(target, "python"), blocks(target, "sh")
    bodies = [json.loads(shlex.split(block)[-1]) for block in shell if "curl" in block]
    assert "apply_chat_template" not in code and sum("/v1/completions" in block for block in shell) == 2
    assert [(body["prompt"], body["temperature"]) for body in bodies] == [("Name three colours.", 0)] * 2
    assert "8 bits" not in (target / "README.md").read_text(encoding="utf-8")


def test_cards_of_other_kinds_of_models(fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch, capsys):
    """A reward model's and an encoder-decoder's lines run too, and promise no engine that has none of them."""
    reward = AutoModelForSequenceClassification.from_config(fresh_tiny("llama", num_labels=1).config)
    for name, model in (("reward", reward), ("t5", fresh_tiny("t5"))):
        model.save_pretrained(tmp_path / f"{name}-base")
        tiny_tokenizer.save_pretrained(tmp_path / f"{name}-base")
        assert export.main([str(tmp_path / f"{name}-base"), str(tmp_path / name)]) == 0
        monkeypatch.chdir(tmp_path / name)
        capsys.readouterr()
        [code] = blocks(tmp_path / name, "python")
        exec(code, {})  # noqa: S102
        assert ("tensor([[" in capsys.readouterr().out) == (name == "reward")
        assert not any("vllm" in block or "ollama" in block for block in blocks(tmp_path / name, "sh"))


@pytest.mark.parametrize("kind", ["transformer", "lstm"])
def test_an_architecture_of_our_own_is_exported_for_seodang_alone(fresh_own, tiny_tokenizer, tmp_path, kind):
    base, target = tmp_path / "base", tmp_path / "out"
    fresh_own(kind, torch.float32).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    assert export.main([str(base), str(target)]) == 0
    assert not blocks(target, "python") and [block.split()[:2] for block in blocks(target, "sh")] == [["seodang", "generate"]]
    assert "Seodang's own, which other engines do not know" in (target / "README.md").read_text(encoding="utf-8")


def test_a_value_head_is_said_to_stay_behind(base, tmp_path, capsys):
    (base / "critic").mkdir()
    (base / "critic" / "critic.safetensors").touch()
    assert export.main([str(base), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("the value head (critic/critic.safetensors) stays behind") and not (tmp_path / "out" / "critic").exists()


def test_a_diffusion_canvas_is_promised_to_no_other_engine(fresh_tiny, tiny_tokenizer, tmp_path, capsys):
    for name, asked in (("masks", {}), ("both", {"attention": "prompt_causal", "autoregressive": True})):
        model = fresh_tiny("llama")
        declare(model.config, Diffusion(mask_token_id=5, **asked))
        model.save_pretrained(tmp_path / f"{name}-base")
        tiny_tokenizer.save_pretrained(tmp_path / f"{name}-base")
        assert export.main([str(tmp_path / f"{name}-base"), str(tmp_path / name)]) == 0
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert "It fills in masks as Seodang lets it; other engines know nothing of that" in card and ("vllm" in card) == (name == "both")
        assert "how it fills in masks goes along for Seodang alone: other engines have no canvas for it" in capsys.readouterr().out


def test_what_cannot_go_along_is_named_before_anything_is_loaded(base, fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "load", lambda *args, **options: pytest.fail("loaded"))
    target = tmp_path / "out"

    def told(*argv) -> str:
        refused(*argv)
        assert not target.exists()
        return capsys.readouterr().err

    assert "gguf 'q4_k_m' cannot be written: choose f32, f16, bf16, q8_0 or q4_0" in told(base, target, "--gguf", "q4_k_m")
    other = tmp_path / "cohere"
    fresh_tiny("cohere").save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    assert "no GGUF mapping for cohere: it is there for gemma, gemma2, gemma3_text, gpt2, llama" in told(other, target, "--gguf", "f16")
    adapter = tmp_path / "reward"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"task_type": "SEQ_CLS", "base_model_name_or_path": str(base)}), encoding="utf-8")
    assert f"{adapter} is a reward model, and a GGUF file has no place for its head" in told(adapter, target, "--gguf", "f16")
    quantised = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (other / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text(encoding="utf-8")) | quantised), encoding="utf-8")
    assert f"{other} holds quantised weights (bitsandbytes), export needs plain ones" in told(other, target)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.normalizer = Lowercase()
    tokenizer.save_pretrained(base)
    assert "normalises a text by Lowercase" in told(base, target, "--gguf", "f16")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    assert "needs the package gguf, which is not installed: pip install 'seodang[gguf]'" in told(base, target, "--gguf", "f16")


def test_an_adapter_that_no_weights_can_hold_is_named(base, tmp_path, capsys):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    adapted.save_pretrained(tmp_path / "prefix")
    refused(tmp_path / "prefix", tmp_path / "out")
    assert f"{tmp_path / 'prefix'} is an adapter of the kind PREFIX_TUNING, which no weights can hold" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:.*lora_bias", "ignore:.*LoRA tensor")
def test_an_adapter_with_a_bias_that_the_base_has_not_is_named(base, tmp_path, capsys):
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"], lora_bias=True)).save_pretrained(tmp_path / "bias")
    refused(tmp_path / "bias", tmp_path / "out")
    assert f"{tmp_path / 'bias'} is an adapter of the kind LORA, which no weights can hold (Impossible to merge LoRA" in capsys.readouterr().err


def test_weights_that_a_dtype_does_not_hold_are_named_and_nothing_is_left(base, fresh_tiny, tmp_path, capsys):
    model, target = fresh_tiny("llama"), tmp_path / "out"
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = -1e5
    model.save_pretrained(base)
    refused(base, target, "--dtype", "float16")
    assert "model.layers.0.mlp.up_proj.weight has weights up to 1e+05, beyond what float16 holds (65504): choose --dtype bfloat16" in capsys.readouterr().err
    refused(base, target, "--gguf", "f16")
    assert "beyond what f16 holds (65504): choose --gguf bf16 or f32" in capsys.readouterr().err
    assert not [*target.iterdir()]


def test_a_folder_that_is_not_the_model_is_never_there(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(export.TOLERANCE, torch.bfloat16, 1e-9)  # as if its rounding were a mistake
    refused(base, tmp_path / "out", "--dtype", "bfloat16")
    assert "writing changed the logits by " in capsys.readouterr().err and not [*(tmp_path / "out").iterdir()]


def test_logits_that_say_nothing(base, fresh_tiny, tmp_path, capsys):
    """Equal ones are a model's that has not learned; such as are no numbers are damage, and no adapter's."""
    model = fresh_tiny("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.save_pretrained(base)
        assert export.main([str(base), str(tmp_path / "flat")]) == 0
        model.lm_head.weight[3, 4] = torch.nan
    model.save_pretrained(base)
    refused(base, tmp_path / "out")
    assert f"{base} gives logits that are no numbers" in capsys.readouterr().err


def test_what_a_checkpoint_may_look_like(base, fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch):
    """A context shorter than the text that is tried, templates by several names, a folder named by a dot."""
    fresh_tiny("gpt2", n_positions=16).save_pretrained(tmp_path / "short")
    tiny_tokenizer.chat_template = {"default": tiny_tokenizer.chat_template, "tool_use": tiny_tokenizer.chat_template + "{# it's #}"}
    tiny_tokenizer.save_pretrained(tmp_path / "short")
    monkeypatch.chdir(tmp_path / "short")
    assert export.main([".", str(tmp_path / "out"), "--gguf", "f32"]) == 0
    assert "exported by Seodang from short;" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == tiny_tokenizer.chat_template
    assert GgufFile(tmp_path / "out" / "out-F32.gguf").values["tokenizer.chat_template.tool_use"].endswith("{# it's #}")


def test_what_cannot_be_is_told_before_anything_is_loaded(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "load", lambda *args, **options: pytest.fail("loaded"))
    refused(base, tmp_path / ("가" * 84), "--gguf", "f16")  # 252 bytes, and with -F16.gguf 261
    assert "가-F16.gguf is a name too long for the file system: choose a shorter one" in capsys.readouterr().err
    (base / "generation_config.json").write_text(json.dumps({"num_return_sequences": 3}), encoding="utf-8")
    refused(base, tmp_path / "out")
    assert f"{base}/generation_config.json asks for what cannot be: Greedy methods" in capsys.readouterr().err


def test_two_exports_do_not_write_one_folder(base, tmp_path, capsys):
    target = tmp_path / "out"
    with only_writer(target, ""):
        refused(base, target)
        assert f"{target} is being written by another process: wait for its end, or name another folder" in capsys.readouterr().err
    assert export.main([str(base), str(target)]) == 0


@pytest.mark.parametrize("step", [1, 2, 5, 9])
def test_an_export_that_was_killed_is_no_model_and_is_done_again_in_the_same_folder(base, tmp_path, monkeypatch, step):
    """At moves by which its files get their places, of which the manifest's is the ninth."""
    target, moves, replace = tmp_path / "out", [], Path.replace

    def killed(path, to):
        if Path(to).parent == target:
            moves.append(to)
        if len(moves) == step:
            raise KeyboardInterrupt
        return replace(path, to)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", killed)
        broken.setattr(export.shutil, "rmtree", lambda *_, **__: None)  # who is killed clears nothing away
        assert export.main([str(base), str(target)]) == 130
    with pytest.raises(UserError):
        load(target)
    assert export.main([str(base), str(target)]) == 0 and load(target)
    assert not [path for path in target.iterdir() if path.name.startswith((".saving", "manifest.unfinished"))]


def test_the_modelfile_has_the_texts_that_end_one(byte_tokenizer):
    """Ollama takes a backslash as it stands, and the letter by which a vocabulary writes a line's end is none."""
    tokenizer = byte_tokenizer(260)
    tokenizer.add_special_tokens({"eos_token": '<"\\n">'})
    generation = GenerationConfig(eos_token_id=[tokenizer.convert_tokens_to_ids("Ċ"), tokenizer.eos_token_id])
    about = Exported("a", "default", None, torch.float32, SimpleNamespace(generation_config=generation), tokenizer, "a-F32.gguf")
    told = modelfile(about).removesuffix("PARAMETER temperature 0\n")
    assert set(told.split("PARAMETER stop ")) == {"FROM ./a-F32.gguf\n", '"\n"\n', '"""<"\\n">"""\n', '"<|im_end|>"\n'}
