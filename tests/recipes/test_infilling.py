"""Infilling on the command line: a template as one text or as a list, a suffix, forced tokens; mistakes are told before a model is loaded."""

import pytest

from seodang.infer import SamplingParams, generate
from seodang.infer.checkpoint.load import load
from seodang.recipes import explain
from seodang.recipes import generate as generate_recipe
from seodang.recipes.options.decoding import SpeakingModel

LETTERS = ["--dtype", "float32", "--suppress_tokens", *map(str, [0, 1, 2, 3, *range(98, 127)])]


@pytest.fixture
def checkpoint(declared):
    """A tiny diffusion checkpoint's folder."""
    return str(declared())


def test_what_is_given_is_filled_in_as_by_a_call(checkpoint, tmp_path, capsys):
    model, tokenizer = load(checkpoint, device="cpu", dtype="float32")
    suppressed = {"suppress_tokens": tuple(map(int, LETTERS[3:]))}
    listed = tmp_path / "options.yaml"
    listed.write_text("template: ab{3}cd{2}.\n", encoding="utf-8")
    for words, settings in (
        (["--template", "ab{3}cd{2}."], {"template": ["ab", 3, "cd", 2, "."]}),
        (["--template", '["ab", 3, "{2}", 1]'], {"template": ["ab", 3, "{2}", 1]}),
        (["--config", str(listed)], {"template": ["ab", 3, "cd", 2, "."]}),
        (["--suffix", "yz", "--prefix", "ab", "--max_new_tokens", "8"], {"suffix": "yz", "prefix": "ab", "max_new_tokens": 8}),
        (["--max_new_tokens", "6", "--forced_text", '{"1": 40, "3": "xy"}'], {"max_new_tokens": 6, "forced_text": {1: 40, 3: "xy"}}),
        (["--max_new_tokens", "6", "--choice", "abc", "de"], {"max_new_tokens": 6, "choice": ("abc", "de")}),
    ):
        [want] = generate(model, tokenizer, [[{"role": "user", "content": "hello"}]], SamplingParams(**settings, **(suppressed if "choice" not in settings else {})))
        assert generate_recipe.main([checkpoint, "hello", *words, *(LETTERS[: 2 if "choice" in settings else None])]) == 0
        assert capsys.readouterr().out == f"{want.text}\n"
    assert want.text in ("abc", "de")


def test_what_is_given_is_there_from_the_first_step_on(checkpoint, capsys):
    assert explain.main([checkpoint, "hello", "--template", "ab{2}cd{1}", "--steps", "2", *LETTERS]) == 0
    first, second = [line for line in capsys.readouterr().out.splitlines() if "Step " in line]
    assert "Step 1: ab" in first and "cd" in first and first.count("<|mask|>") == 1 and "<|mask|>" not in second


@pytest.mark.parametrize(
    "words, told",
    [
        (["--template", "nothing"], "template='nothing' has no gap to be filled in"), (["--template", "a{0}"], "template has a gap of 0 tokens"),
        (["--template", '["a", 2.5]'], "got the entry 2.5"), (["--template", "a{2}", "--prefix", "b"], "prefix='b' has no place beside template"),
        (["--template", "a{2}", "--num_beams", "3", "--strategy", "beam"], "strategy 'beam' has no use for template="),
        (["--suffix", "a", "--regex", "b"], "regex"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_a_model_is_loaded(monkeypatch, capsys, words, told):
    monkeypatch.setattr(SpeakingModel, "open", None)
    assert generate_recipe.main(["default", "hello", *words]) == 2
    assert told in capsys.readouterr().err
