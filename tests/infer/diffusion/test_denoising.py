"""Answers by diffusion: what a plain loop over the model's own forward pass finds, in any company; prompts stay, masks never come."""

from dataclasses import replace

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import Committed, Finished, Observed, PrefixCache, Provisional, SamplingParams, embed, generate, score, stream
from seodang.infer.diffusion import denoising
from seodang.infer.engine import core
from seodang.infer.filters.pipeline import Filters
from seodang.infer.requests.trace import ChoiceTrace, DiffusionStep
from seodang.infer.runners.open import open_runner
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.runners.ragged import RaggedRunner

from .conftest import MASK, canvas_logits, greedy

PROMPTS = [[5, 6, 7, 8, 5, 6], [20, 21, 22], [9, 9, MASK, 9, 10, 11, 12, 30, 31, 32, 33]]  # one has the mask's own id
KINDS = [("bidirectional", None), ("prompt_causal", None), ("block_causal", 3)]
NEW = 8


def steps_in(result, choice: int = 0) -> list[DiffusionStep]:
    return [each.what for each in result.trace if isinstance(each, Observed) and isinstance(each.what, DiffusionStep) and each.choice == choice]


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("attention, block", KINDS)
def test_every_step_is_that_of_a_plain_loop_over_the_models_own_pass(denoiser, tiny_tokenizer, attention, block, shift):
    model = denoiser(attention, shift, block)
    asked = [
        {"alg": "entropy"}, {"alg": "topk_margin", "steps": 5}, {"alg": "maskgit_plus", "steps": 3}, {"alg": "low_confidence", "steps": 1},
        {"confidence_threshold": 0.08}, {"confidence_threshold": 1.5, "alg": "topk_margin"}, {"entropy_bound": 5.0, "alg": "maskgit_plus"},
        {"cfg_scale": 1.5, "steps": 4}, {"cfg_scale": 0.5, "confidence_threshold": 0.06, "alg": "low_confidence"},
    ]  # fmt: skip
    if block is None:
        asked += [{"block_length": 3, "steps": 5}, {"block_length": 5, "entropy_bound": 8.0}, {"block_length": 9, "cfg_scale": 2.0, "steps": 2}]
    cases = [(prompt, settings) for prompt in PROMPTS for settings in asked]
    params = [SamplingParams(max_new_tokens=NEW, ignore_eos=True, **settings) for _, settings in cases]
    found = []
    for (prompt, settings), result in zip(cases, generate(model, tiny_tokenizer, [prompt for prompt, _ in cases], params, trace=True)):
        want = greedy(model, prompt, NEW, **settings)
        assert [list(step.canvas) for step in steps_in(result)] == want, settings
        assert result.ids == want[-1] and result.finish_reason == "length"
        if settings in ({"confidence_threshold": 0.08}, {"entropy_bound": 5.0, "alg": "maskgit_plus"}):
            found.append(len(want))
    assert len({*found}) > 1, found


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("attention, block", KINDS[1:])
def test_a_short_prompt_goes_with_the_first_pass_of_its_answer_and_others_are_read_by_themselves(denoiser, tiny_tokenizer, monkeypatch, attention, block, shift):
    model, read = denoiser(attention, shift, block), []
    kind, params = type(open_runner(model)), SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    monkeypatch.setattr(kind, "observe", lambda self, slots, ids, *rest, own=kind.observe: read.append([len(new) for new in ids]) or own(self, slots, ids, *rest))
    first = block or NEW
    for prompt, own, by_itself in (
        (PROMPTS[0], params, False), ([5] * 129, params, True), (PROMPTS[0], replace(params, cfg_scale=1.0), True),
        (PROMPTS[0], replace(params, num_return_sequences=2, temperature=1.0, seed=3), True),
    ):  # fmt: skip
        read.clear()
        results = generate(model, tiny_tokenizer, [prompt], own)
        assert read[0] == [len(prompt)] * (2 if own.cfg_scale else 1) if by_itself else read[0] == [len(prompt) + first]
        assert len(read) == results[0].forwards + by_itself and read[1][0] == first
        if own == params:
            assert results[0].ids == greedy(model, prompt, NEW)[-1]


