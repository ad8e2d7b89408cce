"""Contrastive search against transformers 4.55, which had it, and against a computation without a cache."""

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import generate, run, stream
from seodang.infer.engine.params import SamplingParams
from seodang.infer.engine.prefix_cache import PrefixCache
from seodang.infer.requests.events import Committed, Observed
from seodang.infer.requests.trace import ContrastTrace
from seodang.infer.runners.open import open_runner
from seodang.infer.strategies.contrastive import Context, candidates, contrast
from seodang.infer.text.spans import Span

KINDS = ["llama", "gpt2", "qwen3", "gemma", "t5", "bart"]


@torch.no_grad()
def slow(model, prompt: list[int], alpha: float, k: int, new: int, visible=lambda ids: list(range(len(ids))), guide=lambda ids, logits: logits):
    """Contrastive search that runs everything anew for each candidate; `visible` positions alone are read."""

    def read(ids):
        places = visible(ids)
        out = model(torch.tensor([[ids[i] for i in places]]), position_ids=torch.tensor([places]), output_hidden_states=True)
        return out.logits[0, -1], torch.nn.functional.normalize(out.hidden_states[-1][0], dim=-1)

    ids = list(prompt)
    for _ in range(new):
        logits, states = read(ids)
        probs, picks = guide(ids, logits).softmax(-1).topk(k)
        ranks = [(1 - alpha) * p - alpha * (states @ read([*ids, id])[1][-1]).max() for p, id in zip(probs, picks.tolist())]
        ids.append(int(picks[int(torch.stack(ranks).argmax())]))
        if ids[-1] == 2:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", KINDS)
def test_all_golden_cases_of_a_model_in_one_run_give_the_tokens_of_transformers(golden, golden_request, name):
    cases = [(model, case) for model, case in golden("contrastive") if case["model"] == name]
    assert len(cases) == 14
    model = cases[0][0]
    runner = open_runner(model)
    requests = [golden_request(model, case, index) for index, (_, case) in enumerate(cases)]
    list(run(Engine(runner), requests))
    for each, (_, case) in zip(requests, cases):
        assert each.result.ids == case["sequences"][0], case["options"]


def test_n_tokens_take_one_pass_for_the_prompt_and_one_each(tiny, new_request):
    runner = open_runner(tiny("llama"))
    one = new_request(tiny("llama"), [5, 6, 7], penalty_alpha=0.6, top_k=4, max_new_tokens=10)
    list(run(Engine(runner), [one]))
    assert len(one.result.ids) == 10
    assert runner.passes == 11
    assert runner.positions == 3 + 10 * 4


def test_rank_is_confidence_less_the_penalty_for_likeness():
    context = Context()
    context.add(torch.tensor([[2.0, 0.0]]))
    context.add(torch.tensor([[0.0, 0.5]]))
    likeness = context.likeness(torch.tensor([[3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]]))  # 4/5 like the second; orthogonal at best; nothing
    assert likeness.tolist() == pytest.approx([0.8, 0.0, 0.0])
    ranks = contrast(torch.tensor([0.5, 0.3, 0.2]), likeness, 0.6)
    assert ranks.tolist() == pytest.approx([0.4 * 0.5 - 0.6 * 0.8, 0.4 * 0.3, 0.4 * 0.2])


def test_tokens_that_were_dropped_are_no_candidates():
    logprobs, ids = candidates(torch.tensor([-torch.inf, 1.0, -torch.inf, 2.0]), 3)
    assert ids == [3, 1]
    assert logprobs.exp().sum() == pytest.approx(1.0)


def test_where_the_filters_leave_one_token_it_is_taken_and_the_search_goes_on(fresh_tiny, tokenizer):
    model = fresh_tiny("llama").double()
    allowed = lambda ids: [40] if len(ids) == 5 else range(3, 128)
    params = SamplingParams(penalty_alpha=0.9, top_k=5, max_new_tokens=6, prefix_allowed_tokens_fn=allowed)
    [result] = generate(model, tokenizer, [[5, 6, 7]], params)
    assert result.ids[2] == 40
    assert result.ids[3:] == slow(model, [5, 6, 7, *result.ids[:3]], 0.9, 5, 3)
    assert result.logprobs[2] == pytest.approx(0.0)


def test_penalty_of_zero_is_greedy_and_one_candidate_too(tiny, tokenizer):
    model, prompts = tiny("gpt2"), [[5, 6, 7], [9] * 8]
    greedy = [result.ids for result in generate(model, tokenizer, prompts, SamplingParams(max_new_tokens=12))]
    for settings in ({"penalty_alpha": 0.0, "top_k": 5}, {"penalty_alpha": 0.9, "top_k": 1}):
        assert [r.ids for r in generate(model, tokenizer, prompts, SamplingParams(max_new_tokens=12, **settings))] == greedy


