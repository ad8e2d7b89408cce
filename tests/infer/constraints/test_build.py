"""Prefixes, healed prompts, forced texts, tries and thinking budgets: token for token against brute force."""

import math
import re

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, generate, stream
from seodang.infer.constraints.forcing import ThinkingBudget, taken_back
from seodang.infer.requests.events import Committed
from seodang.infer.text.vocabulary import Vocabulary


def scores_behind(model, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def greedy(model, ids: list[int], count: int, forced: dict[int, int] | None = None) -> list[int]:
    """The likeliest tokens one by one, with a full pass each, but those that are forced."""
    new: list[int] = []
    for position in range(count):
        scores = scores_behind(model, ids + new)
        scores[2] = -torch.inf
        new.append((forced or {}).get(position, int(scores.argmax())))
    return new


def said(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# prefix


@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}, {"penalty_alpha": 0.0, "top_k": 2}])
def test_an_answer_begins_with_the_prefix_and_goes_on_as_if_it_had_said_it(tiny_llama, tiny_tokenizer, way):
    params = SamplingParams(max_new_tokens=12, ignore_eos=True, **way)
    prompt, prefix = said(tiny_tokenizer, "abc"), said(tiny_tokenizer, "So:")
    [result] = generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(**{**params.given, "prefix": "So:"}))
    [behind] = generate(tiny_llama, tiny_tokenizer, [prompt + prefix], SamplingParams(**{**params.given, "max_new_tokens": 9}))
    assert result.ids == prefix + behind.ids
    assert result.text == "So:" + behind.text and result.prompt_length == 3
    assert result.logprobs[:3] == [0.0, 0.0, 0.0]


def test_a_prefix_is_streamed_and_counts_as_a_part_of_the_answer(tiny_llama, tiny_tokenizer):
    events = list(stream(tiny_llama, tiny_tokenizer, "abc", SamplingParams(prefix="So:", max_new_tokens=5)))
    events = [event for event in events if isinstance(event, Committed)]
    assert [event.text for event in events[:3]] == ["S", "o", ":"] and [event.position for event in events] == list(range(len(events)))
    assert len(events) <= 5


def test_special_tokens_in_a_prefix_are_text(tiny_llama, tiny_tokenizer):
    params = SamplingParams(prefix="<|im_end|>x", max_new_tokens=14)
    [result] = generate(tiny_llama, tiny_tokenizer, [[{"role": "user", "content": "a"}]], params)
    assert result.text.startswith("<|im_end|>x") and result.ids[:11] == [tiny_tokenizer.convert_tokens_to_ids(c) for c in "<|im_end|>x"]


def test_a_message_of_the_real_model_goes_on_from_its_prefix(real_model, tokenizer):
    params = SamplingParams(prefix="서울 is", max_new_tokens=12)
    [result] = generate(real_model, tokenizer, [[{"role": "user", "content": "Where is Seoul?"}]], params)
    assert result.text.startswith("서울 is ")
    assert result.ids[: len(said(tokenizer, "서울 is"))] == said(tokenizer, "서울 is")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prefix": "abcdefghi"}, "prefix takes 9 tokens of the answer, but max_new_tokens=9"),
        ({"prefix": "abc", "stop": "bc"}, "completes a stop"),
        ({"prefix": "abc", "stop_regex": "b."}, "completes a stop"),
        ({"prefix": "abc", "stop_when": lambda text: text == "ab"}, "completes a stop"),
        ({"prefix": "x", "trie": ["ab"]}, "no beginning that trie allows"),
        ({"stop_regex": "("}, "no regular expression"),
        ({"forced_text": {1: "abc", 3: "x"}}, "meets the one before, which reaches to 3"),
        ({"forced_text": {8: "ab"}}, "takes 2 tokens, but max_new_tokens=9"),
        ({"forced_text": {-1: "a"}}, "positions from 0"),
        ({"forced_text": {1: ""}}, "at least one character"),
        ({"forced_text": {1: "b"}, "prefix": "abc"}, "meets the answer's given beginning"),
        ({"trie": ["abcdefghij"]}, "a path of 10 tokens, but max_new_tokens=9"),
        ({"trie": ["ab", []]}, "empty path"),
        ({"trie": [[500]]}, "trie has the id 500"),
        ({"trie": ["a"], "choice": ["a"]}, "choice and trie both"),
        ({"trie": ["a"], "ignore_eos": True}, "ignore_eos"),
        ({"thinking_budget": 8, "thinking_end": "."}, "leave nothing of max_new_tokens=9"),
        ({"thinking_budget": 2, "thinking_end": ""}, "no tokens for thinking_end"),
        ({"thinking_budget": 2, "thinking_end": "abc", "forced_text": {4: "x"}}, "meets the end of the thinking at 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_computed(tiny_llama, tiny_tokenizer, monkeypatch, settings, words):
    monkeypatch.setattr(type(tiny_llama), "forward", lambda *args, **kwargs: pytest.fail("computed"))
    with pytest.raises(UserError, match=re.escape(words)):
        generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(max_new_tokens=9, **settings))


