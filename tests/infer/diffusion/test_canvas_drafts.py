"""A diffusion model as the draft of one that speaks from left to right: what it guesses, and that the answer stays the target's own."""

from collections import Counter
from itertools import product

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import Observed, PrefixCache, SamplingParams, generate
from seodang.infer.diffusion import denoising
from seodang.infer.engine.generate import prepare
from seodang.infer.requests.trace import DraftTrace
from seodang.infer.runners.paradigm import Diffusion, declare
from seodang.infer.strategies import canvas_drafts, drafts
from seodang.infer.text.spans import Span

from .conftest import MASK, canvas_logits

PROMPTS = [[5, 6, 7, 8, 5, 6], [9], [20, 21, 22], [5, 6, 5, 6, 5, 6, 5]]
NEW = 12
WAYS = [("prompt_causal", 1), ("prompt_causal", 0), ("bidirectional", 1), ("bidirectional", 0)]
SMALL = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
AT_LENGTH = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}


@pytest.fixture
def target(fresh_tiny):
    return fresh_tiny("llama", seed=1).double()


def answered(model, tokenizer, prompts=PROMPTS, cancel=None, **settings):
    """The requests once all are answered, and the engine, whose slots were all given back; `cancel` is a request, and before which step it is cancelled."""
    engine, requests = prepare(model, tokenizer, prompts, SamplingParams(**{"max_new_tokens": NEW, **settings}), False, None, 64)
    for request in requests:
        engine.submit(request)
    step, going = 0, True
    while going:
        if cancel is not None and cancel[1] == step:
            engine.cancel(requests[cancel[0]])
        going, step = engine.step(), step + 1
    assert all(runner.live == 0 for runner in engine._runners.values())
    return requests, engine


def ids_of(*given, **settings):
    requests, _ = answered(*given, **settings)
    return [request.results[choice].ids for request in requests for choice in sorted(request.results)]


def drafted(result) -> list[tuple[int, DraftTrace]]:
    return [(event.position, event.what) for event in result.trace if isinstance(event, Observed) and isinstance(event.what, DraftTrace)]


def saying(model, *ids: int, over: float = 1.0):
    """The model, made to find these ids the likeliest anywhere, the first of them most: what it has read no longer matters."""
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.zero_()
    model.get_input_embeddings().weight.data[:] = 1.0
    head = model.get_output_embeddings().weight.data
    head.zero_()
    for place, id in enumerate(ids):
        head[id] = over / (place + 1)
    return model


@pytest.mark.parametrize("attention, shift", WAYS)
@pytest.mark.parametrize("ahead", [1, 16])
def test_a_guess_is_the_likeliest_token_of_each_mask_in_one_pass_over_the_canvas(denoiser, target, tiny_tokenizer, monkeypatch, attention, shift, ahead):
    monkeypatch.setattr(canvas_drafts, "AHEAD", ahead)
    draft = denoiser(attention, shift, **{**SMALL, "vocab_size": 128})
    draft.get_output_embeddings().weight.data[MASK] *= 40  # the mask is often the likeliest, and is never said
    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True, assistant_model=draft, num_assistant_tokens=3, **AT_LENGTH)
    results = generate(target, tiny_tokenizer, PROMPTS, params, trace=True)
    alone = generate(target, tiny_tokenizer, PROMPTS, SamplingParams(max_new_tokens=NEW, ignore_eos=True))
    masked = 0
    for prompt, result, plain in zip(PROMPTS, results, alone):
        assert result.ids == plain.ids
        assert drafted(result)[0][0] == 0  # the first guess is behind the prompt itself
        for position, trace in drafted(result):
            masks = min(max(ahead, 3), NEW - position)
            canvas = result.ids[:position] + [MASK] * masks
            logits = canvas_logits(draft, prompt, canvas, len(canvas))[position:]
            masked += (logits.argmax(dim=-1) == MASK).sum().item()
            logits[:, MASK] = -torch.inf
            assert list(trace.ids) == logits.argmax(dim=-1)[: min(3, NEW - position - 1)].tolist()
    assert masked


FEW = (40, 41, 43)  # what may be said, so that a third of all guesses come true


