"""Beam search against transformers and brute force, and as a stream."""

from itertools import product

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seodang.data.errors import UserError
from seodang.infer.engine.core import Engine
from seodang.infer.engine.generate import generate, run, stream
from seodang.infer.engine.params import SamplingParams
from seodang.infer.engine.prefix_cache import PrefixCache
from seodang.infer.requests.events import Committed, Observed
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Guidance, Request
from seodang.infer.requests.stop import AnswerText
from seodang.infer.requests.trace import BeamTrace
from seodang.infer.runners.open import open_runner
from seodang.infer.strategies import beam
from seodang.infer.strategies.registry import choose
from seodang.infer.text.detokenise import detokeniser

PROMPTS = [[5, 6, 7, 8], [9], [20, 21, 22, 90, 3, 11], [77, 5]]
STOPS = [64, 101, 15, 33]
NEW = 14


def oracle(model, prompt: list[int], **options) -> list[tuple[list[int], float]]:
    """What transformers finds: the new ids, padding left out, and the score of each sequence."""
    prompt = torch.tensor([prompt])
    options = {"max_new_tokens": NEW, "eos_token_id": [2], "pad_token_id": 0, "do_sample": False, **options}
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), return_dict_in_generate=True, output_scores=True, **options)
    begin = 1 if model.config.is_encoder_decoder else prompt.shape[1]
    ends = set(options["eos_token_id"])
    found = []
    for ids, score in zip(out.sequences[:, begin:].tolist(), out.sequences_scores.tolist()):
        end = next((i + 1 for i, id in enumerate(ids) if id in ends), len(ids))
        found.append((ids[:end], score))
    return found


def assert_same(results, expected) -> None:
    assert [each.ids for each in results] == [ids for ids, _ in expected]
    assert [each.score for each in results] == pytest.approx([score for _, score in expected], abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma"])
def test_hypotheses_and_scores_are_those_of_transformers(double, tiny_tokenizer, kind):
    model = double(kind)
    grid = list(product((2, 3, 5), (1.0, 0.0, 2.0, -0.5), (False, True, "never")))[:: 1 if kind == "llama" else 5]  # scoring knows no architecture
    common = {"max_new_tokens": NEW, "stop_token_ids": STOPS}
    settings = [
        SamplingParams(num_beams=beams, num_return_sequences=beams, length_penalty=penalty, early_stopping=early, **common)
        for beams, penalty, early in grid
    ]
    asked = [PROMPTS[i % len(PROMPTS)] for i in range(len(grid))]
    results = generate(model, tiny_tokenizer, asked, settings)
    for i, (prompt, params) in enumerate(zip(asked, settings)):
        own = [result for result in results if result.prompt_index == i]
        options = {name: getattr(params, name) for name in ("num_beams", "num_return_sequences", "length_penalty", "early_stopping")}
        assert_same(own, oracle(model, prompt, eos_token_id=[2, *STOPS], **options))
        for each in own:
            assert each.score == pytest.approx(sum(each.logprobs) / len(each.ids) ** params.length_penalty)


FILTERED = [
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"min_new_tokens": 6, "sequence_bias": {(5,): 2.0, (7, 8): -3.0}},
    {"suppress_tokens": [14, 51, 98], "forced_eos_token_id": 2},
    {"bad_words_ids": [[14, 51], [3]], "exponential_decay_length_penalty": (4, 1.1)},
]


@pytest.mark.parametrize("options", FILTERED)
def test_filters_see_log_probabilities_as_in_transformers(double, tiny_tokenizer, options):
    model = double()
    for prompt in PROMPTS[:2]:
        params = SamplingParams(num_beams=4, num_return_sequences=3, max_new_tokens=NEW, **options)
        results = generate(model, tiny_tokenizer, [prompt], params)
        assert_same(results, oracle(model, prompt, num_beams=4, num_return_sequences=3, **options))