# forced text


def test_forced_texts_come_at_their_places_and_the_model_goes_on_from_them(tiny_llama, tiny_tokenizer):
    forced = {2: 35, 3: 36, 7: 37}
    texts = {2: tiny_tokenizer.decode([35, 36]), 7: tiny_tokenizer.decode([37])}
    expected = greedy(tiny_llama, said(tiny_tokenizer, "abc"), 10, forced)
    params = SamplingParams(max_new_tokens=10, min_new_tokens=10, forced_text=texts)
    drafted = SamplingParams(max_new_tokens=10, min_new_tokens=10, forced_text=texts, prompt_lookup_num_tokens=3)
    for result in generate(tiny_llama, tiny_tokenizer, ["abc", "abc"], [params, drafted]):
        assert result.ids == expected
        assert [result.logprobs[position] for position in forced] == [0.0] * 3


def test_forced_text_comes_even_where_a_filter_drops_it_in_every_hypothesis(tiny_llama, tiny_tokenizer):
    params = dict(max_new_tokens=6, min_new_tokens=6, forced_text={1: "xx"}, no_repeat_ngram_size=1, suppress_tokens=said(tiny_tokenizer, "x"))
    ways = [{}, {"num_beams": 3, "num_return_sequences": 3}, {"temperature": 1.0, "num_return_sequences": 3}]
    for result in generate(tiny_llama, tiny_tokenizer, ["abc"] * 3, [SamplingParams(**params, **way) for way in ways]):
        assert result.ids[1:3] == said(tiny_tokenizer, "xx") and said(tiny_tokenizer, "x")[0] not in (*result.ids[:1], *result.ids[3:])


# trie


PATHS = ["ab", "abcd", "x", "xyz", [40, 41, 42]]


def test_probabilities_on_a_trie_are_those_of_the_masked_model(tiny_llama, tiny_tokenizer):
    paths = [tuple(said(tiny_tokenizer, path) if isinstance(path, str) else path) for path in PATHS]
    allowed = {}
    for path in paths:
        for n, id in enumerate([*path, 2]):
            allowed.setdefault(path[:n], set()).add(id)
    expected = {}
    for path in paths:
        total = 0.0
        for n, id in enumerate([*path, 2]):
            scores = scores_behind(tiny_llama, [5, 6, *path[:n]]).double()
            total += float(scores[id] - scores[sorted(allowed[path[:n]])].logsumexp(0))
        expected[path] = math.exp(total)
    assert sum(expected.values()) == pytest.approx(1)
    params = SamplingParams(trie=PATHS, do_sample=True, num_return_sequences=200, max_new_tokens=8, seed=1)
    results = generate(tiny_llama, tiny_tokenizer, [[5, 6]], params, max_rows=200)
    for result in results:
        assert math.exp(sum(result.logprobs)) == pytest.approx(expected[tuple(result.ids[:-1])], rel=1e-4)
    found = {path: sum(tuple(result.ids[:-1]) == path for result in results) for path in paths}
    assert sum((found[path] - 200 * p) ** 2 / (200 * p) for path, p in expected.items()) < 20  # 4 degrees of freedom, p = 0.0005