@pytest.mark.parametrize("attention, shift", WAYS)
def test_greedy_tokens_are_those_of_the_target_alone_whatever_came_true_and_in_any_company(denoiser, target, tiny_tokenizer, attention, shift):
    draft = denoiser(attention, shift)
    came, refused = 0, 0
    for settings in (
        {"suppress_tokens": [id for id in range(128) if id not in FEW]}, {"prefix_allowed_tokens_fn": lambda ids: FEW, "repetition_penalty": 1.2}, {},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 8, "bad_words_ids": [[5, 6], [7]]}, {"guidance_scale": 2.0},
        {"prefix": "On"}, {"hide": [Span(0, 1)]},
    ):  # fmt: skip
        prompts = PROMPTS[2:] if "hide" in settings else PROMPTS
        alone = ids_of(target, tiny_tokenizer, prompts, **settings)
        helper = {"assistant_model": draft, "assistant_confidence_threshold": 0.0}
        assert ids_of(target, tiny_tokenizer, prompts, **settings, **helper) == alone, settings
        for result in generate(target, tiny_tokenizer, prompts, SamplingParams(max_new_tokens=NEW, **settings, **helper), trace=True):
            found = [each for _, each in drafted(result)]
            came, refused = came + sum(each.accepted for each in found), refused + sum(each.accepted < len(each.ids) for each in found)
    assert came > 10 and refused > 10


def test_a_draft_that_is_always_right_costs_one_pass_a_guess_whatever_its_length(denoiser, fresh_tiny, tiny_tokenizer):
    target = saying(fresh_tiny("llama", tie_word_embeddings=False).double(), 7)
    draft = saying(denoiser("prompt_causal", 1, tie_word_embeddings=False), 7, over=5.0)
    settings = {"assistant_model": draft, "max_new_tokens": 30, "num_assistant_tokens": 4}
    [[request], engine] = answered(target, tiny_tokenizer, [[9, 10]], **settings, **AT_LENGTH)
    assert request.result.ids == [7] * 30
    assert engine.runner.passes == 6 and engine.runner_of(draft).passes == 1 + 6  # four guesses and one more token each; the prompt, and a canvas each
    [[request], engine] = answered(target, tiny_tokenizer, [[9, 10]], **settings)
    assert engine.runner.passes == 4 and engine.runner_of(draft).passes == 1 + 4  # 4 + 1, 6 + 1, 8 + 1 and what is left
    [[request], engine] = answered(target, tiny_tokenizer, [[9, 10]], **{**settings, "num_assistant_tokens": 25}, **AT_LENGTH)
    assert request.result.ids == [7] * 30 and engine.runner.passes == 2  # more than the masks that there are without being asked for


def test_an_unsure_guess_is_the_last_of_its_draft_and_lengths_follow_what_came_true(denoiser, target, tiny_tokenizer):
    draft = denoiser("prompt_causal", 0)
    params = {"max_new_tokens": NEW, "ignore_eos": True, "assistant_model": draft}
    [unsure] = generate(target, tiny_tokenizer, [[9]], SamplingParams(**params, assistant_confidence_threshold=1.0), trace=True)
    assert {len(each.ids) for _, each in drafted(unsure)} == {1}
    [sure] = generate(target, tiny_tokenizer, [[9]], SamplingParams(**params, assistant_confidence_threshold=0.0), trace=True)
    wanted = 5
    for position, each in drafted(sure):
        assert len(each.ids) == min(wanted, NEW - position - 1)
        wanted = wanted + 2 if each.accepted == len(each.ids) else max(1, wanted - 1)


def test_an_end_of_text_is_guessed_as_any_token_and_nothing_comes_behind_it(denoiser, fresh_tiny, tiny_tokenizer):
    target = saying(fresh_tiny("llama", tie_word_embeddings=False).double(), 2)
    draft = saying(denoiser("bidirectional", 0, tie_word_embeddings=False), 2)
    [result] = generate(target, tiny_tokenizer, [[9]], SamplingParams(max_new_tokens=NEW, assistant_model=draft, **AT_LENGTH), trace=True)
    assert result.ids == [2] and result.finish_reason == "eos"
    assert [each.ids for _, each in drafted(result)] == [(2,)]
    again = SamplingParams(max_new_tokens=NEW, assistant_model=draft, ignore_eos=True, stop="i", **AT_LENGTH)
    said = saying(fresh_tiny("llama", tie_word_embeddings=False).double(), *tiny_tokenizer("i").input_ids)
    [result] = generate(said, tiny_tokenizer, [[9]], again)
    assert result.text == "" and result.finish_reason == "stop"


def test_a_mask_beyond_the_targets_vocabulary_is_never_guessed_and_a_short_draft_stops_guessing(denoiser, fresh_tiny, target, tiny_tokenizer):
    draft = saying(denoiser("prompt_causal", 0, vocab_size=130, max_position_embeddings=10, tie_word_embeddings=False), 128, 40, 41)
    declare(draft.config, Diffusion(128, 0, "prompt_causal"))
    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True, assistant_model=draft, **AT_LENGTH)
    [result] = generate(target, tiny_tokenizer, [[5, 6, 7, 8]], params, trace=True)
    assert result.ids == generate(target, tiny_tokenizer, [[5, 6, 7, 8]], SamplingParams(max_new_tokens=NEW, ignore_eos=True))[0].ids
    found = drafted(result)
    assert {id for _, each in found for id in each.ids} == {40}  # neither the mask, the likeliest, nor what the target does not know
    assert [len(each.ids) for _, each in found] == [min(5, 10 - 4 - position) for position, _ in found] and found[-1][0] < 6


