"""Answers of which some is given: prefixes, suffixes, templates with gaps and forced tokens stay, and what is filled in is what a plain loop finds around them."""

import pytest

from seodang.data.errors import UserError
from seodang.infer import Committed, Provisional, SamplingParams, generate, stream
from seodang.infer.constraints.pinned import laid_out
from seodang.infer.runners.open import open_runner

from .conftest import MASK
from .plain_loop import one_by_one, said

END = 2
PROMPTS = [[5, 6, 7, 8, 5, 6], [20, 21, 22], [9, 9, MASK, 9, 10, 11, 12, 30, 31, 32, 33]]
CASES = [
    pytest.param(*kind, shift, marks=() if shift == usual else pytest.mark.full)
    for *kind, usual in (("bidirectional", None, 1), ("prompt_causal", None, 0), ("block_causal", 3, 1)) for shift in (0, 1)
]  # fmt: skip


def filled(model, prompt: list[int], length: int, given: dict[int, int]) -> list[int]:
    """The likeliest tokens around given ones, no end before the last of these."""
    last = max(given, default=0)
    return one_by_one(model, prompt, length, lambda canvas, at: [id for id in range(MASK) if id != END or at > last], given)


@pytest.mark.parametrize("attention, block, shift", CASES)
def test_gaps_are_filled_as_by_a_plain_loop_and_what_is_given_stays_in_any_company(denoiser, tiny_tokenizer, attention, block, shift):
    model = denoiser(attention, shift, block)
    ab, so, [dot] = (said(tiny_tokenizer, text) for text in ("ab", "so", "."))
    asked = [
        (SamplingParams(template=["ab", 3, "so", 2, "."]), 10, {**dict(enumerate(ab)), **dict(enumerate(so, 5)), 9: dot}),
        (SamplingParams(template="{2}so{1}"), 5, dict(enumerate(so, 2))),
        (SamplingParams(max_new_tokens=8, prefix="ab", suffix="."), 8, {**dict(enumerate(ab)), 7: dot}),
        (SamplingParams(max_new_tokens=7, forced_text={2: 40, 4: "so"}), 7, {2: 40, 4: so[0], 5: so[1]}),
    ]
    asked = [(prompt, params, length, given) for params, length, given in asked for prompt in PROMPTS]
    together = generate(model, tiny_tokenizer, [each[0] for each in asked], [each[1] for each in asked], max_rows=5)
    for (prompt, params, length, given), result in zip(asked, together, strict=True):
        want = filled(model, prompt, length, given)
        assert result.ids == want and [want[at] for at in given] == list(given.values())
        [alone] = generate(model, tiny_tokenizer, [prompt], params)
        assert (alone.ids, alone.text, alone.finish_reason) == (result.ids, result.text, result.finish_reason)


def test_the_canvas_that_is_read_is_prompt_and_given_tokens_with_masks_in_the_gaps(denoiser, tiny_tokenizer, monkeypatch):
    model, fed = denoiser("bidirectional"), []
    kind = type(open_runner(model))
    observe = kind.observe
    monkeypatch.setattr(kind, "observe", lambda self, slots, ids, *rest: fed.extend(map(list, ids)) or observe(self, slots, ids, *rest))
    params = [SamplingParams(template=["a", 2, "b"]), SamplingParams(template=[1, "ab", 4, "c"]), SamplingParams(max_new_tokens=5, prefix="ab", suffix="c")]
    generate(model, tiny_tokenizer, PROMPTS, params)
    a, b, c = said(tiny_tokenizer, "abc")
    shown = [[a, MASK, MASK, b], [MASK, a, b, MASK, MASK, MASK, MASK, c], [a, b, MASK, MASK, c]]
    assert fed[:3] == [prompt + canvas for prompt, canvas in zip(PROMPTS, shown)]
    assert all(row[: len(prompt)] == prompt for row, prompt in zip(fed, PROMPTS))
    assert len(fed) == 2 + 5 + 2  # a pass for each position of the gaps, none for what is given


def test_no_end_comes_before_given_text_and_what_ends_with_it_is_whole(denoiser, tiny_tokenizer):
    model = denoiser("bidirectional")
    ends = {"logit_bias": {END: 1e5}}
    between, behind, last, ignored = generate(
        model, tiny_tokenizer, [PROMPTS[0]] * 4,
        [
            SamplingParams(template=["a", 3, "b"], **ends), SamplingParams(template=["a", 2, "b", 4], **ends),
            SamplingParams(max_new_tokens=6, forced_text={2: END}), SamplingParams(template=["a", 3], suppress_tokens=[END]),
        ],
    )  # fmt: skip
    assert END not in between.ids and between.text[0] + between.text[-1] == "ab" and (len(between.ids), between.finish_reason) == (5, "stop")
    assert behind.ids[4] == END and END not in behind.ids[:4] and behind.text[-1] == "b" and behind.finish_reason == "eos"  # all behind it is dropped
    assert len(last.ids) == 3 and last.ids[-1] == END and last.finish_reason == "eos"  # an end may be given, too
    assert (len(ignored.ids), ignored.finish_reason) == (4, "length")