SETTINGS = [
    {"steps": 3, "logprobs": 2}, {"temperature": 1.0, "top_p": 0.9, "seed": 1, "num_return_sequences": 2},
    {"alg": "origin", "temperature": 0.8, "seed": 2, "logit_bias": {40: 3.0}}, {"alg": "topk_margin", "alg_temp": 0.3, "seed": 3, "num_return_sequences": 3},
    {"max_new_tokens": 3, "suppress_tokens": [63, 103, 14]},
    {"alg": "low_confidence", "temperature": 0.7, "seed": 4, "block_length": 3, "steps": 4}, {"alg": "random", "num_return_sequences": 2, "seed": 5},
    {"confidence_threshold": 0.05, "temperature": 0.3, "seed": 6, "logprobs": 1}, {"entropy_bound": 6.0, "top_k": 9, "seed": 7, "alg_temp": 0.2},
    {"remask": 0.8, "alg": "origin", "temperature": 1.0, "seed": 8, "steps": 5}, {"remask": 0.5, "seed": 9, "num_return_sequences": 2, "steps": 6},
    {"cfg_scale": 1.0, "temperature": 0.6, "seed": 10, "steps": 4, "num_return_sequences": 2, "logprobs": 1}, {"eos_penalty": 1.0, "logit_bias": {2: 4.0}},
]  # fmt: skip


@pytest.mark.parametrize("attention, block", KINDS)
def test_answers_are_the_same_in_any_company(denoiser, tiny_tokenizer, attention, block):
    model = denoiser(attention, 1, block)
    settings = [{name: value for name, value in each.items() if block is None or name != "block_length"} for each in SETTINGS]
    asked = [(prompt, SamplingParams(**{"max_new_tokens": NEW, **each})) for each in settings for prompt in PROMPTS]
    together = generate(model, tiny_tokenizer, [prompt for prompt, _ in asked], [params for _, params in asked], max_rows=7)
    for place, (prompt, params) in enumerate(asked):
        own = [each for each in together if each.prompt_index == place]
        for alone, result in zip(generate(model, tiny_tokenizer, [prompt], params), own, strict=True):
            assert result.ids == alone.ids and result.text == alone.text and MASK not in result.ids
            assert result.logprobs == pytest.approx(alone.logprobs, abs=1e-9)
            assert len(alone.top_logprobs) == (len(alone.ids) if params.logprobs else 0)


@pytest.mark.parametrize("order, steps, counts", [("entropy", 3, [3, 3, 2]), ("maskgit_plus", 30, [1] * 8), ("origin", 3, None), ("entropy", None, [1] * 8)])
def test_each_pass_makes_certain_what_the_schedule_says_and_takes_nothing_back(denoiser, tiny_tokenizer, order, steps, counts):
    model = denoiser("bidirectional", 1)
    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True, alg=order, steps=steps, temperature=1.0, seed=5)
    events = list(stream(model, tiny_tokenizer, PROMPTS[2], params, trace=True))
    found = [each.what for each in events if isinstance(each, Observed) and isinstance(each.what, DiffusionStep)]
    assert [step.step for step in found] == [step.forwards for step in found] == list(range(1, len(found) + 1))
    before = (None,) * NEW
    for step in found:
        new = {position: id for position, id, _ in step.committed}
        assert new and all(before[position] is None and id != MASK for position, id in new.items())
        assert step.canvas == tuple(new.get(position, id) for position, id in enumerate(before))
        before = step.canvas
    assert counts is None or [len(step.committed) for step in found] == counts
    committed = [each for each in events if isinstance(each, Committed)]
    assert [each.id for each in committed] == list(before) and [each.position for each in committed] == list(range(NEW))
    assert isinstance(events[-1], Finished)
    told, canvas, beyond = {}, (None,) * NEW, 0
    for event in events:
        if isinstance(event, Observed) and isinstance(event.what, DiffusionStep):
            assert all(told[position] == id for position, id in enumerate(canvas) if id is not None and position >= beyond)  # certain, not published
            canvas = event.what.canvas
        elif isinstance(event, Committed):
            beyond = event.position + 1
        elif isinstance(event, Provisional):
            told[event.position] = event.id
            assert event.position >= beyond and canvas[event.position] in (None, event.id)


def test_each_row_is_fed_its_own_prompt_and_nothing_of_it_is_ever_masked(denoiser, tiny_tokenizer, monkeypatch):
    model, fed = denoiser("bidirectional"), []
    kind = type(open_runner(model))
    observe = kind.observe
    monkeypatch.setattr(kind, "observe", lambda self, slots, ids, *rest: fed.extend(map(list, ids)) or observe(self, slots, ids, *rest))
    generate(model, tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=4, steps=2, ignore_eos=True))
    assert [row[:-4] for row in fed] == PROMPTS * 2  # two passes
    assert [row[-4:].count(MASK) for row in fed] == [4] * 3 + [2] * 3