@pytest.mark.parametrize("way", [pytest.param({}, marks=pytest.mark.full), {"num_beams": 4, "num_return_sequences": 4}, {"prompt_lookup_num_tokens": 3}])
def test_every_answer_is_a_path(real_model, tokenizer, way):
    paths = ["훈장님", "훈장님의 나무", "tree", "trees and more"]
    for result in generate(real_model, tokenizer, ["나무 is a"], SamplingParams(trie=paths, max_new_tokens=24, **way)):
        assert result.text in paths and result.finish_reason == "eos"


# thinking


def test_the_end_of_the_thinking_is_forced_when_the_budget_is_spent(tiny_llama, tiny_tokenizer):
    end = said(tiny_tokenizer, "</t>")
    for budget in (0, 3):
        params = SamplingParams(thinking_budget=budget, thinking_end="</t>", max_new_tokens=14, min_new_tokens=14)
        [result] = generate(tiny_llama, tiny_tokenizer, ["abc"], params)
        assert result.ids == greedy(tiny_llama, said(tiny_tokenizer, "abc"), 14, dict(enumerate(end, budget)))


def test_a_thinking_that_ends_by_itself_is_left_alone(tiny_llama, tiny_tokenizer):
    free = SamplingParams(max_new_tokens=14, min_new_tokens=14)
    [plain] = generate(tiny_llama, tiny_tokenizer, ["abc"], free)
    end = tiny_tokenizer.decode(plain.ids[3:4])
    assert plain.ids.index(plain.ids[3]) == 3 and len(end) == 1 and end != "\ufffd"
    [budgeted] = generate(tiny_llama, tiny_tokenizer, ["abc"], SamplingParams(**{**free.given, "thinking_budget": 6, "thinking_end": end}))
    assert budgeted.ids == plain.ids
    closed = SamplingParams(**{**free.given, "thinking_budget": 1, "thinking_end": "</t>", "prefix": "</t>"})
    [prefixed] = generate(tiny_llama, tiny_tokenizer, ["abc"], closed)
    assert prefixed.text.count("</t>") == 1


def allowed_by(constraint) -> list[int]:
    return constraint.mask(None, torch.zeros(1, 128))[0].isfinite().nonzero()[:, 0].tolist()


def test_what_is_said_of_the_end_already_is_not_said_twice(tiny_tokenizer):
    a, x, y, z = said(tiny_tokenizer, "axyz")
    constraint = ThinkingBudget(3, [x, y, z], Vocabulary.of(tiny_tokenizer), "xyz")
    for id in (a, x, y):
        assert len(allowed_by(constraint)) == 128
        constraint.accept(id)
    assert allowed_by(constraint) == [z]
    fork = constraint.fork()
    constraint.accept(z)
    assert len(allowed_by(constraint)) == 128 and allowed_by(fork) == [z]


def test_a_grammar_speaks_of_what_follows_the_thinking(tiny_llama, tiny_tokenizer):
    params = SamplingParams(thinking_budget=5, thinking_end="</t>", regex="(yes|no)!", max_new_tokens=20)
    ways = [{}, {"num_beams": 3, "num_return_sequences": 3}, {"temperature": 2.0, "num_return_sequences": 4, "seed": 2}]
    for result in generate(tiny_llama, tiny_tokenizer, ["abc"] * 3, [SamplingParams(**{**params.given, **way}) for way in ways]):
        thought, answer = result.text.split("</t>")
        assert len(result.ids) == 5 + 4 + len(answer) + 1 and answer in ("yes!", "no!")


# token healing


def brute_force_first(model, tokenizer, ids: list[int], text: str) -> int:
    """The likeliest token that begins with the text, or that the text begins with and other tokens can complete."""
    names = [tokenizer.decode([id]) for id in range(len(tokenizer))]
    scores = scores_behind(model, ids)
    fitting = [id for id, name in enumerate(names) if id > 16 and name and (name.startswith(text) or text.startswith(name))]
    return max(fitting, key=lambda id: float(scores[id]))


@pytest.mark.parametrize(("prompt", "text"), [('The link is <a href="http:', ":"), ("I like read", " read"), ("Let us go to the moun", " moun")])
def test_a_healed_prompt_goes_on_with_the_likeliest_token_of_that_beginning(real_model, tokenizer, prompt, text):
    ids = said(tokenizer, prompt)
    [result] = generate(real_model, tokenizer, [prompt], SamplingParams(token_healing=True, max_new_tokens=6))
    kept = ids[: result.prompt_length]
    assert tokenizer.decode(kept) + text == prompt
    assert result.ids[0] == brute_force_first(real_model, tokenizer, kept, text)
    assert tokenizer.decode([*kept, *result.ids]) == prompt + result.text  # the text begins where the prompt ended


