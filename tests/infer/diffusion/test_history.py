"""What a step of diffusion tells: the guesses of the model's own pass, what is new of them, and what has been taken back."""

import math
from types import SimpleNamespace

import pytest

from seodang.infer import LiveEngine, Observed, SamplingParams, generate
from seodang.infer.diffusion.canvas import Canvas
from seodang.infer.diffusion.denoising import Denoising, Guess
from seodang.infer.requests.trace import DiffusionStep

from .conftest import MASK, canvas_logits

PROMPT, NEW = [5, 6, 7, 8, 5, 6], 7


def steps_of(events) -> list[DiffusionStep]:
    return [each.what for each in events if isinstance(each, Observed) and isinstance(each.what, DiffusionStep)]


@pytest.mark.parametrize("attention, block, shift", [("bidirectional", None, 1), ("block_causal", 3, 0)])
def test_guesses_are_the_likeliest_tokens_of_the_models_own_pass_told_when_they_change(denoiser, tiny_tokenizer, attention, block, shift):
    model = denoiser(attention, shift, block)
    [result] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=NEW, ignore_eos=True), trace=True)
    canvas, known = [None] * NEW, {}
    for step in steps_of(result.trace):
        end = min(-(-(1 + step.committed[0][0]) // (block or NEW)) * (block or NEW), NEW)
        logits = canvas_logits(model, PROMPT, [MASK if id is None else id for id in canvas], end)
        logits[:, MASK] = -math.inf
        chances = logits.log_softmax(dim=-1)
        for (position, id, _), logprob in zip(step.committed, step.logprobs, strict=True):
            assert id == chances[position].argmax() and logprob == pytest.approx(chances[position, id].item())
            canvas[position] = id
        open_now = [position for position in range(end - (end - 1) % (block or NEW) - 1, end) if canvas[position] is None]
        assert step.canvas == tuple(canvas)
        changed = {position: chances[position].argmax().item() for position in open_now}
        changed = {position: id for position, id in changed.items() if known.get(position) != id}
        assert {position: id for position, id, _ in step.guesses} == changed
        assert [logprob for *_, logprob in step.guesses] == pytest.approx([chances[position, id].item() for position, id, _ in step.guesses])
        known |= changed
    assert canvas == result.ids and result.forwards == len(steps_of(result.trace)) + (len(range(0, NEW, block)) - 1 if block else 0)


def test_of_a_position_that_is_open_again_any_guess_is_news():
    canvas = Canvas.blank(4, MASK)
    self = SimpleNamespace(canvas=canvas, _told={0: 8, 1: 9, 2: 7})
    guesses = [Guess(position, id, -0.5, 0.25, None) for position, id in enumerate((8, 9, 6, 5))]
    canvas.put(3, 5, -0.5)
    assert Denoising._news(self, guesses, ()) == ((2, 6, -0.5),)  # another than before; of what is certain nothing is guessed
    assert Denoising._news(self, guesses, (1,)) == ((1, 9, -0.5), (2, 6, -0.5))


def test_a_live_engine_tells_steps_without_a_trace(denoiser, tiny_tokenizer):
    model, params = denoiser("prompt_causal", 1), SamplingParams(max_new_tokens=NEW, ignore_eos=True, steps=3)
    [want] = generate(model, tiny_tokenizer, [PROMPT], params, trace=True)
    with LiveEngine(model, tiny_tokenizer) as engine:
        events = list(engine.stream(PROMPT, params, include_steps=True))
        assert steps_of(events) == steps_of(want.trace) and all(isinstance(each.what, DiffusionStep) for each in events if isinstance(each, Observed))
        assert not any(isinstance(each, Observed) for each in engine.stream(PROMPT, params))
