"""What a step of diffusion tells: the guesses of the model's own pass, what is new of them, and what has been taken back."""

import math

import pytest

from seodang.infer import Committed, LiveEngine, Observed, SamplingParams, generate
from seodang.infer.explain.trace_events import step_told
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


WAYS = [
    ("bidirectional", {"alg": "origin"}), ("prompt_causal", {"alg": "low_confidence", "block_length": 5}),
    ("bidirectional", {"template": ["ab", 9, "c", 2, "."], "max_new_tokens": None}),
]  # fmt: skip


@pytest.mark.parametrize("attention, settings", WAYS)
def test_steps_make_each_canvas_out_of_the_one_before_also_where_tokens_are_taken_back(denoiser, tiny_tokenizer, attention, settings):
    model, taken = denoiser(attention, 1), 0
    params = [SamplingParams(**{"max_new_tokens": 15, **settings}, ignore_eos=True, steps=8, temperature=1.0, seed=seed, remask=0.4) for seed in range(3)]
    for result in generate(model, tiny_tokenizer, [PROMPT] * 3, params, trace=True):
        certain, guesses, sent = {}, {}, 0
        for event in result.trace:
            if isinstance(event, Committed):
                sent = event.position + 1
            elif isinstance(event, Observed) and isinstance(event.what, DiffusionStep):
                told = step_told(tiny_tokenizer, event.what)
                certain |= {each["position"]: each["id"] for each in told.get("given", ())}
                for position in told["remasked"]:
                    assert position >= sent
                    del certain[position]
                for each in told["certain"]:
                    assert each["position"] not in certain
                    certain[each["position"]] = each["id"]
                guesses = {position: id for position, id in guesses.items() if position not in {*certain, *told["remasked"]}}
                for each in told["guesses"]:
                    assert each["position"] not in certain and guesses.get(each["position"]) != each["id"]
                    guesses[each["position"]] = each["id"]
                assert event.what.canvas == tuple(map(certain.get, range(len(event.what.canvas))))
                taken += len(told["remasked"])
        assert result.ids == [certain[position] for position in range(len(result.ids))]
    assert taken


def test_a_live_engine_tells_steps_without_a_trace(denoiser, tiny_tokenizer):
    model, params = denoiser("prompt_causal", 1), SamplingParams(max_new_tokens=NEW, ignore_eos=True, steps=3)
    [want] = generate(model, tiny_tokenizer, [PROMPT], params, trace=True)
    with LiveEngine(model, tiny_tokenizer) as engine:
        events = list(engine.stream(PROMPT, params, include_steps=True))
        assert steps_of(events) == steps_of(want.trace) and all(isinstance(each.what, DiffusionStep) for each in events if isinstance(each, Observed))
        assert not any(isinstance(each, Observed) for each in engine.stream(PROMPT, params))