@pytest.mark.parametrize("attention, block", KINDS[1:])
def test_a_prompt_that_was_read_before_is_gone_on_from_but_never_a_canvas(denoiser, tiny_tokenizer, attention, block):
    model, params = denoiser(attention, 1, block), SamplingParams(max_new_tokens=NEW, ignore_eos=True, steps=4)
    cache = PrefixCache(model)
    prompt = [*range(5, 90)]
    [first, same] = generate(model, tiny_tokenizer, [prompt, prompt], params, prefix_cache=cache)  # the second waits for the first to read it
    longer = [*prompt, *first.ids, 30, 31]
    [second] = generate(model, tiny_tokenizer, [longer], params, prefix_cache=cache)
    assert (first.cached_tokens, same.cached_tokens, second.cached_tokens) == (0, len(prompt) - 1, len(prompt))
    assert first.ids == same.ids == generate(model, tiny_tokenizer, [prompt], params)[0].ids
    assert second.ids == generate(model, tiny_tokenizer, [longer], params)[0].ids
    assert cache.runner.live == len(cache.slots)
    with pytest.raises(UserError, match="hangs on all that follows"):
        PrefixCache(denoiser("bidirectional"))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("attention, block", KINDS)
def test_likelihoods_are_the_models_own_in_the_pass_that_chose_the_token(denoiser, tiny_tokenizer, attention, block, shift):
    """In company, with prompts of unequal lengths: of what is kept in the cache as of a pass of the model over everything."""
    model = denoiser(attention, shift, block)
    params = SamplingParams(max_new_tokens=6, ignore_eos=True, steps=3, logprobs=3, temperature=0.5, seed=4)
    prompts = [*PROMPTS, [*range(40, 75)], PROMPTS[1], PROMPTS[0]]
    each = [*[params] * 4, replace(params, confidence_threshold=0.04, steps=None), replace(params, forced_text={0: 50, 1: 51})]
    for prompt, result in zip(prompts, generate(model, tiny_tokenizer, prompts, each, trace=True), strict=True):
        canvas = [50, 51, *[MASK] * 4] if result.prompt_index == 5 else [MASK] * 6
        for step in steps_in(result):
            end = min(range(block or 6, 7, block or 6), key=lambda end: (step.committed[-1][0] >= end, end))
            want = canvas_logits(model, prompt, canvas, end).log_softmax(dim=-1)
            for position, id, _ in step.committed:
                told, (likeliest, ids) = result.top_logprobs[position], want[position].topk(3)
                assert told.id == id and told.logprob == pytest.approx(want[position, id].item(), abs=1e-11)
                assert [one.id for one in told.top] == ids.tolist() and [one.logprob for one in told.top] == pytest.approx(likeliest.tolist(), abs=1e-11)
                canvas[position] = id


def test_what_ends_an_answer_drops_all_behind_it(denoiser, tiny_tokenizer):
    model = denoiser("bidirectional")
    [ended] = generate(model, tiny_tokenizer, [PROMPTS[0]], SamplingParams(max_new_tokens=NEW, logit_bias={2: 1e5}), trace=True)
    assert (ended.ids, ended.text, ended.finish_reason, len(steps_in(ended))) == ([2], "", "eos", 1)  # at once, and no pass more
    [whole] = generate(model, tiny_tokenizer, [PROMPTS[0]], SamplingParams(max_new_tokens=NEW, ignore_eos=True))
    stop = whole.text[3:5]
    [cut] = generate(model, tiny_tokenizer, [PROMPTS[0]], SamplingParams(max_new_tokens=NEW, ignore_eos=True, stop=stop))
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")
    [late] = generate(model, tiny_tokenizer, [PROMPTS[0]], SamplingParams(max_new_tokens=NEW, ignore_eos=True, alg="origin", seed=1, max_time=1e-9), trace=True)
    assert (len(late.ids), late.finish_reason, len(steps_in(late))) == (1, "time", 1)  # of whatever became certain in the first pass