def test_given_tokens_are_certain_and_are_streamed_as_soon_as_all_before_them_is(denoiser, tiny_tokenizer):
    model = denoiser("prompt_causal", 1)
    params = SamplingParams(template=["ab", 2, "c"], logprobs=1)
    events = list(stream(model, tiny_tokenizer, PROMPTS[1], params))
    told = [event for event in events if isinstance(event, Committed)]
    assert [event.position for event in told] == [0, 1, 2, 3, 4] and [event.text for event in told[:2]] == ["a", "b"]
    assert [event.logprob == 0 for event in told] == [True, True, False, False, True]
    assert [len(event.top_logprobs.top) for event in told] == [0, 0, 1, 1, 0] and told[4].top_logprobs.text == "c"
    assert events[:2] == told[:2] and events[2] == Provisional(0, 4, told[4].id, 1.0)  # before any pass
    [result] = generate(model, tiny_tokenizer, [PROMPTS[1]], params)
    assert result.ids == [event.id for event in told] and result.text == "".join(event.text for event in told)


def test_time_takes_nothing_of_what_is_given_before_the_first_token(denoiser, tiny_tokenizer):
    params = [SamplingParams(template=["ab", 3, "c"], max_time=1e-9), SamplingParams(max_new_tokens=6, prefix="ab", suffix="c", max_time=1e-9)]
    for result in generate(denoiser("bidirectional"), tiny_tokenizer, [PROMPTS[1]] * 2, params):
        assert len(result.ids) == 3 and result.text.startswith("ab") and result.finish_reason == "time"


def test_a_hook_cannot_change_what_is_given(denoiser, tiny_tokenizer):
    def hook(step, canvas, logits):
        canvas = canvas.clone()
        canvas[0, 3] = 50
        return canvas

    params = [SamplingParams(template=["ab", 2, "c"], generation_tokens_hook_func=hook), SamplingParams(template=["ab", 1, "c", 1], generation_tokens_hook_func=hook)]
    kept, changed = generate(denoiser("bidirectional"), tiny_tokenizer, [PROMPTS[1]] * 2, params)
    assert kept.ids[3] == 50 and kept.text[:2] + kept.text[-1] == "abc"
    assert changed.finish_reason == "error" and "hook changes position 3 of the answer, which is given" in changed.error


def test_the_space_before_a_gap_is_brought_by_its_first_token(tokenizer):
    layout = laid_out(tokenizer, ["The city of ", 2, " is in", 1, "Asia", 1, " \n"])
    begin, middle = said(tokenizer, "The city of"), said(tokenizer, " is in")
    assert layout.ids == dict(enumerate(begin)) | dict(enumerate(middle, 5)) | {8: said(tokenizer, "Asia")[0]} | dict(enumerate(said(tokenizer, " \n"), 10))
    assert layout.spaced == {3} and layout.length == 10 + len(said(tokenizer, " \n"))
    assert laid_out(tokenizer, ["a", "b", 2, 3]) == laid_out(tokenizer, ["ab", 5])
    indented = laid_out(tokenizer, ["def f():\n    ", 1])  # the tokenizer has one token for all of the white space
    assert [*indented.ids.values()] == said(tokenizer, "def f():\n   ") and indented.spaced == {len(indented.ids)}
    assert laid_out(tokenizer, [" ", 1]).spaced == {0} and not laid_out(tokenizer, [" ", 1]).ids


def test_a_text_that_ends_with_a_space_reads_right_with_the_real_tokens(fresh_tiny, tokenizer):
    from seodang.infer.runners.paradigm import Diffusion, declare

    model = fresh_tiny("llama", vocab_size=len(tokenizer))
    declare(model.config, Diffusion(MASK))
    results = generate(model, tokenizer, ["Where?"] * 2, [SamplingParams(template=["It is ", 2, ".", 1, "<|im_end|>."], seed=1, temperature=2.0), SamplingParams(template="{2} {1}.")])
    for result, texts in zip(results, (("It is ", ".<"), ("", "."))):
        assert result.text.startswith(texts[0]) and "  " not in result.text
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in results[0].ids and results[0].text.endswith("<|im_end|>.")
    first = tokenizer.decode(results[0].ids[2:3])
    assert first.startswith(" ") and results[0].text.startswith("It is" + first)
    assert tokenizer.decode(results[1].ids[2:3]).startswith(" ")


