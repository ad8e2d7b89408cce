"""A caller's own functions over a canvas: what they see, what they may change, and that a mistake of theirs ends their request alone."""

import re

import pytest
import torch

from seodang.infer import Committed, Provisional, SamplingParams, generate, stream

from .conftest import MASK, canvas_logits
from .test_denoising import KINDS, PROMPTS, steps_in

NEW = 6


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("attention, block", KINDS)
def test_in_each_step_they_see_the_canvas_and_the_logits_of_what_is_read(denoiser, tiny_tokenizer, attention, block, shift):
    model, seen, after = denoiser(attention, shift, block), [], []

    def logits_hook(step, canvas, logits):
        assert canvas.shape == (1, NEW) and logits.shape == (1, NEW, 128)
        seen.append((step, canvas[0].tolist(), logits[0]))
        return logits

    def tokens_hook(step, canvas, logits):
        after.append((step, canvas[0].tolist(), None if logits is None else logits[0]))
        return canvas

    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True, generation_logits_hook_func=logits_hook, generation_tokens_hook_func=tokens_hook)
    [result] = generate(model, tiny_tokenizer, [PROMPTS[0]], params, trace=True)
    [plain] = generate(model, tiny_tokenizer, [PROMPTS[0]], SamplingParams(max_new_tokens=NEW, ignore_eos=True), trace=True)
    assert result.ids == plain.ids and [each[0] for each in after] == [None, *range(1, NEW + 1)]
    canvases = [[MASK if id is None else id for id in step.canvas] for step in steps_in(plain)]
    assert [canvas for _, canvas, _ in after] == [[MASK] * NEW, *canvases] and [canvas for _, canvas, _ in seen] == [[MASK] * NEW, *canvases[:-1]]
    for (_, canvas, logits), (_, _, again) in zip(seen, after[1:], strict=True):
        own = range(canvas.index(MASK) // (block or NEW) * (block or NEW), (canvas.index(MASK) // (block or NEW) + 1) * (block or NEW))
        want = canvas_logits(model, PROMPTS[0], canvas, own.stop)
        for at in range(NEW):
            asked = at in own and canvas[at] == MASK
            torch.testing.assert_close(logits[at], want[at] if asked else torch.zeros(128, dtype=torch.float64))
        assert torch.equal(logits, again)


def test_tokens_are_chosen_by_what_the_logits_hook_returns(denoiser, tiny_tokenizer):
    def to_forty(step, canvas, logits):
        logits[:, 1::2, 40] += 1e4
        return logits

    hooked = SamplingParams(max_new_tokens=NEW, ignore_eos=True, generation_logits_hook_func=to_forty, logprobs=0)
    plain = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    model = denoiser()
    [first, second] = generate(model, tiny_tokenizer, PROMPTS[:1] * 2, [hooked, plain])
    assert first.ids[1::2] == [40] * 3 and 40 not in first.ids[::2] and first.logprobs[1::2] == [0.0] * 3
    assert all(each.logprob < -1 for each in first.top_logprobs[1::2])  # what the model itself thinks
    assert second.ids == generate(model, tiny_tokenizer, PROMPTS[:1], plain)[0].ids
    to_mask = SamplingParams(max_new_tokens=NEW, ignore_eos=True, generation_logits_hook_func=lambda step, canvas, logits: logits + 1e4 * (torch.arange(128) == MASK))
    assert MASK not in generate(model, tiny_tokenizer, PROMPTS[:1], to_mask)[0].ids


def test_tokens_that_a_hook_puts_are_certain_and_seen_from_the_next_pass_on(denoiser, tiny_tokenizer):
    def hook(step, canvas, logits):
        if step is None:
            canvas[0, -2:] = torch.tensor([50, 51])
        if step == 2:  # whatever stands there
            canvas[0, 2] = 52
        return canvas

    model = denoiser()
    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True, generation_tokens_hook_func=hook, logprobs=1)
    events = list(stream(model, tiny_tokenizer, PROMPTS[1], params, trace=True))
    steps = [each.what for each in events if type(each).__name__ == "Observed" and type(each.what).__name__ == "DiffusionStep"]
    canvas, found = [MASK] * 4 + [50, 51], []
    for step in range(1, len(steps) + 1):
        logits = canvas_logits(model, PROMPTS[1], canvas, NEW)
        logits[:, MASK] = -torch.inf
        probs = logits.softmax(dim=-1)
        at = min((at for at in range(NEW) if canvas[at] == MASK), key=lambda at: -torch.special.xlogy(probs[at], probs[at]).sum().item())
        canvas[at] = logits[at].argmax().item()
        if step == 2:
            canvas[2] = 52
        found.append([None if id == MASK else id for id in canvas])
    assert [list(step.canvas) for step in steps] == found and MASK not in canvas
    told = [each for each in events if isinstance(each, Committed)]
    assert [each.id for each in told] == canvas and told[2].logprob == told[5].logprob == 0.0 and told[5].top_logprobs.id == 51
    assert {(each.position, each.id, each.probability) for each in events if isinstance(each, Provisional)} >= {(4, 50, 1.0), (5, 51, 1.0)}