def test_the_real_model_finds_what_transformers_finds(real_model, tokenizer):
    text = "The capital of Korea is"
    results = generate(real_model, tokenizer, [text], SamplingParams(num_beams=3, num_return_sequences=2, max_new_tokens=8))
    assert_same(results, oracle(real_model, tokenizer(text).input_ids, num_beams=3, num_return_sequences=2, max_new_tokens=8))


def test_a_hypothesis_that_completes_a_stop_string_is_finished_inside_the_search(double, tiny_tokenizer):
    model, stopped = double(), []
    for prompt in PROMPTS:
        best = oracle(model, prompt, num_beams=4)[0][0]
        stop = next(text for i in range(8) if (text := tiny_tokenizer.decode(best[i : i + 2])).isascii())  # which stands in the best answer
        params = SamplingParams(num_beams=4, num_return_sequences=4, max_new_tokens=NEW, stop=stop, length_penalty=0.0)
        results = generate(model, tiny_tokenizer, [prompt], params)
        options = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 0.0, "stop_strings": [stop], "tokenizer": tiny_tokenizer}
        expected = oracle(model, prompt, **options)
        assert [each.score for each in results] == pytest.approx([score for _, score in expected], abs=1e-5)
        assert all(each.ids == ids[: len(each.ids)] and set(ids[len(each.ids) :]) <= {0, 2} for each, (ids, _) in zip(results, expected))
        stopped += [each for each in results if each.finish_reason == "stop"]
        assert all(stop not in each.text for each in results)
    assert stopped and any(len(each.ids) < NEW for each in stopped)


def test_a_beginning_of_the_answer_is_kept_and_does_not_count_in_the_score(double, tiny_tokenizer):
    model, prompt = double(), PROMPTS[0]
    found = request(tiny_tokenizer, prompt, prefix_ids=[40, 41], num_beams=3, max_new_tokens=NEW)
    list(run(Engine(open_runner(model)), [found]))
    [(ids, score)] = oracle(model, [*prompt, 40, 41], num_beams=3, max_new_tokens=NEW - 2)
    assert found.result.ids == [40, 41, *ids] and found.result.score == pytest.approx(score, abs=1e-5)


def test_an_encoder_decoder_finds_what_transformers_finds(golden_models, tiny_tokenizer):
    for name in ("t5", "bart"):
        model = golden_models.build(name)
        for prompt in ([1, 17, 90], [1, 55, 8, 23, 23]):
            params = SamplingParams(num_beams=4, num_return_sequences=4, max_new_tokens=NEW, stop_token_ids=[22])
            results = generate(model, tiny_tokenizer, [prompt], params)
            assert_same(results, oracle(model, prompt, num_beams=4, num_return_sequences=4, eos_token_id=[2, 22]))


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4},
        {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "use_mambapy": False},
    ],
)  # fmt: skip
def test_models_with_other_memories_find_what_a_search_without_memory_finds(tiny_tokenizer, config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config, vocab_size=128, eos_token_id=2, pad_token_id=0)).double().eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "A_log" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    for prompt in PROMPTS[:2]:
        params = SamplingParams(num_beams=3, max_new_tokens=6, early_stopping="never")
        [result] = generate(model, tiny_tokenizer, [prompt], params)
        ids, score = slow_beam(lambda prompt, ids: logprobs_after(model, prompt + ids), prompt, 3, 6)
        assert result.ids == ids and result.score == pytest.approx(score)


def test_a_cache_of_earlier_talks_changes_nothing(double, tiny_tokenizer):
    model, prompt = double(), PROMPTS[2]
    cache, params = PrefixCache(model), SamplingParams(num_beams=3, num_return_sequences=3, max_new_tokens=8)
    generate(model, tiny_tokenizer, [prompt[:4]], SamplingParams(max_new_tokens=3), prefix_cache=cache)
    with_cache = generate(model, tiny_tokenizer, [prompt], params, prefix_cache=cache)
    assert [each.ids for each in with_cache] == [each.ids for each in generate(model, tiny_tokenizer, [prompt], params)]
    assert cache.runner.live == len(cache.slots) == 2  # the first talk and the best hypothesis of the second


