"""seodang explain: what it prints, the page that it writes, and what it refuses."""

import pytest

from seodang.data.chat import prompt_ids
from seodang.infer import SamplingParams, generate
from seodang.infer.attention_map import attention_maps
from seodang.infer.runner import RaggedRunner
from seodang.recipes.decoding import SpeakingModel
from seodang.recipes.explain import main


@pytest.fixture
def model(monkeypatch, tiny_llama, tiny_tokenizer):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (tiny_llama, tiny_tokenizer))
    return tiny_llama


@pytest.mark.parametrize(
    "options, wanted",
    [
        ([], "model"),
        (["--temperature", "0.8", "--top_k", "4", "--seed", "1"], "top_k"),
        (["--num_beams", "3"], "beams"),
        (["--prompt_lookup_num_tokens", "4"], "drafts"),
        (["--dola_layers", "high"], "contrasted with layer 1"),
        (["--penalty_alpha", "0.6", "--top_k", "3"], "likeness"),
        (["--best_of", "3", "--temperature", "1", "--seed", "1"], "score"),
    ],
)
def test_every_strategy_is_explained(model, tmp_path, capsys, options, wanted):
    page = tmp_path / "page.html"
    assert main(["default", "abcabcab", "--raw", "--max_new_tokens", "6", "--html", str(page), "--attention", "1.2", *options]) == 0
    out = capsys.readouterr().out
    assert "answer" in out and "prefill" in out and "attention of layer 1, head 2" in out
    assert wanted in out or wanted == "model"
    assert "Attention of layer 1, head 2" in page.read_text(encoding="utf-8")


def test_the_prompt_goes_through_the_template_unless_raw(model, tiny_tokenizer, capsys):
    read = len(prompt_ids(tiny_tokenizer, [{"role": "user", "content": "hi"}]))
    assert main(["default", "hi", "--max_new_tokens", "2"]) == 0
    assert read > 2 and f"for {read} positions" in capsys.readouterr().out
    assert main(["default", "hi", "--max_new_tokens", "2", "--raw"]) == 0
    assert "for 2 positions" in capsys.readouterr().out


def test_steps_bound_what_is_shown(model, capsys):
    assert main(["default", "hi", "--max_new_tokens", "5", "--raw", "--steps", "2", "--attention", "0"]) == 0
    out = capsys.readouterr().out
    assert "more tokens: --steps" in out and "the mean of 4 heads" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["default"], "no prompt"),
        (["default", "hi", "--attention", "x"], "attention must be LAYER or LAYER.HEAD"),
        (["default", "hi", "--attention", "7"], "layer 7 does not exist: the model has layers 0 to 1"),
        (["default", "hi", "--attention", "1.9"], "head 9 does not exist: the model has heads 0 to 3"),
        (["default", "hi", "--html", "/nowhere/at/all.html"], "there is no folder /nowhere/at"),
        (["default", "hi", "--steps", "-1"], "steps must not be below zero, got -1"),
        (["default", "hi", "--top_p", "7"], "top_p must be in (0, 1], got 7.0"),
        (["default", "hi", "--atention", "1"], "did you mean attention?"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_any_compute(model, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(RaggedRunner, "forward", lambda *args: pytest.fail("computed something"))
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_attention_of_a_healed_prompt_counts_no_token_twice(monkeypatch, real_model, tokenizer, tmp_path, capsys):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (real_model, tokenizer))
    shown = []
    monkeypatch.setattr("seodang.infer.attention_map.attention_maps", lambda model, ids, layer: shown.append(ids) or attention_maps(model, ids, layer))
    prompt = "The capital of Fran"
    assert main(["default", prompt, "--raw", "--token_healing", "--max_new_tokens", "1", "--attention", "0.0"]) == 0
    [result] = generate(real_model, tokenizer, [prompt], SamplingParams(token_healing=True, max_new_tokens=1))
    assert shown == [tokenizer(prompt)["input_ids"][: result.prompt_length] + result.ids]
    assert result.prompt_length < len(tokenizer(prompt)["input_ids"])
