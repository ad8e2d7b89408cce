"""An end that is certain ends an answer: no pass is for what is behind it; and what helps where a model floods its canvas with ends."""

import pytest
import torch

from seodang.infer import SamplingParams, generate

from .conftest import MASK, Speaker, greedy
from .test_denoising import KINDS, PROMPTS, steps_in

NEW = 8


@pytest.mark.parametrize("attention, block", KINDS)
def test_with_an_end_every_step_is_still_that_of_a_plain_loop_and_none_is_for_what_is_behind_it(denoiser, tiny_tokenizer, attention, block):
    model = denoiser(attention, 1, block)
    asked = [{}, {"steps": 4}, {"eos_penalty": 1.0, "alg": "topk_margin"}, {"eos_penalty": 0.02, "alg": "low_confidence", "steps": 5}]
    asked += [{"confidence_threshold": 0.05, "eos_penalty": 0.03}, {"entropy_bound": 8.0}, {"block_length": 3, "steps": 5}]
    cases = [(prompt, settings) for prompt in PROMPTS for settings in asked if block is None or "block_length" not in settings]
    ends = [{*greedy(model, prompt, NEW)[-1][3:6:2]} for prompt, _ in cases]  # tokens that it says without an end
    params = [SamplingParams(max_new_tokens=NEW, ignore_eos=True, stop_token_ids=[*own], **settings) for (_, settings), own in zip(cases, ends)]
    sooner = 0
    for (prompt, settings), own, result in zip(cases, ends, generate(model, tiny_tokenizer, [prompt for prompt, _ in cases], params, trace=True)):
        want = greedy(model, prompt, NEW, **settings, ends=own)
        assert [list(step.canvas) for step in steps_in(result)] == want, settings
        end = next((at for at, id in enumerate(want[-1]) if id in own), NEW - 1)
        assert result.ids == want[-1][: end + 1] and result.finish_reason == ("stop" if want[-1][end] in own else "length")
        sooner += None in want[-1]
    assert sooner > len(cases) / 3


END, LONG = 4, 16
SAID = [0, 1, 2, 3]


class Flooding(Speaker):
    """Says 0 1 2 3 and an end, but is surer of ends than of the rest, and all the more where one is certain on the right: so they spread to the left."""

    def __init__(self):
        super().__init__(6, 5, LONG)

    def conditionals(self, state):
        probs = torch.full((LONG, 6), 0.01, dtype=torch.float64)
        for at in range(LONG):
            right = state[at + 1] if at + 1 < LONG else END
            probs[at, END] = 0.95 if right == END else 0.9 if at >= len(SAID) else 0.3
            if at < len(SAID) and right != END:
                probs[at, SAID[at]] = 0.6
        return probs.log()


def flooded(tokenizer, **settings) -> tuple[list[int], int]:
    runner = Flooding()
    generation = runner.asked([0], SamplingParams(max_new_tokens=LONG, **settings), tokenizer, frozenset({END}))
    return generation.result.ids, runner.passes


@pytest.mark.parametrize("alg", ["entropy", "topk_margin", "maskgit_plus", "low_confidence"])
def test_a_flood_of_ends_cuts_an_answer_off_and_blocks_and_a_penalty_each_help(tiny_tokenizer, alg):
    assert flooded(tiny_tokenizer, alg=alg)[0] == [END]  # one token a pass: up to the first position
    assert flooded(tiny_tokenizer, alg=alg, steps=8)[0] == [0, 1, END]
    assert flooded(tiny_tokenizer, alg=alg, steps=8, block_length=4) == ([*SAID, END], 3)  # of the second block a pass, of the others none
    assert flooded(tiny_tokenizer, alg=alg, steps=8, eos_penalty=2.0) == ([*SAID, END], 3)
    assert flooded(tiny_tokenizer, alg=alg, confidence_threshold=0.5) == ([*SAID, END], 1)
    assert flooded(tiny_tokenizer, alg=alg, confidence_threshold=0.92)[0] == [END]
    assert flooded(tiny_tokenizer, alg=alg, confidence_threshold=0.85) == ([END], 5)
    assert flooded(tiny_tokenizer, alg=alg, confidence_threshold=0.85, eos_penalty=2.0) == ([*SAID, END], 5)  # where only ends are left, all come at once


def test_a_penalty_changes_when_ends_come_and_not_what_is_chosen(denoiser, tiny_tokenizer):
    model, settings = denoiser(), {"max_new_tokens": NEW, "steps": 1, "logit_bias": {2: 2.0}, "ignore_eos": False}
    plain, late = (generate(model, tiny_tokenizer, PROMPTS, SamplingParams(**settings, eos_penalty=penalty)) for penalty in (None, 5.0))
    assert [each.ids for each in plain] == [each.ids for each in late] and [each.logprobs for each in plain] == [each.logprobs for each in late]


def test_an_end_may_be_taken_back_by_remasking_so_what_is_behind_it_is_filled_in(denoiser, tiny_tokenizer):
    model = denoiser()
    params = SamplingParams(max_new_tokens=NEW, alg="origin", steps=6, remask=1.0, temperature=1.0, logit_bias={2: 3.0}, num_return_sequences=8, seed=3)
    results = generate(model, tiny_tokenizer, [PROMPTS[0]], params, trace=True)
    taken_back = 0
    for result in results:
        before = (None,) * NEW
        for step in steps_in(result, result.choice):
            gone = {at for at, id in enumerate(before) if id is not None and step.canvas[at] is None}
            assert gone <= {*step.remasked} and all(step.canvas[at] is None or at in {each[0] for each in step.committed} for at in step.remasked)
            taken_back += any(before[at] == 2 for at in gone)
            before = step.canvas
        assert result.finish_reason == ("eos" if 2 in before else "length") and MASK not in result.ids
        assert result.ids == list(before[: before.index(2) + 1] if 2 in before else before)
    assert taken_back
