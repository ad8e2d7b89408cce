"""Settings that are no single value, as the words of a command line: what they are, and what they are refused for."""

import pytest

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, Span, generate
from seodang.infer.requests.written import lines_or_texts, numbers_by_token, texts_by_place


def test_words_become_texts_places_and_numbers():
    assert lines_or_texts("trie", ["yes", "no"]) == ("yes", "no") and lines_or_texts("trie", []) == ()
    assert texts_by_place("forced_text", []) is numbers_by_token("logit_bias", []) is None
    assert texts_by_place("forced_text", ['{"2": "x"}']) == {2: "x"}
    assert numbers_by_token("logit_bias", ["yes=2.5", "15=-inf", '"15"=1', "a=b=2", " so=1e1"]) == {
        "yes": 2.5, 15: float("-inf"), "15": 1.0, "a=b": 2.0, " so": 10.0,
    }  # fmt: skip


@pytest.mark.parametrize("words", [["0=Yes", "0=No"], ['{"0": "Yes", "00": "No"}']])
def test_a_place_that_is_given_twice_is_refused(words):
    with pytest.raises(UserError, match="forced_text gives token 0 twice, 'Yes' and 'No': drop one of them"):
        texts_by_place("forced_text", words)


def test_an_empty_file_of_texts_is_refused(tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(UserError, match="none.txt is empty"):
        lines_or_texts("trie", [str(tmp_path / "none.txt")])


PROMPT = "abcabdab"


def test_a_bias_by_text_is_that_of_its_token_and_of_the_last_of_several(tiny_llama, tiny_tokenizer):
    answers = lambda **given: [r.ids for r in generate(tiny_llama, tiny_tokenizer, [PROMPT] * 2, SamplingParams(max_new_tokens=6, seed=2, **given))]
    [a], [b] = tiny_tokenizer.encode("a"), tiny_tokenizer.encode("b")
    assert answers(logit_bias={"a": 30.0, b: 25.0}) == answers(logit_bias={a: 30.0, b: 25.0})
    both = answers(logit_bias={"a": 20.0, "ab": 30.0})
    assert both == answers(logit_bias={a: 20.0}, sequence_bias={(a, b): 30.0}) and both[0][:2] == [a, b]
    assert answers(logit_bias={"ab": 1.0}, sequence_bias={(a, b): 29.0, (a,): 20.0}) == both  # they add up


def test_a_hidden_text_is_hidden_wherever_it_stands(tiny_llama, tiny_tokenizer):
    answer = lambda hide, prompt=PROMPT: generate(tiny_llama, tiny_tokenizer, [prompt], SamplingParams(max_new_tokens=6, hide=hide))[0].logprobs
    assert answer(["abc", "d"]) == answer([Span(0, 3), Span(5, 6)]) != answer([])
    assert answer("bcab") == answer([Span(1, 5)])
    messages = [{"role": "user", "content": "tell"}, {"role": "assistant", "content": "no"}, {"role": "user", "content": "tell it"}]
    assert answer(["tell"], messages) != answer([], messages)
    with pytest.raises(UserError, match="hide='xyz' stands nowhere in prompt 1"):
        answer(["xyz"])
    with pytest.raises(UserError, match="last token of prompt 1 is hidden"):
        answer(["ab"])