def expected(target, prompt, tokens, temperature, penalty, top_k):
    """How likely each combination of so many tokens is under the target alone, after its filters: by enumeration."""
    cells = torch.tensor(list(product(range(8), repeat=tokens)))
    with torch.no_grad():
        logits = target(torch.cat([torch.tensor(prompt).expand(len(cells), -1), cells], dim=1)).logits[:, len(prompt) - 1 : -1]
    for place in range(1, tokens):
        seen = torch.zeros(len(cells), 8, dtype=torch.double).scatter_(1, cells[:, :place], 1.0)
        logits[:, place] -= penalty * seen
    least = logits.topk(top_k, dim=-1).values[..., -1:]
    probs = (logits / temperature).masked_fill(logits < least, -torch.inf).softmax(dim=-1)
    return cells, probs.gather(-1, cells[..., None]).squeeze(-1).prod(dim=-1)


@pytest.mark.parametrize("attention, shift, penalty", [("prompt_causal", 1, 0.0), ("bidirectional", 0, 0.7)])
def test_sampled_tokens_are_distributed_as_the_targets(denoiser, fresh_tiny, tokenizer, attention, shift, penalty):
    """The last three of four tokens: two of them were guessed side by side. The draft's mask is a token of the target's, whose own it has to find by itself."""
    target, draft = fresh_tiny("llama", seed=3, **SMALL).double(), denoiser(attention, shift, **SMALL)
    declare(draft.config, Diffusion(7, shift, attention))
    prompt, drawn, top_k = [3, 4, 5, 3, 4], 1000, 8 if penalty else 6
    settings = {"temperature": 1.3, "max_new_tokens": 4, "ignore_eos": True, "seed": 1, "num_return_sequences": drawn, **AT_LENGTH}
    settings |= {"presence_penalty": penalty} if penalty else {"top_k": top_k}
    counts = Counter(tuple(ids[1:]) for ids in ids_of(target, tokenizer, [prompt], **settings, assistant_model=draft))
    cells, probs = expected(target, prompt, 4, 1.3, penalty, top_k)
    wanted = torch.zeros(8, 8, 8, dtype=torch.double)
    wanted.index_put_(tuple(cells[:, 1:].T), probs * drawn, accumulate=True)
    found = torch.zeros(8, 8, 8, dtype=torch.double)
    for cell, count in counts.items():
        found[cell] = count
    assert wanted.sum() == pytest.approx(drawn) and found[wanted == 0].sum() == 0
    rare = wanted < 5
    terms = [*((found - wanted) ** 2 / wanted)[~rare].tolist(), ((found - wanted)[rare].sum() ** 2 / wanted[rare].sum()).item()]
    freedom = len(terms) - 1
    assert freedom > 30 and sum(terms) < freedom + 3.5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("most", [16_384, 20])
def test_sampled_answers_do_not_depend_on_their_company(denoiser, target, tiny_tokenizer, monkeypatch, most):
    monkeypatch.setattr(denoising, "MAX_POSITIONS", most)
    settings = {"temperature": 0.8, "seed": 5, "num_return_sequences": 2, "assistant_model": denoiser("prompt_causal", 1), "assistant_confidence_threshold": 0.0}
    together = ids_of(target, tiny_tokenizer, **settings)
    assert together == [ids for prompt in PROMPTS for ids in ids_of(target, tiny_tokenizer, [prompt], **settings)]
    assert len({tuple(ids) for ids in together}) == 8


@pytest.mark.parametrize("own", [False, True], ids=["a draft of another model", "the model's own diffusion"])
@pytest.mark.parametrize("step", range(0, 9, 2))
def test_a_cancelled_request_leaves_nothing_and_changes_no_other(denoiser, target, tiny_tokenizer, own, step):
    draft = denoiser("prompt_causal", 1)
    declare(draft.config, Diffusion(MASK, 1, "prompt_causal", autoregressive=True))
    target = draft if own else target
    alone = ids_of(target, tiny_tokenizer, strategy="sampling")
    requests, _ = answered(target, tiny_tokenizer, assistant_model=draft, assistant_confidence_threshold=0.0, cancel=(1, step))
    assert requests[1].results[0].finish_reason == "cancelled"
    assert [request.results[0].ids for request in requests if request is not requests[1]] == alone[:1] + alone[2:]


