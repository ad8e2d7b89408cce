from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("verb", "words", "told"),
    [
        ("grpo", ["--rollout", "vllm"], "use_vllm needs vLLM in this environment, which trl's client hands weights over by: pip install 'trl[vllm]'"),
        ("rloo", ["--use_vllm", "true"], "use_vllm needs vLLM in this environment"),
        ("grpo", ["--rollout", "vlm"], "rollout must be one of engine, vllm, got 'vlm'"),
        ("ppo", ["--rollout", "vllm"], "rollout vllm: ppo answers by our own engine alone, under FSDP2 and ZeRO-3 by weights gathered for it"),
    ],
)
def test_who_answers_is_settled_before_a_model_is_loaded(verb, words, told, capsys, tmp_path):
    data = tmp_path / "prompts.jsonl"
    data.write_text('{"prompt": "say a"}\n')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # and no weights
    base = ["--model", str(tmp_path), "--data", str(data), "--reward", "length:4", "--device", "cpu", "--output_dir", str(tmp_path / "out")]
    assert import_module(f"seodang.recipes.{verb}").main([*base, *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
