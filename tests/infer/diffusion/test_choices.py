"""Answers by diffusion that are one of several texts, filled in in any order; and filters that hang on a token's own place alone."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import Observed, SamplingParams, generate
from seodang.infer.constraints.candidates import Candidates
from seodang.infer.filters.penalties import exponential_decay
from seodang.infer.requests.trace import DiffusionStep

from .conftest import MASK
from .plain_loop import one_by_one, said

END, OTHER = 2, 3  # two tokens that end an answer
PROMPT = [20, 21, 22]
TEXTS = ["abc", "abd", "b", "cbdde", "ca"]


def steps_in(result) -> list[DiffusionStep]:
    return [each.what for each in result.trace if isinstance(each, Observed) and isinstance(each.what, DiffusionStep)]


def test_each_certain_token_leaves_what_agrees_with_it():
    candidates = Candidates("choice", [[5, 6, 7], [5, 8], [9, 8, 7]], (END, OTHER), END)
    assert [candidates.at(position) for position in range(5)] == [[5, 9], [6, 8], [7, END, OTHER], [END, OTHER], [END, OTHER]]
    assert candidates.decided(range(6)) == {4: END, 5: END}  # the first end may be either, what is behind it is filled up
    candidates.see({2: 7})
    assert [candidates.at(position) for position in range(3)] == [[5, 9], [6, 8], [7]]
    candidates.add(1, 8)
    assert candidates.at(0) == [9] and candidates.decided(range(3)) == {0: 9, 1: 8, 2: 7}
    with pytest.raises(UserError, match="choice has no text that goes with the token 5 at position 0"):
        candidates.add(0, 5)
    candidates.see({2: OTHER})
    assert candidates.decided(range(5)) == {0: 5, 1: 8, 3: END, 4: END}
    assert candidates.takes([9, 8]) and not candidates.takes([9, 6]) and not candidates.takes([5, 8, 7, 7])
    other = candidates.fork()
    other.see({})
    assert candidates.at(0) == [5] and other.at(0) == [5, 9]


def likeliest_choice(model, tokenizer, length: int, texts: list[str], prefix: str = "") -> list[int]:
    """What a plain loop finds that asks at each pass which of the texts, filled up with ends, agree with what is certain."""
    rows = [(said(tokenizer, text) + [END] * length)[:length] for text in texts if text.startswith(prefix)]

    def allowed(canvas, at):
        return sorted({row[at] for row in rows if all(id in (None, own) for id, own in zip(canvas, row))})

    return one_by_one(model, PROMPT, length, allowed, given=dict(enumerate(said(tokenizer, prefix))), decided=True)


@pytest.mark.parametrize("attention, block, shift", [("bidirectional", None, 1), ("prompt_causal", None, 0), ("block_causal", 2, 1)])
def test_a_choice_is_that_of_a_loop_over_the_texts_that_agree(denoiser, tiny_tokenizer, attention, block, shift):
    for seed in range(3):
        model = denoiser(attention, shift, block, seed=seed)
        asked = [{"choice": TEXTS}, {"trie": TEXTS}, {"trie": [said(tiny_tokenizer, text) for text in TEXTS]}, {"choice": TEXTS, "prefix": "c"}]
        for settings, result in zip(asked, generate(model, tiny_tokenizer, [PROMPT] * 4, [SamplingParams(max_new_tokens=7, **each) for each in asked])):
            assert result.ids == likeliest_choice(model, tiny_tokenizer, 7, TEXTS, settings.get("prefix", ""))
            assert result.text in TEXTS and result.finish_reason == "eos"


WAYS = [
    {"steps": 1}, {"steps": 2, "alg": "maskgit_plus"}, {"alg": "origin", "steps": 2}, {"alg": "topk_margin", "block_length": 2}, {"confidence_threshold": 0.2},
    {"remask": 0.9, "steps": 4}, {"alg": "random", "steps": 1}, {"entropy_bound": 9.0},
]  # fmt: skip


def test_tokens_that_become_certain_in_one_pass_are_those_of_one_text(denoiser, tiny_tokenizer):
    model, found = denoiser("bidirectional", 1), set()
    for way in WAYS:
        params = SamplingParams(max_new_tokens=6, choice=TEXTS, temperature=3.0, num_return_sequences=12, seed=1, **way)
        results = generate(model, tiny_tokenizer, [PROMPT], params)
        assert all(result.text in TEXTS for result in results), way
        found |= {result.text for result in results}
    assert len(found) == len(TEXTS)
    [plain] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=6, choice=TEXTS), trace=True)
    assert [step.canvas.count(None) for step in steps_in(plain)] == sorted({step.canvas.count(None) for step in steps_in(plain)}, reverse=True)
    assert len(steps_in(plain)) < 6  # what all texts that are left have in common needs no pass


def test_one_text_needs_no_pass_and_one_as_long_as_the_canvas_no_end(denoiser, tiny_tokenizer):
    model = denoiser("bidirectional")
    one, long = generate(model, tiny_tokenizer, [PROMPT] * 2, [SamplingParams(max_new_tokens=9, choice="abc", logprobs=0), SamplingParams(max_new_tokens=5, choice=["cbdde", "cbddf"])], trace=True)
    assert one.ids == [*said(tiny_tokenizer, "abc"), END] and not steps_in(one) and one.logprobs == [0.0] * 4 and one.finish_reason == "eos"
    assert long.text[:4] == "cbdd" and len(long.ids) == 5 and len(steps_in(long)) == 1 and long.finish_reason == "length"
    [ended] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=6, trie=[[68, END], [68, 69, END]], logit_bias={69: 99.0}))
    assert ended.ids == [68, 69, END]
    [least] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=6, choice=["a", "abcd"], min_new_tokens=2))
    assert least.text == "abcd"


EVERY = [id for id in range(MASK) if id != 0]
PLACED = [
    ({"min_new_tokens": 4, "logit_bias": {END: 30.0}}, lambda at: [id for id in EVERY if id != END or at >= 4]),
    ({"min_length": 6, "logit_bias": {END: 30.0}}, lambda at: [id for id in EVERY if id != END or at >= 3]),
    ({"forced_bos_token_id": 38}, lambda at: [38] if at == 0 else EVERY),
    ({"forced_eos_token_id": 40}, lambda at: [40] if at == 5 else EVERY),
    ({"begin_suppress_tokens": list(range(3, 90))}, lambda at: [id for id in EVERY if id not in range(3, 90) or at > 0]),
    ({"bad_words": list("abcdefghij")}, lambda at: [id for id in EVERY if id not in range(68, 78)]),
]


@pytest.mark.parametrize("settings, allowed", PLACED)
def test_a_filter_that_hangs_on_a_tokens_place_counts_for_each_position(denoiser, tiny_tokenizer, settings, allowed):
    model, bias = denoiser("bidirectional"), torch.zeros(128, dtype=torch.double)
    for id, more in settings.get("logit_bias", {}).items():
        bias[id] = more
    [result] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=6, suppress_tokens=[0], **settings))
    assert result.ids == one_by_one(model, PROMPT, 6, lambda canvas, at: allowed(at), change=lambda canvas, at, logits: logits + bias)


def test_a_penalty_of_length_and_one_of_the_prompt_need_no_history(denoiser, tiny_tokenizer):
    model = denoiser("bidirectional")
    factor = torch.tensor([[3.0]])

    def later(canvas, at, logits):
        return exponential_decay(logits[None], torch.tensor([[1.0]]), factor, [at], [[END]])[0]

    def unlike(canvas, at, logits):
        changed = logits.clone()
        changed[PROMPT] = torch.where(logits[PROMPT] > 0, logits[PROMPT] * 9, logits[PROMPT] / 9)
        return changed

    for settings, change in (({"exponential_decay_length_penalty": (1, 3.0)}, later), ({"encoder_repetition_penalty": 9.0}, unlike)):
        [result] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(max_new_tokens=6, suppress_tokens=[0], **settings))
        assert result.ids == one_by_one(model, PROMPT, 6, lambda canvas, at: EVERY, change=change)
