"""With blocks of one token a canvas is filled from left to right, and takes whatever looks back: grammars, penalties, filters of the caller's own."""

import json
import re

import pytest
import torch

from seodang.infer import SamplingParams, generate

from .conftest import MASK
from .plain_loop import one_by_one, said

PROMPT = [20, 21, 22]
EVERY = list(range(3, MASK))


def repeated(canvas, at, logits):
    changed = logits.clone()
    seen = sorted({*PROMPT, *canvas[:at]})
    changed[seen] = torch.where(logits[seen] > 0, logits[seen] / 3, logits[seen] * 3)
    return changed


def counted(canvas, at, logits):
    changed = logits.clone()
    for id in canvas[:at]:
        changed[id] -= 40.0
    return changed


def own(logits, ids):
    return logits + 50.0 * (torch.arange(128) % 3 == ids.shape[1] % 3)


WAYS = [
    ({"repetition_penalty": 3.0}, None, repeated),
    ({"frequency_penalty": 40.0}, None, counted),
    ({"no_repeat_ngram_size": 1}, lambda canvas, at: [id for id in EVERY if id not in (*PROMPT, *canvas[:at])], None),
    ({"bad_words_ids": [[22, 111], [111, 103], [6, 6]]}, lambda canvas, at: [id for id in EVERY if [[*PROMPT, *canvas][at + 2], id] not in [[22, 111], [111, 103], [6, 6]]], None),
    ({"filters": [own]}, None, lambda canvas, at, logits: logits + 50.0 * (torch.arange(128) % 3 == (at + 3) % 3)),
    ({"prefix_allowed_tokens_fn": lambda ids: [ids[-1] + 1, ids[-1] + 5]}, lambda canvas, at: [[*PROMPT, *canvas][at + 2] + step for step in (1, 5)], None),
]


@pytest.mark.parametrize("attention, shift, block", [("bidirectional", 1, None), ("prompt_causal", 0, None), ("block_causal", 1, 4)])
def test_what_looks_back_sees_all_before_a_token_and_given_ones_among_it(denoiser, tiny_tokenizer, attention, shift, block):
    model = denoiser(attention, shift, block)
    given = {0: 30, 3: 31}
    usual = {"max_new_tokens": 6, "suppress_tokens": [0, 1, 2], "block_length": 1, "forced_text": given}
    results = generate(model, tiny_tokenizer, [PROMPT] * len(WAYS), [SamplingParams(**usual, **settings) for settings, *_ in WAYS])
    for (settings, allowed, change), result in zip(WAYS, results):
        want = one_by_one(model, PROMPT, 6, allowed or (lambda canvas, at: EVERY), given, in_order=True, change=change)
        assert result.ids == want, settings


def test_grammars_hold_from_left_to_right(denoiser, tiny_tokenizer):
    model = denoiser("bidirectional", 1)
    usual = {"max_new_tokens": 30, "block_length": 1, "temperature": 1.0}
    asked = [{"regex": "[a-d]{2,6}!"}, {"regex": "ab[a-d]{2,6}!", "prefix": "ab"}, {"json_schema": {"enum": ["ab", 17]}}, {"grammar": 'start: ("x" | "y")+ "z"'}, {"choice": ["ab", "cde"]}]
    for seed in range(3):
        params = [SamplingParams(**usual, **each, seed=seed) for each in asked]
        regex, begun, schema, grammar, choice = generate(model, tiny_tokenizer, [PROMPT] * len(asked), params)
        assert re.fullmatch("[a-d]{2,6}!", regex.text) and re.fullmatch("ab[a-d]{2,6}!", begun.text)
        assert json.loads(schema.text) in ("ab", 17) and choice.text in ("ab", "cde")
        assert re.fullmatch("[xy]+z" if grammar.finish_reason == "eos" else "[xy]+z?", grammar.text)


def test_thinking_ends_by_its_budget_and_a_grammar_follows(denoiser, tiny_tokenizer):
    model = denoiser("prompt_causal", 0)
    params = SamplingParams(max_new_tokens=16, block_length=1, thinking_budget=3, thinking_end="!", regex="[ab]{3}", ignore_eos=False, temperature=1.0, seed=1)
    [result] = generate(model, tiny_tokenizer, [PROMPT], params)
    assert re.fullmatch(".{0,3}![ab]{3}", result.text, re.DOTALL) and len(said(tiny_tokenizer, result.text)) >= 4
