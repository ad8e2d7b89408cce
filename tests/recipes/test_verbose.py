"""--verbose: the commands that speak say on stderr, once, what computes, and nothing of it without."""

import json

import pytest
import torch

from seodang.infer.runners.native.library import built_for
from seodang.recipes import chat, explain, generate, score, serve
from seodang.recipes.options.decoding import SpeakingModel

PROMPT = ["abc", "--max_new_tokens", "3"]
TORCH = f"direct runner, torch {torch.backends.cpu.get_cpu_capability()}, float32 weights, "


@pytest.fixture(params=["generate", "chat", "explain", "score", "serve"])
def command(request, monkeypatch, fresh_tiny, tiny_tokenizer, tmp_path):
    """A command on a model of the test's own, to be given further options."""
    model, data = fresh_tiny("llama"), tmp_path / "answers.jsonl"
    data.write_text(json.dumps({"prompt": "ab", "completion": "cd"}) + "\n", encoding="utf-8")
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (model, tiny_tokenizer))
    monkeypatch.setattr("builtins.input", lambda prompt="": (_ for _ in ()).throw(EOFError))
    monkeypatch.setattr("seodang.infer.server.run.serve", lambda *how: None)
    of = {
        "generate": (generate, ["default", *PROMPT]), "chat": (chat, ["default"]), "explain": (explain, ["default", *PROMPT]),
        "score": (score, ["default", "--data", str(data)]), "serve": (serve, ["default", "--port", "0"]),
    }  # fmt: skip
    verb, argv = of[request.param]
    return lambda *more: verb.main([*argv, *more])


def test_it_is_said_once_on_stderr(command, monkeypatch, capsys):
    monkeypatch.setenv("SEODANG_NATIVE", "1")
    assert command() == 0 and " runner, " not in "".join(capsys.readouterr())
    threads = f"{torch.get_num_threads()} thread"
    for off, line in (("1", f"default: native runner, {built_for()}, float32 weights, {threads}"), ("0", f"default: {TORCH}{threads}; not native: SEODANG_NATIVE=0")):
        monkeypatch.setenv("SEODANG_NATIVE", off)
        assert command("--verbose") == 0
        out, err = capsys.readouterr()
        assert [each for each in err.splitlines() if " runner, " in each] == [line] and " runner, " not in out


@pytest.mark.parametrize("verb", ["generate", "chat", "explain", "score", "serve"])
def test_a_cache_in_8_bits_is_opened_by_every_command_and_refused_by_name(verb, monkeypatch, capsys, fresh_tiny, tiny, tiny_tokenizer, tmp_path):
    for name, model in (("llama", fresh_tiny("llama")), ("granite", tiny("granite"))):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
    data = tmp_path / "answers.jsonl"
    data.write_text(json.dumps({"prompt": "ab", "completion": "cd"}) + "\n", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda prompt="": (_ for _ in ()).throw(EOFError))
    monkeypatch.setattr("seodang.infer.server.run.serve", lambda *how: None)
    of = {"generate": (generate, PROMPT), "chat": (chat, []), "explain": (explain, PROMPT), "score": (score, ["--data", str(data)]), "serve": (serve, ["--port", "0"])}
    recipe, argv = of[verb]
    how = ["--device", "cpu", "--dtype", "float32", "--kv_cache_dtype", "int8", "--verbose"]
    assert recipe.main([str(tmp_path / "llama"), *argv, *how]) == 0
    assert f"native runner, {built_for()}, float32 weights, int8 KV cache, " in capsys.readouterr().err
    assert recipe.main([str(tmp_path / "granite"), *argv, *how]) == 2
    assert "kv_cache_dtype=int8 needs the native step, which this model does without here (granite is none of its families): leave it out" in capsys.readouterr().err
