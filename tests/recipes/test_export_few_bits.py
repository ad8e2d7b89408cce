"""A folder in few bits is what load gives, adapter merged; a GGUF file in q4_0 is what llama.cpp reads."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.infer.checkpoint.load import load
from seodang.infer.checkpoint.manifest import verify
from seodang.infer.gguf.reading import GgufFile
from seodang.infer.runners.paradigm import Diffusion, declare, diffusion_of
from seodang.recipes import export, generate, score, serve, sft


def packs(model) -> list[torch.Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.endswith(("packed", "bias"))]


@pytest.fixture
def adapter(base, tmp_path):
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_the_folder_holds_the_merged_model_as_load_quantises_it(base, adapter, tmp_path, capsys, weights):
    target = tmp_path / "내 모델"
    assert export.main([str(adapter), str(target), "--weights", weights]) == 0
    told = capsys.readouterr().out
    assert "largest change of a logit" in told and f"of their spread, {weights}" in told
    assert {path.name for path in target.iterdir()} == {
        "config.json", "generation_config.json", "few_bits.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "README.md", "manifest.json",
    }  # fmt: skip
    assert set(verify(target)["files"]) == {path.name for path in target.iterdir()} - {"manifest.json"}
    wanted, (read, _) = load(base, adapter=adapter, weights=weights)[0], load(target)
    assert len(packs(wanted)) == 9 and all(map(torch.equal, packs(wanted), packs(read)))
    assert read.generation_config.eos_token_id == [2] or read.generation_config.eos_token_id == 2
    card = (target / "README.md").read_text(encoding="utf-8")
    assert f"parameters in {weights}" in card and "seodang generate ." in card and "vllm" not in card and "from transformers" not in card


def test_commands_take_it_as_any_model(base, tmp_path, monkeypatch, capsys):
    target = tmp_path / "small"
    assert export.main([str(base), str(target), "--weights", "int4"]) == 0
    capsys.readouterr()
    assert generate.main([str(target), "hello", "--max_new_tokens", "4", "--verbose"]) == 0
    told = capsys.readouterr().err
    assert f"{target} in int4 on cpu" in told and "int4 weights" in told and "bfloat16 on cpu" not in told
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 4, encoding="utf-8")
    scores = []
    for model in ([str(target)], [str(base), "--weights", "int4"]):
        assert score.main([*model, "--data", str(tmp_path / "rows.jsonl")]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1] and "perplexity" in scores[0]
    monkeypatch.setattr("seodang.infer.server.run.serve", lambda *how: None)
    assert serve.main([str(target), "--port", "0"]) == 0 and f"{target} in int4 on cpu" in capsys.readouterr().err
    assert generate.main([str(target), "hello", "--weights", "int8"]) == 2
    assert "holds weights in int4, got weights=int8" in capsys.readouterr().err
    for argv in (["--weights", "int4"], ["--gguf", "q8_0"], []):
        assert export.main([str(target), str(tmp_path / "again"), *argv]) == 2
        assert f"{target} holds quantised weights (Seodang's int4), export needs plain ones: give the model that they were made of" in capsys.readouterr().err
    asked = ["--model", str(target), "--data", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    for more in ([], ["--lora_r", "2"]):
        assert sft.main([*asked, *more]) == 2
        assert "weights in few bits cannot be trained: load the model with a dtype" in capsys.readouterr().err


def test_a_diffusion_model_says_in_its_folder_what_it_is(base, tmp_path):
    config = AutoConfig.from_pretrained(base)
    declare(config, Diffusion(127))
    config.save_pretrained(base)
    assert export.main([str(base), str(tmp_path / "small"), "--weights", "int8"]) == 0
    read, _ = load(tmp_path / "small")
    assert diffusion_of(read.config) == diffusion_of(config) and read.diffusion_generate is not None


def test_a_file_in_q4_0_is_written_beside_the_folder_and_the_card_says_what_it_costs(base, tmp_path, capsys):
    assert export.main([str(base), str(tmp_path / "out"), "--gguf", "q4_0"]) == 0
    assert "out-Q4_0.gguf: largest change of a logit" in capsys.readouterr().out
    assert {GgufFile(tmp_path / "out" / "out-Q4_0.gguf").kind(f"{name}.weight").name for name in ("blk.0.attn_q", "blk.1.ffn_down")} == {"Q4_0"}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "In q4_0 weights have 4 bits" in card and "In q8_0" not in card and "out-Q4_0.gguf" in card


def test_mistakes_are_told_before_anything_is_written(base, fresh_tiny, tiny_tokenizer, tmp_path, monkeypatch, capsys):
    target = tmp_path / "out"

    def told(*argv) -> str:
        assert export.main(list(map(str, argv))) == 2 and not target.exists()
        return capsys.readouterr().err

    assert "weights='int3' is unknown: choose int8 or int4" in told(base, target, "--weights", "int3")
    assert "weights int4 is a folder for Seodang, gguf q4_0 a file for others" in told(base, target, "--weights", "int4", "--gguf", "q4_0")
    assert "weights int4 keeps what is not in few bits in bfloat16, got dtype float32" in told(base, target, "--weights", "int4", "--dtype", "float32")
    for kind, changes, reason in (("cohere", {}, "not for cohere"), ("t5", {}, "not for t5"), ("llama", {"intermediate_size": 48}, "has 48"), ("qwen3_moe", {}, "not for qwen3_moe")):
        fresh_tiny(kind, **changes).save_pretrained(tmp_path / kind)
        tiny_tokenizer.save_pretrained(tmp_path / kind)
        assert reason in told(tmp_path / kind, target, "--weights", "int4")
    with monkeypatch.context() as patch:
        patch.setenv("SEODANG_NATIVE", "0")
        assert "weights int4 cannot be written on this machine (SEODANG_NATIVE=0): export where" in told(base, target, "--weights", "int4")
    adapter = tmp_path / "reward"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"task_type": "SEQ_CLS", "base_model_name_or_path": str(base)}), encoding="utf-8")
    assert f"{adapter} is a reward model, and a folder in int4 has no place for its head: export without --weights" in told(adapter, target, "--weights", "int4")
    target.mkdir()
    (target / "mine").write_text("", encoding="utf-8")
    assert export.main([str(base), str(target), "--weights", "int4"]) == 2
    assert f"output_dir {target} exists and is not empty" in capsys.readouterr().err and [path.name for path in target.iterdir()] == ["mine"]
