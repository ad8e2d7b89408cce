"""The commands on a diffusion checkpoint: those that speak do, the others say by name why not."""

import json

import pytest

from seodang.infer import SamplingParams, generate
from seodang.infer.checkpoint.load import load
from seodang.recipes import chat, explain, sft
from seodang.recipes import generate as generate_recipe


@pytest.fixture
def checkpoint(declared):
    """A tiny diffusion checkpoint's folder, whose prompt is read once."""
    return str(declared(shift=1, attention="prompt_causal"))


PLAIN = ["--max_new_tokens", "8", "--suppress_tokens", *map(str, [0, 1, 2, 3, *range(98, 127)])]  # letters alone


@pytest.fixture
def want(checkpoint):
    model, tokenizer = load(checkpoint, device="cpu", dtype="float32")
    params = SamplingParams(max_new_tokens=8, suppress_tokens=[0, 1, 2, 3, *range(98, 127)], steps=4)
    [result] = generate(model, tokenizer, [[{"role": "user", "content": "hello"}]], params)
    return result.text


def test_it_is_asked_talked_with_and_explained(checkpoint, want, monkeypatch, tmp_path, capsys):
    asked = [*PLAIN, "--steps", "4"]
    assert generate_recipe.main([checkpoint, "hello", *asked]) == 0 and capsys.readouterr().out == f"{want}\n"
    lines = ["hello", "/set steps 8", "more"]
    monkeypatch.setattr("builtins.input", lambda prompt="": lines.pop(0) if lines else "/exit")
    assert chat.main([checkpoint, *asked]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == want and len(second) == 8
    page = tmp_path / "page.html"
    assert explain.main([checkpoint, "hello", *asked, "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert f"Step 4: {want}" in shown and shown.count("<|mask|>") == 6 + 4 + 2 and page.read_text(encoding="utf-8").count('"type": "diffusion"') == 4


def test_orders_rules_and_guidance_are_options_of_the_command_line(checkpoint, capsys):
    model, tokenizer = load(checkpoint, device="cpu", dtype="float32")
    for settings in (
        {"block_length": 3, "confidence_threshold": 0.05, "alg": "low_confidence", "cfg_scale": 1.5, "eos_penalty": 1.0},
        {"entropy_bound": 4.0, "alg": "maskgit_plus"}, {"remask": 0.5, "alg": "origin", "steps": 4, "temperature": 1.0, "seed": 3},
    ):  # fmt: skip
        params = SamplingParams(max_new_tokens=8, suppress_tokens=[0, 1, 2, 3, *range(98, 127)], **settings)
        [asked] = generate(model, tokenizer, [[{"role": "user", "content": "hello"}]], params)
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        assert generate_recipe.main([checkpoint, "hello", *PLAIN, *words, "--dtype", "float32"]) == 0 and capsys.readouterr().out == f"{asked.text}\n"
    assert generate_recipe.main([checkpoint, "hello", "--confidence_threshold", "0.9", "--steps", "4"]) == 2
    assert "confidence_threshold=0.9 lets what the model is sure of say how many tokens" in capsys.readouterr().err


def test_weights_that_speak_both_ways_are_loaded_once_to_draft_for_themselves(declared, monkeypatch, capsys):
    folder = str(declared(shift=1, attention="prompt_causal", autoregressive=True))
    assert generate_recipe.main([folder, "hello", *PLAIN, "--strategy", "sampling"]) == 0
    alone = capsys.readouterr().out
    opened, load_once = [], load
    monkeypatch.setattr("seodang.infer.checkpoint.load.load", lambda path, **how: opened.append(path) or load_once(path, **how))
    assert generate_recipe.main([folder, "hello", *PLAIN, "--assistant_model", folder]) == 0
    assert capsys.readouterr().out == alone and opened == [folder]
    assert generate_recipe.main([folder, "hello", *PLAIN, "--assistant_model", folder, "--assistant_tokenizer"]) == 2
    assert "drop assistant_tokenizer" in capsys.readouterr().err
    assert generate_recipe.main([folder, "hello", *PLAIN, "--assistant_model", folder, "--steps", "4"]) == 2
    assert "assistant_model" in capsys.readouterr().err


def test_what_reads_and_trains_from_left_to_right_refuses_it_by_name(checkpoint, tmp_path, capsys):
    data = tmp_path / "records.jsonl"
    data.write_text("".join(json.dumps({"prompt": "a", "completion": "b"}) + "\n" for _ in range(2)), encoding="utf-8")
    for verb, arguments, reason in (
        (sft, ["--model", checkpoint, "--data", str(data), "--output_dir", str(tmp_path / "out"), "--use_cpu"], "sft teaches text from left to right"),
        (explain, [checkpoint, "hello", "--attention", "0"], "a map of attention reads from left to right"),
        (generate_recipe, [checkpoint, "hello", "--num_beams", "3"], "num_beams=3 asks for a text from left to right"),
    ):
        assert verb.main(arguments) == 2
        assert reason in capsys.readouterr().err and not (tmp_path / "out").exists()