@pytest.mark.parametrize("attention, shift", WAYS)
def test_weights_that_speak_both_ways_draft_for_themselves(denoiser, tiny_tokenizer, attention, shift):
    model = denoiser(attention, shift)
    declare(model.config, Diffusion(MASK, shift, attention, autoregressive=True))
    for settings in ({}, {"suppress_tokens": [id for id in range(128) if id not in FEW]}, {"hide": [Span(0, 1)], "prompts": PROMPTS[2:]}):
        alone = ids_of(model, tiny_tokenizer, **settings, strategy="sampling")
        assert ids_of(model, tiny_tokenizer, **settings, assistant_model=model, assistant_confidence_threshold=0.0) == alone
    drawn = {"temperature": 0.7, "seed": 3, "num_return_sequences": 2, "assistant_model": model, **AT_LENGTH}
    together = ids_of(model, tiny_tokenizer, **drawn)
    assert together == [ids for prompt in PROMPTS for ids in ids_of(model, tiny_tokenizer, [prompt], **drawn)]
    params = SamplingParams(max_new_tokens=NEW, ignore_eos=True, assistant_model=model, num_assistant_tokens=3, **AT_LENGTH)
    [result] = generate(model, tiny_tokenizer, PROMPTS[:1], params, trace=True)
    for position, trace in drafted(result):
        canvas = result.ids[:position] + [MASK] * min(16, NEW - position)
        logits = canvas_logits(model, PROMPTS[0], canvas, len(canvas))[position:]
        logits[:, MASK] = -torch.inf
        assert list(trace.ids) == logits.argmax(dim=-1)[: min(3, NEW - position - 1)].tolist()


def test_a_prompt_is_read_once_by_weights_that_draft_for_themselves(denoiser, tiny_tokenizer):
    model, prompt = denoiser("prompt_causal", 1), [*range(5, 65)]
    declare(model.config, Diffusion(MASK, 1, "prompt_causal", autoregressive=True))
    _, engine = answered(model, tiny_tokenizer, [prompt], ignore_eos=True, assistant_model=model, max_new_tokens=6, num_assistant_tokens=2, **AT_LENGTH)
    assert engine.runner.positions < 2 * len(prompt)
    _, other = answered(model, tiny_tokenizer, [prompt], ignore_eos=True, strategy="sampling", max_new_tokens=6)
    assert other.runner.positions == len(prompt) + 5


def test_long_prompts_are_read_by_parts_and_rejected_guesses_stay_in_no_cache(denoiser, target, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(drafts, "PART", 8)
    draft, prompt = denoiser("prompt_causal", 1), [*range(5, 45)]
    cache, settings = PrefixCache(target), SamplingParams(max_new_tokens=NEW, ignore_eos=True, assistant_model=draft, assistant_confidence_threshold=0.0)
    plain = SamplingParams(max_new_tokens=NEW, ignore_eos=True)
    [first] = generate(target, tiny_tokenizer, [prompt], settings, prefix_cache=cache, trace=True)
    assert first.ids == generate(target, tiny_tokenizer, [prompt], plain)[0].ids and drafted(first)
    position, trace = drafted(first)[0]
    assert position == 4  # the target goes on while four parts are read; with the last comes a guess
    logits = canvas_logits(draft, prompt, first.ids[:4] + [MASK] * 8, 12)[4:9]
    logits[:, MASK] = -torch.inf
    assert list(trace.ids) == logits.argmax(dim=-1).tolist()
    further = [*prompt, *first.ids, 11]
    [kept] = generate(target, tiny_tokenizer, [further], settings, prefix_cache=cache)
    assert kept.ids == generate(target, tiny_tokenizer, [further], plain)[0].ids and kept.cached_tokens >= len(prompt)
    assert cache.runner.live == len(cache.slots)


def test_a_diffusion_draft_that_cannot_be_is_refused_by_name(denoiser, fresh_tiny, target, tiny_tokenizer, tokenizer):
    for draft, settings, words in (
        (denoiser("block_causal", 1, 3), {}, r"assistant \(llama, masked diffusion\) fills in blocks"),
        (denoiser("prompt_causal", 1), {"assistant_tokenizer": tiny_tokenizer}, "drop assistant_tokenizer"),
        (denoiser("prompt_causal", 1, kind="mistral"), {}, "mistral attends in a sliding window"),
        (denoiser("bidirectional", 1, kind="mistral"), {}, "mistral attends in a sliding window"),
        (denoiser("prompt_causal", 1, vocab_size=140), {}, None),
        (denoiser("prompt_causal", 1, vocab_size=127), {}, "vocabularies of 127 and 128"),
    ):
        params = SamplingParams(max_new_tokens=4, assistant_model=draft, **settings)
        if words is None:
            assert generate(target, tiny_tokenizer, [[5]], params)
            continue
        with pytest.raises(UserError, match=words):
            generate(target, tiny_tokenizer, [[5]], params)
    with pytest.raises(UserError, match="assistant_model=LlamaForCausalLM asks for a text from left to right, but this llama is a masked-diffusion model"):
        generate(denoiser("prompt_causal"), tiny_tokenizer, [[5]], SamplingParams(max_new_tokens=4, assistant_model=target))