def bad(**settings) -> dict:
    return {"max_new_tokens": 8, **settings}


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"template": "no gap"}, "template='no gap' has no gap to be filled in"),
        ({"template": ["a", 0]}, "template has a gap of 0 tokens"),
        ({"template": ["a", -3, "b"]}, "template has a gap of -3 tokens"),
        ({"template": ["a", 2, ""]}, "template has an empty text"),
        ({"template": ["a", 1.5]}, "got the entry 1.5"),
        ({"template": ["a", 10**12, "b"]}, "template has 1000000000002 tokens, which with the 3 of prompt 1 is more than the 256 positions"),
        ({"template": ["a", 5], "max_length": 7}, "template has 6 tokens, which with the 3 of prompt 1 is more than max_length=7"),
        ({"template": ["a", 3, "b"], "max_new_tokens": 7}, "max_new_tokens=7 disagrees with template, which has 5 tokens"),
        ({"template": ["a", 3], "prefix": "b"}, "prefix='b' has no place beside template"),
        ({"template": ["a", 3], "suffix": "b"}, "suffix='b' has no place beside template"),
        ({"template": ["ab", 3], "forced_text": {1: 40}}, "forced_text at token 1 meets template, which is there already"),
        ({"template": ["ab", 3], "forced_text": {5: 40}}, "forced_text 40 at token 5 takes 1 tokens, but the template's length=5"),
        ({"template": ["ab", 3], "stop": "b"}, "template has 'ab', at which stop='b' would end the answer"),
        ({"template": ["a", "b", 3], "stop": "ab"}, "template has 'ab', at which stop='ab' would end the answer"),
        ({"template": ["ab", 3], "forced_bos_token_id": 9}, "forced_bos_token_id=9 is for token 0, which template gives"),
        ({"template": [3, "."], "forced_eos_token_id": 2}, "forced_eos_token_id=2 is for token 3, which template gives"),
        ({"template": [3, "."], "choice": ["a", "b"]}, "choice says what the whole answer is, so template cannot stand in it"),
        (bad(suffix="abcdefgh"), "suffix takes 8 tokens of the answer, but max_new_tokens=8"),
        (bad(suffix="abcd", prefix="abcd"), "suffix takes 4 tokens of the answer beside the prefix' 4, but max_new_tokens=8"),
        (bad(suffix="b", trie=["ab"]), "trie says what the whole answer is, so suffix cannot stand in it"),
        (bad(forced_text={8: 40}), "forced_text 40 at token 8 takes 1 tokens, but max_new_tokens=8"),
        (bad(forced_text={-1: 40}), "forced_text takes positions from 0"),
        (bad(forced_text={2: "ab", 3: 40}), "forced_text 40 at token 3 meets the one before"),
        (bad(forced_text={3: MASK}), "forced_text has the id 127 at token 3: it is the mask"),
        (bad(forced_text={3: 400}), "forced_text has the id 400, but the model's 128 ids begin at 0"),
        (bad(forced_text={2: 2, 5: 40}), "forced_text has the id 2 at token 2, which ends the answer before token 5"),
        (bad(forced_text=dict.fromkeys(range(8), 40)), "all 8 tokens of the answer are given"),
        (bad(prefix="a", forced_text={0: 40}), "forced_text at token 0 meets prefix"),
        (bad(regex="a+"), "regex hangs on the tokens before one, but .* or give block_length=1"),
        (bad(bad_words=["ab"]), "bad_words hangs on the tokens before one"),
        (bad(logit_bias={"ab": 1.0}), "logit_bias hangs on the tokens before one"),
        (bad(sequence_bias={(5, 6): 1.0}), "sequence_bias hangs on the tokens before one"),
        (bad(json_schema={}), "json_schema hangs on the tokens before one"),
        (bad(choice=["abcdefghi"]), "choice has a text of 9 tokens, but max_new_tokens=8"),
        (bad(choice=["ab", "c"], min_new_tokens=3), "min_new_tokens=3 asks for more than choice has"),
        (bad(choice=["ab", "c"], prefix="b"), "prefix='b' is no beginning that choice allows"),
        (bad(choice=["ab", "c"], forced_text={0: "a"}), "choice says what the whole answer is, so forced_text cannot stand in it"),
    ],
)
def test_what_cannot_be_filled_in_is_refused_by_name_before_any_pass(denoiser, tiny_tokenizer, monkeypatch, settings, reason):
    model = denoiser("bidirectional")
    monkeypatch.setattr(type(open_runner(model)), "observe", None)
    with pytest.raises(UserError, match=reason):
        generate(model, tiny_tokenizer, [PROMPTS[1]], SamplingParams(**settings))


@pytest.mark.parametrize("settings", [{"template": ["a", 2]}, {"suffix": "a"}])
def test_a_model_that_speaks_from_left_to_right_fills_nothing_in(tiny, tiny_tokenizer, settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))}=.* asks for diffusion, but this llama speaks from left to right"):
        generate(tiny("llama"), tiny_tokenizer, PROMPTS, SamplingParams(**settings))
