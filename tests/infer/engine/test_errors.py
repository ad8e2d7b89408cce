"""One request's error is that request's: it ends with a message, the others say what they would have said, and nothing is left behind."""

import pytest

from seodang.data.errors import UserError
from seodang.infer import Committed, Finished, PrefixCache, SamplingParams, generate, stream
from seodang.infer.engine.generate import prepare, results, run
from seodang.infer.requests.sequence import TokenSequence

PROMPT, OTHER = [5, 6, 7, 5, 6], [20, 21, 22]
BASE = {"max_new_tokens": 8, "ignore_eos": True}


def lost(*given):
    raise KeyError("lost")


def filter_lost_at_the_second(logits, history):
    return lost() if history.shape[1] == len(PROMPT) + 1 else logits


def filter_lost_at_the_third(logits, history):
    return lost() if history.shape[1] == len(PROMPT) + 2 else logits


def filter_dead_at_the_third(logits, history):
    return logits - float("inf") if history.shape[1] == len(PROMPT) + 2 else logits


def stop_lost_at_the_third(text):
    return lost() if len(text) > 2 else False


def nothing_at_the_third(ids):
    return [] if len(ids) == len(PROMPT) + 2 else range(3, 128)


def lost_at_the_second_call():
    calls = []
    return lambda text: calls.append(text) or (lost() if len(calls) > 1 else False)


FAULTS = {
    "a filter raises": ({"filters": [filter_lost_at_the_third]}, "the filter filter_lost_at_the_third raised KeyError: 'lost'"),
    "a filter leaves nothing": ({"filters": [filter_dead_at_the_third]}, "the filter filter_dead_at_the_third left no token to choose after 7"),
    "a stop function raises": ({"stop_when": stop_lost_at_the_third}, "stop_when stop_lost_at_the_third raised KeyError: 'lost'"),
    "nothing is allowed": ({"prefix_allowed_tokens_fn": nothing_at_the_third}, "prefix_allowed_tokens_fn left no token to choose at step 2 of prompt 2"),
    "what is allowed cannot be told": ({"prefix_allowed_tokens_fn": lost}, "prefix_allowed_tokens_fn lost raised KeyError: 'lost'"),
    "a pattern never ends": ({"stop_regex": r"(?s)(?:.|.)+[.;](?<=x.)"}, "takes more than 0.01 s behind"),
}  # fmt: skip
STRATEGIES = {
    "greedy": {},
    "two samples": {"temperature": 1.0, "seed": 3, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 3},
    "dola": {"dola_layers": "low"},
    "lookup": {"prompt_lookup_num_tokens": 3, "num_assistant_tokens_schedule": "constant"},
    "draft": {"assistant_model": None, "temperature": 1.0, "seed": 3, "num_return_sequences": 2},
    "guided": {"guidance_scale": 1.5},
}


@pytest.fixture
def answered(tiny, tiny_tokenizer):
    """`answered(prompts, params)`: the results, sorted, after which no runner holds a row."""

    def answer(prompts: list, params: list[SamplingParams], max_rows: int = 64) -> list:
        engine, requests = prepare(tiny("llama"), tiny_tokenizer, prompts, params, False, None, max_rows)
        found = list(results(run(engine, requests), requests, False))
        assert all(runner.live == 0 for runner in engine._runners.values())
        return sorted(found, key=lambda result: (result.prompt_index, result.choice))

    return answer


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_that_fails_leaves_the_others_what_they_say(answered, tiny, monkeypatch, strategy, fault):
    monkeypatch.setattr("seodang.infer.requests.stop.SEARCH_SECONDS", 0.01)
    options = dict(STRATEGIES[strategy])
    if "assistant_model" in options:
        options["assistant_model"] = tiny("llama", 1)
    settings, message = FAULTS[fault]
    alike, sampled = SamplingParams(**BASE, **options), SamplingParams(**BASE, temperature=1.0, seed=5)
    faulty = SamplingParams(**{**BASE, "max_new_tokens": 40 if "regex" in str(settings) else 8}, **options, **settings)
    found = answered([OTHER, PROMPT, PROMPT], [sampled, faulty, alike])
    alone = answered([OTHER, PROMPT], [sampled, alike])
    failed = [result for result in found if result.prompt_index == 1]
    assert len(failed) == faulty.num_return_sequences
    for result in failed:
        assert result.finish_reason == "error" and message in result.error and len(result.ids) == len(result.logprobs) < 40
    others = [result for result in found if result.prompt_index != 1]
    assert [(each.ids, each.text, each.finish_reason) for each in others] == [(each.ids, each.text, each.finish_reason) for each in alone]
    assert others[0].error is None


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"best_of": 2, "reward": lost}, "reward lost raised KeyError: 'lost'"),
        ({"best_of": 2, "reward": lambda prompt, text: "good"}, "reward must return a number, got 'good'"),
        ({"best_of": 2, "answer_of": lost}, "answer_of lost raised KeyError: 'lost'"),
        ({"best_of": 2, "answer_of": lambda text: ([],)}, "answer_of must return what can be compared and counted"),
        ({"best_of": 2, "utility": lost}, "utility lost raised KeyError: 'lost'"),
    ],
)
def test_a_choice_among_answers_that_fails_is_its_requests_too(answered, settings, message):
    sampled = SamplingParams(**BASE, temperature=1.0, seed=5)
    failed, other = answered([PROMPT, OTHER], [SamplingParams(**BASE, temperature=1.0, **settings), sampled])
    assert (failed.finish_reason, failed.ids, failed.text) == ("error", [], "") and message in failed.error
    assert other.ids == answered([OTHER], [sampled])[0].ids