def test_a_model_that_speaks_both_ways_speaks_from_left_to_right_as_if_it_had_learnt_no_other(denoiser, fresh_tiny, tiny_tokenizer):
    want = generate(fresh_tiny("llama").double(), tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=NEW, ignore_eos=True))
    for attention in ("bidirectional", "prompt_causal"):
        model = denoiser(attention)
        declare(model.config, Diffusion(MASK, 0, attention, autoregressive=True))
        params = [SamplingParams(max_new_tokens=NEW, ignore_eos=True, strategy=name) for name in ("sampling", "diffusion") for _ in PROMPTS]
        found = generate(model, tiny_tokenizer, PROMPTS * 2, params)
        assert [each.ids for each in found[:3]] == [each.ids for each in want]
        assert [each.ids for each in found[3:]] == [greedy(model, prompt, NEW)[-1] for prompt in PROMPTS]


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"steps": 0}, "steps must be a whole number from 1, got 0"),
        ({"alg": "best"}, "alg must be one of origin, maskgit_plus, topk_margin, entropy, low_confidence, random, got 'best'"),
        ({"alg_temp": -1.0}, "alg_temp must be"),
        ({"alg": "origin", "alg_temp": 1.0}, "alg_temp=1.0 draws among the surest positions"),
        ({"strategy": "sampling"}, "strategy='sampling' asks for a text from left to right, but this llama is a masked-diffusion model"),
        ({"num_beams": 3}, "num_beams=3 asks for a text from left to right"),
        ({"repetition_penalty": 1.1}, "repetition_penalty hangs on the tokens before one"),
        ({"regex": "a+"}, "regex hangs on the tokens before one"),
        ({"guidance_scale": 2.0}, "strategy 'diffusion' has no use for guidance_scale=2.0"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 answers of diffusion without chance would all be the same"),
        ({"prompt_logprobs": 1}, "prompt_logprobs=1 tells how likely each token is behind those before it"),
        ({"alg": "random", "alg_temp": 1.0}, "alg_temp=1.0 draws among the surest positions, but alg='random'"),
        ({"alg": "random", "eos_penalty": 1.0}, "eos_penalty=1.0 makes ends less sure, but alg='random' asks how sure none is"),
        ({"block_length": 0}, "block_length must be a whole number from 1, got 0"),
        ({"block_length": 2.0}, "block_length must be a whole number from 1, got 2.0"),
        ({"confidence_threshold": 0.0}, "confidence_threshold must be a number above 0, got 0.0"),
        ({"confidence_threshold": 0.9, "steps": 4}, "confidence_threshold=0.9 lets .* say how many tokens .*, but steps=4 says how many passes"),
        ({"confidence_threshold": 0.9, "alg": "origin"}, "confidence_threshold=0.9 lets .*, but alg='origin' draws the step of each"),
        ({"confidence_threshold": 0.9, "entropy_bound": 0.5}, "confidence_threshold=0.9 lets .*, and so does entropy_bound=0.5"),
        ({"entropy_bound": -0.5}, "entropy_bound must be a number from 0, got -0.5"),
        ({"entropy_bound": 0.5, "steps": 4}, "entropy_bound=0.5 lets .*, but steps=4"),
        ({"entropy_bound": 0.5, "remask": 0.5}, "entropy_bound=0.5 lets .*, but remask=0.5 needs to know how far"),
        ({"remask": 0}, r"remask must be in \(0, 1\], got 0"),
        ({"remask": 1.1}, r"remask must be in \(0, 1\], got 1.1"),
        ({"cfg_scale": -1}, "cfg_scale must be a number from 0, got -1"),
        ({"cfg_scale": float("inf")}, "cfg_scale must be a number from 0, got inf"),
        ({"cfg_scale": 1.0, "hide": ["a"]}, "cfg_scale=1.0 reads masks in place of the whole prompt"),
        ({"eos_penalty": -1.0}, "eos_penalty must be a number from 0, got -1.0"),
        ({"generation_tokens_hook_func": 3}, "generation_tokens_hook_func must be a function, got 3"),
        ({"generation_logits_hook_func": "f"}, "generation_logits_hook_func must be a function, got 'f'"),
    ],
)
def test_what_diffusion_cannot_do_is_refused_by_name_before_any_pass(denoiser, tiny_tokenizer, settings, reason):
    with pytest.raises(UserError, match=reason):
        generate(denoiser("bidirectional"), tiny_tokenizer, PROMPTS, SamplingParams(**{"max_new_tokens": NEW, **settings}))


