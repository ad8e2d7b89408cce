"""Choosing among sampled answers, recomputed from answers that were sampled one by one."""

import math
from itertools import product

import pytest

from seodang.data.chat import prompt_ids
from seodang.data.errors import UserError
from seodang.infer.engine.generate import generate, stream
from seodang.infer.engine.params import SamplingParams
from seodang.infer.requests.events import Committed, Finished
from seodang.infer.requests.request import derived
from seodang.infer.strategies.selection import chrf

PROMPT = [40, 41, 42]
SAMPLED = {"temperature": 1.0, "max_new_tokens": 6, "ignore_eos": True}
N = 6
SACREBLEU = [  # sacrebleu 2, CHRF(word_order=0).sentence_score over 100
    ("the cat sat on the mat", "the cat is on the mat", 0.645779420625287),
    ("abc", "abd", 0.38888888888888884),
    ("Suwon lies in Korea.", "Suwon is a city in South Korea.", 0.3114829751372071),
    ("ab", "abcdef", 0.3125),
    ("42", "43", 0.25),
    ("안녕하세요 여러분", "안녕 여러분", 0.36502849002849),
]


def one_by_one(model, tokenizer, prompt=PROMPT, **more) -> list:
    """The answers of N requests with the seeds that a request of N answers gives them."""
    seeds = [7] + [derived(7, choice) for choice in range(1, N)]
    return [generate(model, tokenizer, [prompt], SamplingParams(**SAMPLED, seed=seed, **more))[0] for seed in seeds]


def vowels(prompt: str, answer: str) -> int:
    return sum(c in "aeiouAEIOU" for c in answer)


@pytest.fixture
def model(fresh_tiny):
    return fresh_tiny("llama").double()


def test_best_by_reward_are_the_best_of_those_sampled_one_by_one(model, tiny_tokenizer):
    alone = one_by_one(model, tiny_tokenizer)
    params = SamplingParams(**SAMPLED, seed=7, best_of=N, num_return_sequences=3, reward=vowels)
    results = generate(model, tiny_tokenizer, [PROMPT], params)
    expected = sorted(alone, key=lambda result: -vowels("", result.text))[:3]
    assert [r.ids for r in results] == [r.ids for r in expected]
    assert [r.score for r in results] == [vowels("", r.text) for r in expected]
    assert [r.choice for r in results] == [0, 1, 2]
    assert len({vowels("", r.text) for r in alone}) > 1
    for result in results:  # the seed repeats it
        [again] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(**SAMPLED, seed=result.seed))
        assert again.ids == result.ids


def test_without_a_reward_the_mean_log_probability_ranks(model, tiny_tokenizer):
    alone = one_by_one(model, tiny_tokenizer)
    [best] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(**SAMPLED, seed=7, best_of=N))
    means = [sum(result.logprobs) / len(result.logprobs) for result in alone]
    assert best.ids == alone[means.index(max(means))].ids
    assert best.score == pytest.approx(max(means))


def test_reward_is_told_the_text_of_the_prompt(model, tiny_tokenizer):
    told = []
    reward = lambda prompt, answer: told.append(prompt) or 0.0
    talk = [{"role": "user", "content": "Hi"}]
    prompts = ["a text", talk, tiny_tokenizer("ids")["input_ids"]]
    generate(model, tiny_tokenizer, prompts, SamplingParams(**SAMPLED, seed=7, best_of=2, reward=reward))
    rendered = tiny_tokenizer.decode(prompt_ids(tiny_tokenizer, talk))
    assert rendered.startswith("<|im_start|>user")
    assert sorted(told) == sorted(["a text", rendered, "ids"] * 2)


def test_equal_rewards_keep_the_order_of_sampling(model, tiny_tokenizer):
    alone = one_by_one(model, tiny_tokenizer)
    params = SamplingParams(**SAMPLED, seed=7, best_of=N, num_return_sequences=2, reward=lambda prompt, answer: True)
    assert [r.ids for r in generate(model, tiny_tokenizer, [PROMPT], params)] == [alone[0].ids, alone[1].ids]


def test_the_vote_goes_to_what_most_say_and_the_likelier_of_equals(model, tiny_tokenizer):
    prompts = [[40 + i, 41, 42] for i in range(4)]
    say = lambda text: len(text.replace("\ufffd", "").strip()) % 3 or None  # None does not vote
    results = generate(model, tiny_tokenizer, prompts, SamplingParams(**SAMPLED, seed=7, best_of=N, answer_of=say))
    for prompt, result in zip(prompts, results):
        alone = one_by_one(model, tiny_tokenizer, prompt)
        groups = {said: [r for r in alone if say(r.text) == said] for said in (1, 2)}
        rank = lambda group: (len(group), sum(sum(r.logprobs) for r in group))
        winners = max(groups.values(), key=rank)
        assert result.ids == (winners or alone)[0].ids
        assert result.score == len(winners) / N