def test_healing_changes_nothing_where_no_token_goes_on_from_the_end(tiny_llama, tiny_tokenizer):
    params = SamplingParams(max_new_tokens=8, ignore_eos=True)
    plain, healed = generate(tiny_llama, tiny_tokenizer, ["abc"] * 2, [params, SamplingParams(**{**params.given, "token_healing": True})])
    assert (healed.ids, healed.text, healed.prompt_length) == (plain.ids, plain.text, 3)  # its tokens are single letters


def test_a_healed_prefix_is_a_part_of_the_text_in_all_its_spellings(real_model, tokenizer):
    talk = [{"role": "user", "content": "Where is the page?"}]
    base = dict(prefix="At http:", token_healing=True, max_new_tokens=10)
    several = {"num_return_sequences": 3}
    ways = [{}, {"num_beams": 3, **several}, {"temperature": 1.0, "seed": 1, **several}, {"prompt_lookup_num_tokens": 3}]
    results = generate(real_model, tokenizer, [talk] * len(ways), [SamplingParams(**base, **way) for way in ways])
    assert all(result.text.startswith("At http:") for result in results)
    assert results[0].ids == results[-1].ids and results[0].ids[:2] == said(tokenizer, "At http:")[:2]
    assert said(tokenizer, "At http:")[-1] not in results[0].ids[:3]  # "://" is one token


def test_what_is_taken_back_are_whole_characters_and_never_a_special_token():
    vocabulary = Vocabulary([None, b"a", b"ab", b"abcd", b"c", "훈".encode()[:2], "훈".encode()[2:], "훈장".encode(), b"x"])
    assert taken_back(vocabulary, [8, 1], 2) == 1  # ab and abcd go on from a
    assert taken_back(vocabulary, [8, 2, 4], 3) == 2  # only abcd goes on from abc
    assert taken_back(vocabulary, [8, 2, 4], 1) == 0
    assert taken_back(vocabulary, [1, 8], 2) == 0
    assert taken_back(vocabulary, [0, 1], 2) == 1
    assert taken_back(vocabulary, [8, 5, 6], 3) == 2
    assert taken_back(vocabulary, [8, 5], 2) == 0  # half a character
    assert vocabulary.consistent(b"abc") == [3, 2]  # ab and c spell it too, a alone leads nowhere


def test_a_long_run_of_one_letter_is_no_riddle():
    vocabulary = Vocabulary([b"a" * n for n in range(1, 61)])
    assert sorted(vocabulary.consistent(b"a" * 58)) == list(range(60))


def test_vocabulary_bytes_are_those_of_the_text(tokenizer):
    vocabulary = Vocabulary.of(tokenizer)
    for text in ("훈장님, 나무 tree\n\n  x", "http://é.com 😀"):
        assert b"".join(vocabulary.tokens[id] for id in said(tokenizer, text)) == text.encode()
    assert vocabulary.tokens[tokenizer.eos_token_id] is None
    for beginning in (b" th", "나".encode()[:1], b"://"):
        assert vocabulary.beginning_with(beginning) and set(vocabulary.beginning_with(beginning)) == {
            id for id, token in enumerate(vocabulary.tokens) if token and token.startswith(beginning)
        }


@pytest.mark.parametrize(
    ("prompt", "settings", "words"),
    [
        ([{"role": "user", "content": "a"}], {}, "heals their prefix"),
        ("abc", {"regex": "a"}, "begins where the prompt ends"),
        ("abc", {"attention_mask": [0, 1, 1]}, "refer to"),
    ],
)
def test_healing_refuses_what_its_moving_end_would_break(tiny_llama, tiny_tokenizer, prompt, settings, words):
    with pytest.raises(UserError, match=words):
        generate(tiny_llama, tiny_tokenizer, [prompt], SamplingParams(token_healing=True, max_new_tokens=9, **settings))