def test_when_time_is_up_the_best_so_far_are_returned(double, tiny_tokenizer):
    params = SamplingParams(num_beams=3, num_return_sequences=3, max_time=1e-9, max_new_tokens=20)
    results = generate(double(), tiny_tokenizer, [PROMPTS[0]], params)
    likely = logprobs_after(double(), PROMPTS[0]).topk(3)
    assert [each.ids for each in results] == [[id] for id in likely.indices.tolist()]
    assert all(each.finish_reason in ("time", "eos") for each in results)


def request(tokenizer, prompt: list[int], *, prefix_ids=(), guidance=None, constraints=list, traced=False, **settings) -> Generation:
    params = SamplingParams(**settings)
    text, more = lambda: AnswerText(detokeniser(tokenizer), params.stop), {"guidance": guidance, "new_constraints": constraints, "traced": traced}
    return Generation(Request(0, prompt, params, params.seed or 0, frozenset({2}), text, choose(params), prefix_ids=prefix_ids, **more))


def logprobs_after(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].log_softmax(dim=-1)


def slow_beam(next_logprobs, prompt: list[int], width: int, new: int, ends=(2,)) -> tuple[list[int], float]:
    """Beam search with everything computed anew at each step and no early end; the best by mean log-probability."""
    live, done = [([], 0.0)], []
    for length in range(1, new + 1):
        grown = []
        for ids, total in live:
            logprobs = next_logprobs(prompt, ids).tolist()
            grown += [([*ids, id], total + logprob) for id, logprob in enumerate(logprobs)]
        grown.sort(key=lambda each: -each[1])
        over = [each for each in grown[:width] if each[0][-1] in ends or length == new]
        done = sorted(done + [(ids, total / length) for ids, total in over], key=lambda each: -each[1])[:width]
        live = [each for each in grown if each[0][-1] not in ends][:width]
    return done[0]


def test_guided_beams_are_those_of_a_search_over_guided_log_probabilities(double, tiny_tokenizer):
    model, prompt, negative = double(), PROMPTS[2], [1, 50]

    def combine(logits, other):
        return other.log_softmax(-1) + 1.8 * (logits.log_softmax(-1) - other.log_softmax(-1))

    def guided(prompt, ids):
        both = logprobs_after(model, prompt + ids), logprobs_after(model, negative + ids)
        return combine(*both).log_softmax(dim=-1)

    settings = {"num_beams": 4, "max_new_tokens": 8, "early_stopping": "never"}
    found = request(tiny_tokenizer, prompt, guidance=Guidance(None, negative, combine), **settings)
    runner = open_runner(model)
    list(run(Engine(runner), [found]))
    ids, score = slow_beam(guided, prompt, 4, 8)
    assert found.result.ids == ids and found.result.score == pytest.approx(score)
    plain = request(tiny_tokenizer, prompt, **settings)
    list(run(Engine(runner), [plain]))
    assert plain.result.ids != ids and runner.live == 0


def test_beams_as_wide_as_the_tree_find_the_likeliest_of_all_sequences(double, tiny_tokenizer):
    model, depth, vocab = double(vocab_size=6), 4, 6
    prompt, scores = [1, 3], {}

    def walk(ids, total):
        if ids and (ids[-1] == 2 or len(ids) == depth):
            scores[tuple(ids)] = total / len(ids)
            return
        for id, logprob in enumerate(logprobs_after(model, prompt + ids).tolist()):
            walk([*ids, id], total + logprob)

    walk([], 0.0)
    params = SamplingParams(num_beams=vocab**depth, max_new_tokens=depth, num_return_sequences=5)
    results = generate(model, tiny_tokenizer, [prompt], params)
    best = sorted(scores, key=scores.get, reverse=True)[:5]
    assert [tuple(each.ids) for each in results] == best
    assert [each.score for each in results] == pytest.approx([scores[ids] for ids in best])