def test_stream_tells_each_token_once_and_a_stop_string_ends_it(tiny, tiny_tokenizer):
    model = tiny("llama", eos_token_id=None)
    params = SamplingParams(penalty_alpha=0.6, top_k=4, max_new_tokens=20)
    events = [event for event in stream(model, tiny_tokenizer, [5, 6, 7], params) if isinstance(event, Committed)]
    [result] = generate(model, tiny_tokenizer, [[5, 6, 7]], params)
    assert [event.id for event in events] == result.ids
    assert "".join(event.text for event in events) == result.text
    assert [event.logprob for event in events] == result.logprobs
    stop = result.text[8:10]
    [cut] = generate(model, tiny_tokenizer, [[5, 6, 7]], SamplingParams(penalty_alpha=0.6, top_k=4, max_new_tokens=20, stop=stop))
    assert cut.text == result.text[: result.text.index(stop)] and cut.finish_reason == "stop"


def test_hidden_positions_of_the_prompt_are_neither_read_nor_resembled(fresh_tiny, tokenizer):
    model = fresh_tiny("llama").double()
    params = SamplingParams(penalty_alpha=0.6, top_k=4, max_new_tokens=12, hide=[Span(1, 3)])
    prompt = [5, 6, 7, 8, 9]
    [result] = generate(model, tokenizer, [prompt], params)
    visible = lambda ids: [i for i in range(len(ids)) if i not in (1, 2)]
    assert result.ids == slow(model, prompt, 0.6, 4, 12, visible)


def test_guidance_changes_the_candidates(fresh_tiny, tokenizer):
    model = fresh_tiny("llama").double()

    def guided(ids, logits):
        negative = model(torch.tensor([[11, 12, *ids[3:]]])).logits[0, -1].log_softmax(-1)
        return negative + 1.8 * (logits.log_softmax(-1) - negative)

    params = SamplingParams(penalty_alpha=0.6, top_k=4, max_new_tokens=12, guidance_scale=1.8, negative_prompt=[11, 12])
    [result] = generate(model, tokenizer, [[5, 6, 7]], params)
    assert result.ids == slow(model, [5, 6, 7], 0.6, 4, 12, guide=guided)
    assert result.ids != slow(model, [5, 6, 7], 0.6, 4, 12)


def test_a_remembered_prompt_is_read_again_for_its_states_and_the_answer_is_remembered(fresh_tiny, tokenizer):
    model = fresh_tiny("llama").double()
    params = SamplingParams(penalty_alpha=0.6, top_k=4, max_new_tokens=6, ignore_eos=True)
    cache = PrefixCache(model)
    prompt = [5, 6, 7, 8]
    [first] = generate(model, tokenizer, [prompt], params, prefix_cache=cache)
    [second] = generate(model, tokenizer, [prompt], params, prefix_cache=cache)
    assert first.ids == second.ids == generate(model, tokenizer, [prompt], params)[0].ids
    before = cache.runner.positions
    longer = [*prompt, *first.ids, 9]
    [third] = generate(model, tokenizer, [longer], SamplingParams(max_new_tokens=5), prefix_cache=cache)
    assert cache.runner.positions - before < len(longer)  # what the search left behind is the model's past of its answer
    assert third.ids == generate(model, tokenizer, [longer], SamplingParams(max_new_tokens=5))[0].ids


def test_trace_shows_what_each_candidate_was_worth(tiny, tokenizer):
    params = SamplingParams(penalty_alpha=0.6, top_k=3, max_new_tokens=4)
    [result] = generate(tiny("llama"), tokenizer, [[5, 6, 7]], params, trace=True)
    records = [event.what for event in result.trace if isinstance(event, Observed) and isinstance(event.what, ContrastTrace)]
    assert len(records) == 4
    for record, id in zip(records, result.ids):
        assert len(record.candidates) == 3
        for _, p, likeness, rank in record.candidates:
            assert rank == pytest.approx(0.4 * p - 0.6 * likeness, abs=1e-6)
        assert max(record.candidates, key=lambda candidate: candidate[3])[0] == id


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"penalty_alpha": 0.6}, "top_k"),
        ({"penalty_alpha": 0.6, "top_k": 0}, "top_k"),
        ({"strategy": "contrastive"}, "penalty_alpha"),
        ({"penalty_alpha": 0.6, "top_k": 4, "num_return_sequences": 2}, "num_return_sequences=2"),
        ({"penalty_alpha": 0.6, "top_k": 4, "temperature": 0.7}, "do_sample"),
        ({"penalty_alpha": 0.6, "top_k": 4, "num_beams": 2}, "num_beams=2"),
    ],
)
def test_what_contrastive_search_cannot_do_is_refused_by_name(tiny, tokenizer, settings, named):
    with pytest.raises(UserError, match=named):
        generate(tiny("llama"), tokenizer, [[5, 6]], SamplingParams(max_new_tokens=3, **settings))


def test_a_model_without_finite_scores_is_told_of_by_name(fresh_tiny, tiny_tokenizer):
    model = fresh_tiny("llama")
    model.lm_head.weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="the scores are not finite"):
        generate(model, tiny_tokenizer, [[5, 6, 7]], SamplingParams(penalty_alpha=0.6, top_k=3, max_new_tokens=4))