def test_where_nothing_can_be_extracted_the_first_is_returned_with_no_votes(model, tiny_tokenizer):
    [result] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(**SAMPLED, seed=7, best_of=3, answer_of=lambda text: None))
    assert result.ids == one_by_one(model, tiny_tokenizer)[0].ids and result.score == 0


@pytest.mark.parametrize("utility", [None, lambda hypothesis, reference: -abs(len(set(hypothesis)) - len(set(reference)))])
def test_least_risk_is_the_highest_mean_utility_against_the_others(model, tiny_tokenizer, utility):
    alone = one_by_one(model, tiny_tokenizer)
    params = SamplingParams(**SAMPLED, seed=7, best_of=N, num_return_sequences=2, utility=utility, strategy="minimum_bayes_risk")
    results = generate(model, tiny_tokenizer, [PROMPT], params)
    table = {(i, j): (utility or chrf)(alone[i].text, alone[j].text) for i, j in product(range(N), repeat=2) if i != j}
    means = [sum(table[i, j] for j in range(N) if j != i) / (N - 1) for i in range(N)]
    order = sorted(range(N), key=lambda i: -means[i])
    assert [r.ids for r in results] == [alone[i].ids for i in order[:2]]
    assert [r.score for r in results] == pytest.approx([means[i] for i in order[:2]])


def test_chrf_is_that_of_sacrebleu():
    for hypothesis, reference, expected in SACREBLEU:
        assert chrf(hypothesis, reference) == pytest.approx(expected, abs=1e-9)
    # by hand: precision and recall are 2/3, 1/2 and 0 over n-grams of 1, 2 and 3 characters
    assert chrf("abc", "a b d") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert chrf("", " ") == chrf("same", "same") == 1.0
    assert chrf("", "a") == 0.0


def test_nothing_is_told_before_the_choice_and_then_the_chosen_answer(model, tiny_tokenizer):
    events = list(stream(model, tiny_tokenizer, PROMPT, SamplingParams(**SAMPLED, seed=7, best_of=N, reward=vowels)))
    [best] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(**SAMPLED, seed=7, best_of=N, reward=vowels))
    assert [event.id for event in events if isinstance(event, Committed)] == best.ids
    assert isinstance(events[-1], Finished) and len(events) == len(best.ids) + 1


def test_choosing_works_under_guidance(model, tiny_tokenizer):
    guided = {"guidance_scale": 1.5, "negative_prompt": [50, 51]}
    alone = one_by_one(model, tiny_tokenizer, **guided)
    [best] = generate(model, tiny_tokenizer, [PROMPT], SamplingParams(**SAMPLED, seed=7, best_of=N, reward=vowels, **guided))
    assert best.ids == max(alone, key=lambda result: vowels("", result.text)).ids


@pytest.mark.parametrize("value", [math.nan, "good", None, [1.0, 2.0]])
def test_a_reward_or_utility_that_is_no_number_is_refused(model, tiny_tokenizer, value):
    for settings in ({"reward": lambda prompt, answer: value}, {"utility": lambda hypothesis, reference: value}):
        name = next(iter(settings))
        with pytest.raises(UserError, match=f"{name} must return a number, got"):
            generate(model, tiny_tokenizer, [PROMPT], SamplingParams(**SAMPLED, best_of=2, **settings))


def test_an_extraction_that_cannot_be_counted_is_refused(model, tiny_tokenizer):
    with pytest.raises(UserError, match="answer_of must return"):
        generate(model, tiny_tokenizer, [PROMPT], SamplingParams(**SAMPLED, best_of=2, answer_of=lambda text: [text]))


@pytest.mark.parametrize(
    "settings, named",
    [
        ({"best_of": 4}, "best_of=4 greedy answers"),
        ({"best_of": 2, "num_return_sequences": 3, "do_sample": True}, "num_return_sequences=3 answers cannot be chosen among best_of=2"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 greedy answers .* give do_sample or num_beams"),
        ({"reward": vowels, "do_sample": True}, "reward=vowels"),
        ({"best_of": 3, "reward": vowels, "num_beams": 2}, "best_of=3|reward"),
        ({"answer_of": str.strip, "do_sample": True}, "best_of"),
        ({"answer_of": str.strip, "best_of": 3, "num_return_sequences": 2, "do_sample": True}, "one winner"),
        ({"strategy": "self_consistency", "best_of": 3, "do_sample": True}, "answer_of"),
        ({"strategy": "minimum_bayes_risk", "best_of": 1, "do_sample": True}, "at least 2, got 1"),
    ],
)
def test_what_cannot_be_chosen_is_refused_by_name(tiny, tokenizer, settings, named):
    with pytest.raises(UserError, match=named):
        generate(tiny("llama"), tokenizer, [PROMPT], SamplingParams(max_new_tokens=2, **settings))