def test_states_of_filters_go_with_their_hypotheses(double, tiny_tokenizer):
    model, prompt = double(), PROMPTS[3]

    class Counting:
        """Bans every third token from being even; knows only what it was told."""

        name = "counting"

        def __init__(self, heard=()):
            self.heard = list(heard)

        def accept(self, id):
            self.heard.append(id)

        def fork(self):
            return Counting(self.heard)

        def mask(self, row, scores):
            assert self.heard == row.new_ids
            return scores.masked_fill(torch.arange(scores.shape[-1]) % 2 == 0, -torch.inf) if len(self.heard) % 3 == 2 else scores

    made = request(tiny_tokenizer, prompt, num_beams=5, max_new_tokens=NEW, num_return_sequences=5, constraints=lambda: [Counting()])
    list(run(Engine(open_runner(model)), [made]))
    answers = [made.results[i].ids for i in range(5)]
    assert all(id % 2 == 1 for ids in answers for id in ids[2::3]) and len({tuple(ids) for ids in answers}) == 5


STREAMED = [
    {"ignore_eos": True},
    {"ignore_eos": True, "num_beams": 2},
    {"ignore_eos": True, "do_sample": True, "temperature": 1.5, "seed": 3},
    {"stop_token_ids": STOPS},
    {"stop_token_ids": STOPS, "length_penalty": -1.0},
]


@pytest.mark.parametrize("options", STREAMED)
def test_a_stream_tells_what_all_beams_share_as_soon_as_they_do_and_takes_nothing_back(double, tiny_tokenizer, options):
    model, early = double(), 0
    for prompt in PROMPTS:
        params = SamplingParams(**{"num_beams": 4, "max_new_tokens": NEW, **options})
        [result] = generate(model, tiny_tokenizer, [prompt], params)
        told, text, step, when = [], "", 0, {}
        for event in stream(model, tiny_tokenizer, prompt, params, trace=True):
            if isinstance(event, Committed):
                assert event.position == len(told)  # each once, in order
                told.append(event.id)
                text += event.text
                when[event.position] = step
            elif isinstance(event, Observed) and isinstance(event.what, BeamTrace):
                step += 1
        assert (told, text) == (result.ids, result.text)
        early += sum(at < step for at in when.values())
        if "ignore_eos" in options:  # nothing finishes before the end: the live beams are all that can be the answer
            assert when == shared_at(model, tiny_tokenizer, prompt, params)
    assert early


def shared_at(model, tokenizer, prompt, params) -> dict[int, int]:
    """For each position the step at which all beams first agree on what stands there, by the trace."""
    [result] = generate(model, tokenizer, [prompt], params, trace=True)
    steps = [event.what for event in result.trace if isinstance(getattr(event, "what", None), BeamTrace)]
    beams, at = [[]], {}
    for number, step in enumerate(steps, 1):
        beams = [[*beams[parent], id] for parent, id, _ in step.live]
        agreed = next((i for i in range(number) if len({ids[i] for ids in beams}) > 1), number)
        for position in range(agreed):
            at.setdefault(position, number)
    return at


def test_a_told_beginning_is_shared_by_the_best_finished_hypothesis_too(double, tiny_tokenizer, monkeypatch):
    model, held, steps = double(), 0, []
    publish_agreed = beam.publish_agreed

    def watched(searches, shown):
        told = publish_agreed(searches, shown)
        [search] = searches
        steps.append((told, [row.new_ids for row in search.sequences], [row.new_ids for row in search.ended.sequences]))
        return told

    monkeypatch.setattr(beam, "publish_agreed", watched)
    settings = {"num_beams": 3, "max_new_tokens": NEW, "stop_token_ids": STOPS, "length_penalty": 0.0, "early_stopping": "never"}
    for prompt in PROMPTS:
        steps.clear()
        [result] = generate(model, tiny_tokenizer, [prompt], SamplingParams(**settings))
        for told, live, ended in steps:
            could_be = live + ended[:1]
            assert all(ids[:told] == result.ids[:told] for ids in could_be)
            if live:
                assert len({tuple(ids[: told + 1]) for ids in could_be}) > 1 or any(len(ids) == told for ids in could_be)
                held += len({tuple(ids[: told + 1]) for ids in live}) == 1 and len(live[0]) > told  # the finished one alone holds it back
    assert held