def test_a_search_in_a_dead_end_is_its_requests_error(answered, tiny, tiny_tokenizer):
    """The trie's only path lacks the forced word, so that no beam can end."""
    settings = {**BASE, "ignore_eos": False, "num_beams": 2, "trie": ["ab"], "force_words_ids": [[9]]}
    failed, other = answered([PROMPT, OTHER], [SamplingParams(**settings), SamplingParams(**BASE)])
    assert failed.finish_reason == "error" and "prompt 1 has 0 answers within its filters, words and time" in failed.error
    assert len(other.ids) == 8
    for trace in (False, True):
        with pytest.raises(UserError, match="prompt 1 has 0 answers within its filters"):
            generate(tiny("llama"), tiny_tokenizer, [PROMPT], SamplingParams(**settings), trace=trace)


def test_room_that_was_kept_for_a_request_that_fails_is_there_for_the_next(answered):
    wide = {**BASE, "temperature": 1.0, "num_return_sequences": 3}
    for settings in ({"prefix": "a", "stop_when": lost_at_the_second_call()}, {"filters": [filter_lost_at_the_second]}):
        failed = SamplingParams(**wide, **settings)
        found = answered([PROMPT, OTHER, OTHER], [failed, SamplingParams(**wide, seed=1), SamplingParams(**BASE)], max_rows=3)
        assert [result.finish_reason for result in found] == ["error"] * 3 + ["length"] * 4


def test_an_answer_that_was_there_already_stays(answered):
    """The two answers end at different lengths; the stop function fails on a text of five characters alone."""
    stop = lambda text: lost() if len(text) == 5 else text[:1] < "Z"
    params = [SamplingParams(**BASE, temperature=2.0, seed=seed, num_return_sequences=4, stop_when=stop) for seed in (0, 2, 3)]
    found = answered([PROMPT] * 3, params)
    assert {result.finish_reason for result in found} == {"stop", "error"}
    assert all((len(result.ids) == 1) == (result.finish_reason == "stop") for result in found)
    assert all(len(result.ids) in (4, 5) and len(result.text) == 4 for result in found if result.error)


def test_a_cache_goes_on_after_an_error(tiny, tiny_tokenizer):
    model = tiny("llama")
    cache = PrefixCache(model)
    params = [SamplingParams(**BASE), SamplingParams(**BASE, filters=[filter_lost_at_the_third]), SamplingParams(**BASE, num_beams=2, filters=[filter_lost_at_the_second])]
    wanted = generate(model, tiny_tokenizer, [PROMPT], params[0])[0].ids
    for _ in range(2):
        good, *failed = generate(model, tiny_tokenizer, [PROMPT] * 3, params, prefix_cache=cache)
        assert good.ids == wanted and [each.finish_reason for each in failed] == ["error"] * 2
        assert cache.runner.live == len(cache.slots) == 1


def test_one_prompt_raises_and_several_do_not_unless_it_is_said(tiny, tiny_tokenizer):
    faulty = SamplingParams(**BASE, filters=[filter_lost_at_the_third])
    ask = lambda count, **how: generate(tiny("llama"), tiny_tokenizer, [PROMPT] * count, faulty, **how)
    with pytest.raises(UserError, match="raised KeyError") as raised:
        ask(1)
    assert isinstance(raised.value.__cause__, KeyError)
    with pytest.raises(UserError, match="raised KeyError"):
        ask(2, on_error="raise")
    for found in (ask(2), ask(2, on_error="result"), ask(1, on_error="result")):
        assert {(each.finish_reason, len(each.ids)) for each in found} == {("error", 2)}
    with pytest.raises(UserError, match="on_error must be"):
        ask(1, on_error="ignore")


def test_a_stream_tells_what_came_and_then_raises(tiny, tiny_tokenizer):
    faulty = SamplingParams(**BASE, filters=[filter_lost_at_the_third])
    cache, heard = PrefixCache(tiny("llama")), []
    with pytest.raises(UserError, match="raised KeyError") as raised:
        for event in stream(tiny("llama"), tiny_tokenizer, PROMPT, faulty, prefix_cache=cache):
            heard.append(event)
    assert [type(event) for event in heard] == [Committed] * 2
    assert cache.runner.live == 0 and raised.value is not None  # though the traceback is still held


def test_the_event_says_what_went_wrong(tiny, tiny_tokenizer):
    engine, requests = prepare(tiny("llama"), tiny_tokenizer, [PROMPT], SamplingParams(**BASE, filters=[filter_lost_at_the_second]), False, None, 4)
    committed, finished = run(engine, requests)
    assert isinstance(committed, Committed) and finished == Finished(0, "error", 0, "the filter filter_lost_at_the_second raised KeyError: 'lost'")


def test_a_defect_of_ours_is_no_requests_error(tiny, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(TokenSequence, "commit", lost)
    for options in ({}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        with pytest.raises(KeyError, match="lost"):
            generate(tiny("llama"), tiny_tokenizer, [PROMPT] * 2, SamplingParams(**BASE, **options))