def test_only_a_diffusion_checkpoint_speaks_by_diffusion_and_what_else_reads_from_left_to_right_refuses_it(denoiser, tiny, tiny_tokenizer):
    with pytest.raises(UserError, match="steps=4 asks for diffusion, but this llama speaks from left to right"):
        generate(tiny("llama"), tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=NEW, steps=4))
    with pytest.raises(UserError, match="mistral attends in a sliding window"):
        generate(denoiser("prompt_causal", kind="mistral"), tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=NEW))
    with pytest.raises(UserError, match=r"block_length=4: this model is made for blocks of 3 \(attention='block_causal'\): drop it"):
        generate(denoiser("block_causal", block_length=3), tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=NEW, block_length=4))
    model = denoiser("prompt_causal")
    for what, call in {
        "score": lambda: score(model, tiny_tokenizer, ["a"], ["b"]),
        "an embedding": lambda: embed(model, tiny_tokenizer, ["a"]),
        "an amateur": lambda: generate(tiny("llama"), tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=NEW, amateur_model=model)),
    }.items():
        with pytest.raises(UserError, match=f"{what} reads from left to right, but this llama is a masked-diffusion model"):
            call()


@pytest.mark.parametrize("attention, block", KINDS)
def test_a_long_prompt_and_its_masks_are_read_by_parts(denoiser, tiny_tokenizer, monkeypatch, attention, block):
    model, prompt = denoiser(attention, 1, block), [*range(5, 75)]
    scales = [SamplingParams(max_new_tokens=NEW, ignore_eos=True, steps=4, cfg_scale=scale) for scale in (1.5, 0.0)]
    params = [*scales, replace(scales[0], generation_tokens_hook_func=lambda step, canvas, logits: canvas.index_fill(1, torch.tensor([NEW - 1]), 50))]
    want = generate(model, tiny_tokenizer, [prompt] * 3, params)
    assert [each.ids for each in want[:2]] == [greedy(model, prompt, NEW, steps=4, cfg_scale=scale)[-1] for scale in (1.5, 0.0)]
    monkeypatch.setattr(core, "MAX_NEW_POSITIONS", 16)
    cache = None if attention == "bidirectional" else PrefixCache(model)
    for each, result in zip(want, generate(model, tiny_tokenizer, [prompt] * 3, params, prefix_cache=cache), strict=True):
        assert result.ids == each.ids and result.logprobs == pytest.approx(each.logprobs, abs=1e-9)


def test_tokens_are_chosen_for_a_bounded_number_of_positions_at_once(denoiser, tiny_tokenizer, monkeypatch):
    model, rows = denoiser("bidirectional"), []
    each = SamplingParams(max_new_tokens=NEW, temperature=1.0, seed=3, ignore_eos=True, logprobs=1)
    params = [replace(each, cfg_scale=1.0), replace(each, num_return_sequences=2, remask=0.5), replace(each, top_k=5, confidence_threshold=0.02)]
    want = generate(model, tiny_tokenizer, PROMPTS, params, trace=True)
    monkeypatch.setattr(Filters, "each", lambda self, scores, *rest, own=Filters.each: rows.append(len(scores)) or own(self, scores, *rest))
    monkeypatch.setattr(denoising, "MAX_CHOSEN", 5 * model.config.vocab_size)
    got = generate(model, tiny_tokenizer, PROMPTS, params, trace=True)
    told = lambda result: [each.what for each in result.trace if isinstance(each, Observed) and isinstance(each.what, (DiffusionStep, ChoiceTrace))]
    for one, other in zip(want, got, strict=True):
        assert (one.ids, one.logprobs, one.forwards) == (other.ids, other.logprobs, other.forwards)
        assert told(one) == told(other) != []
    assert max(rows) == 5 and sum(rows) > 10 * NEW


@pytest.mark.parametrize("bound, passes", [("MAX_LOGITS", 12), ("MAX_POSITIONS", 12), (None, 4)])
def test_a_pass_takes_the_canvases_that_it_has_room_for_and_the_others_come_next(denoiser, tiny_tokenizer, monkeypatch, bound, passes):
    model, params = denoiser("bidirectional"), SamplingParams(max_new_tokens=NEW, steps=4, ignore_eos=True)
    want = [each.ids for each in generate(model, tiny_tokenizer, PROMPTS, params)]
    ran = []
    monkeypatch.setattr(RaggedRunner, "observe", lambda self, slots, *rest, own=RaggedRunner.observe: ran.append(len(slots)) or own(self, slots, *rest))
    if bound is not None:
        monkeypatch.setattr(denoising, bound, 1)  # one goes through whatever it takes
    assert [each.ids for each in generate(model, tiny_tokenizer, PROMPTS, params)] == want
    assert len(ran) == passes and sum(ran) == 12