def test_a_trace_holds_the_tree_of_beams(double, tiny_tokenizer):
    model, prompt = double(), PROMPTS[0]
    params = SamplingParams(num_beams=3, num_return_sequences=3, max_new_tokens=6, stop_token_ids=STOPS, early_stopping="never")
    results = generate(model, tiny_tokenizer, [prompt], params, trace=True)
    steps = [event for event in results[0].trace if isinstance(getattr(event, "what", None), BeamTrace)]
    assert [event.position for event in steps] == list(range(6))
    beams = [[]]
    for step in steps[:-1]:
        beams = [[*beams[parent], id] for parent, id, _ in step.what.live]
        for ids, (*_, total) in zip(beams, step.what.live):
            slow = sum(float(logprobs_after(model, prompt + ids[:i])[id]) for i, id in enumerate(ids))
            assert total == pytest.approx(slow)
    assert steps[-1].what.finished == tuple(each.score for each in results)


def test_rows_are_copied_only_where_the_parent_changes(double, tiny_tokenizer):
    model, prompt = double(), PROMPTS[0]
    runner = open_runner(model)
    copied, fork, copy = [], runner.fork, runner.copy
    runner.fork = lambda rows: copied.append(("fork", len(rows))) or fork(rows)
    runner.copy = lambda *which: copied.append(("copy", *which[:2])) or copy(*which)
    made = request(tiny_tokenizer, prompt, num_beams=4, max_new_tokens=NEW, traced=True)
    steps = []
    made.on_event = lambda event: steps.append(event.what) if isinstance(getattr(event, "what", None), BeamTrace) else None
    engine = Engine(runner)
    engine.submit(made)
    while engine.step():
        pass
    moved = sum(4 - len({parent for parent, *_ in step.live}) for step in steps[1:] if step.live)
    assert [each for each in copied if each[0] == "fork"] == [("fork", 1)] * 3
    assert len(copied) == 3 + moved and all(source != target for _, source, *target in copied[3:] for target in target)
    assert runner.live == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3"),
        ({"num_beams": 3, "num_beam_groups": 2, "diversity_penalty": 1.0}, "num_beams=3"),
        ({"num_beams": 4, "num_beam_groups": 2}, "diversity_penalty"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0, "do_sample": True}, "random"),
        ({"num_beams": 2, "diversity_penalty": 1.0}, "diversity_penalty"),
        ({"num_beams": 2, "best_of": 3}, "best_of"),
    ],
)  # fmt: skip
def test_what_beams_cannot_honour_is_refused_by_name(tiny_llama, tiny_tokenizer, settings, named):
    with pytest.raises(UserError, match=named):
        generate(tiny_llama, tiny_tokenizer, [[5, 6]], SamplingParams(max_new_tokens=4, **settings))


def test_fewer_possible_answers_than_asked_for_are_an_error(tiny_llama, tiny_tokenizer):
    allowed = {2: [7], 3: [2, 9]}  # by the length of prompt and answer
    params = SamplingParams(num_beams=4, num_return_sequences=4, max_new_tokens=2, prefix_allowed_tokens_fn=lambda ids: allowed[len(ids)])
    with pytest.raises(UserError, match="2 answers within"):
        generate(tiny_llama, tiny_tokenizer, [[5, 6]], params)


def test_a_memory_keeps_what_the_best_hypothesis_has_read(tiny_llama, tiny_tokenizer):
    cache, params = PrefixCache(tiny_llama), SamplingParams(num_beams=3, max_new_tokens=6, ignore_eos=True)
    prompt = list(range(5, 45))
    [first] = generate(tiny_llama, tiny_tokenizer, [prompt], params, prefix_cache=cache)
    assert cache.runner.live == len(cache.slots) == 1
    further = [*prompt, *first.ids[:3], 9]
    [alone] = generate(tiny_llama, tiny_tokenizer, [further], params)
    before = cache.runner.positions
    [second] = generate(tiny_llama, tiny_tokenizer, [further], params, prefix_cache=cache)
    assert second.ids == alone.ids
    assert cache.runner.positions - before < len(prompt)
