"""seodang generate --show_steps: the canvas of a diffusion answer after each step, before the answer."""

import pytest

from seodang.infer import SamplingParams, generate
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.recipes.generate import main
from seodang.recipes.options.decoding import SpeakingModel


def test_prints_the_steps_of_a_diffusion_answer_before_it(monkeypatch, fresh_tiny, tiny_tokenizer, capsys):
    model = fresh_tiny("llama")
    declare(model.config, Diffusion(127))
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (model, tiny_tokenizer))
    shown = [f"--{name}={value}" for name, value in {"max_new_tokens": 6, "steps": 3, "ignore_eos": "true", "show_steps": "true"}.items()]
    assert main(["default", "hi", *shown, "--suppress_tokens", *map(str, [*range(4), *range(98, 128)])]) == 0
    params = SamplingParams(max_new_tokens=6, steps=3, ignore_eos=True, suppress_tokens=[*range(4), *range(98, 128)])
    [result] = generate(model, tiny_tokenizer, [[{"role": "user", "content": "hi"}]], params)
    first, second, third, answer = capsys.readouterr().out.splitlines()
    assert [line.count("<|mask|>") for line in (first, second, third)] == [4, 2, 0] and first.startswith("Step 1: ")
    assert (third, answer) == (f"Step 3: {result.text}", result.text)


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "show_steps asks for the steps of diffusion, but the strategy 'sampling' writes from left to right: leave it out"),
        (["ho"], "show_steps prints the steps of one answer of a model in this process: give one prompt"),
        (["--output", "FOLDER/answers.jsonl"], "show_steps prints the steps of an answer, and output writes answers into a file"),
        (["--num_return_sequences", "2", "--temperature", "1"], "show_steps prints the steps of one answer of a model in this process"),
    ],
)
def test_where_there_are_no_steps_to_be_shown_it_is_refused(monkeypatch, tiny_llama, tiny_tokenizer, tmp_path, capsys, more, message):
    monkeypatch.setattr(SpeakingModel, "open", lambda self: (tiny_llama, tiny_tokenizer))
    assert main(["default", "hi", *(word.replace("FOLDER", str(tmp_path)) for word in more), "--show_steps"]) == 2
    assert message in capsys.readouterr().err