def test_a_hook_may_fill_the_whole_canvas_or_end_it_and_no_pass_is_run(denoiser, tiny_tokenizer):
    model = denoiser()
    whole = SamplingParams(max_new_tokens=3, generation_tokens_hook_func=lambda step, canvas, logits: torch.tensor([[40, 41, 42]]))
    ended = SamplingParams(max_new_tokens=3, generation_tokens_hook_func=lambda step, canvas, logits: torch.tensor([[40, 2, MASK]]))
    first, second = generate(model, tiny_tokenizer, PROMPTS[:2], [whole, ended], trace=True)
    assert (first.ids, first.finish_reason, steps_in(first)) == ([40, 41, 42], "length", [])
    assert (second.ids, second.finish_reason, steps_in(second)) == ([40, 2], "eos", [])


def published_first(step, canvas, logits):
    canvas[0, 0] = 40 + (step or 0)
    return canvas


def masks_again(step, canvas, logits):
    canvas[0, -1] = 40 if step is None else MASK
    return canvas


WRONG = [
    ("tokens", published_first, "generation_tokens_hook_func published_first changes position 0 of the answer, but its first [1-9] tokens are published"),
    ("tokens", masks_again, "generation_tokens_hook_func masks_again makes a mask of position 5: it may put tokens, and the setting remask takes some back"),
    ("tokens", lambda step, canvas, logits: canvas + 128, "puts the id 255 at position 0, but the model's 128 ids begin at 0"),
    ("tokens", lambda step, canvas, logits: canvas[0], r"must return a tensor of shape \(1, 6\), ids, got \(6,\) of int64"),
    ("tokens", lambda step, canvas, logits: None, r"must return a tensor of shape \(1, 6\), ids, got NoneType"),
    ("tokens", lambda step, canvas: canvas, "raised TypeError"),
    ("logits", lambda step, canvas, logits: logits[0], r"must return a tensor of shape \(1, 6, 128\), logits, got \(6, 128\)"),
    ("logits", lambda step, canvas, logits: logits.argmax(dim=-1), r"logits, got \(1, 6\) of int64"),
    ("logits", lambda step, canvas, logits: logits / 0, "returned nan or infinity in step 1"),
    ("logits", lambda step, canvas, logits: 1 / 0, "raised ZeroDivisionError"),
    ("logits", lambda step, canvas, logits: logits - torch.inf, "not finite"),
]


def test_a_mistake_of_a_hook_ends_its_request_alone_and_says_what_it_is(denoiser, tiny_tokenizer):
    model, plain = denoiser(), SamplingParams(max_new_tokens=NEW, ignore_eos=True, temperature=1.0, seed=1)
    params = [SamplingParams(max_new_tokens=NEW, ignore_eos=True, **{f"generation_{kind}_hook_func": hook}) for kind, hook, _ in WRONG]
    results = generate(model, tiny_tokenizer, [PROMPTS[0]] * (len(WRONG) + 1), [*params, plain])
    for result, (_, _, reason) in zip(results, WRONG):
        assert result.finish_reason == "error"
        assert re.search(reason, result.error), result.error
    assert results[-1].ids == generate(model, tiny_tokenizer, PROMPTS[:1], plain)[0].ids
