"""What servers answer, read: chats and completions, several answers, log-probabilities, what was thought."""

import pytest

from seodang.infer import SamplingParams
from seodang.infer.remote.answers import Refused, error_in, one_line, other_model, results_of

PLAIN = SamplingParams(max_new_tokens=8)


def chat(content, **more):
    return {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop", **more}


def the_result(choice, params=PLAIN, **how):
    [result] = results_of({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}, 3, params, **how)
    return result


def test_a_chat_and_a_completion_are_read_alike():
    results = [the_result(choice) for choice in (chat("Yes."), {"index": 0, "text": "Yes.", "finish_reason": "stop"})]
    assert [(each.prompt_index, each.text, each.finish_reason, each.prompt_length, each.tokens, each.error) for each in results] == [(3, "Yes.", "eos", 7, 5, None)] * 2


@pytest.mark.parametrize("told, params, reason", [
    ({"finish_reason": "length"}, PLAIN, "length"), ({"finish_reason": "content_filter"}, PLAIN, "content_filter"), ({}, PLAIN, "eos"),
    ({}, SamplingParams(stop="a"), "stop"), ({"stop_reason": None}, SamplingParams(stop="a"), "eos"), ({"stop_reason": "a"}, SamplingParams(stop="a"), "stop"),
    ({"stop_reason": 5}, SamplingParams(stop_token_ids=(5,)), "stop"), ({"stop_reason": 5}, PLAIN, "stop"), ({"finish_reason": None}, PLAIN, None), ({"finish_reason": {}}, PLAIN, None),
])  # fmt: skip
def test_why_an_answer_is_over_is_said_in_our_words(told, params, reason):
    assert the_result(chat("x", **told), params).finish_reason == reason


def test_several_answers_come_in_their_order_and_the_tokens_of_all_are_the_firsts():
    params = SamplingParams(num_return_sequences=3, temperature=1.0, seed=2)
    body = {"choices": [chat(text, index=index) for index, text in ((2, "c"), (0, "a"), (1, "b"))], "usage": {"completion_tokens": 9}}
    assert [(each.choice, each.text, each.seed, each.tokens, each.prompt_length) for each in results_of(body, 0, params)] == [
        (0, "a", 2, 9, None), (1, "b", 2, 0, None), (2, "c", 2, 0, None),
    ]  # fmt: skip
    for indices in ([0, 0, 1], [1, 2, 3], [0, 1, "2"], [0, 1, [2]]):
        with pytest.raises(Refused, match="not numbered from 0"):
            results_of({"choices": [chat("x", index=index) for index in indices]}, 0, params)
    with pytest.raises(Refused, match="gave 1 of the 3 answers that n=3 asks for"):
        results_of({"choices": [chat("x")]}, 0, params)


def test_a_server_that_numbers_nothing_and_counts_nothing_is_understood():
    [result] = results_of({"choices": [{"message": {"content": "Yes."}}], "usage": None}, 0, PLAIN)
    assert (result.text, result.choice, result.prompt_length, result.tokens) == ("Yes.", 0, None, 0)


@pytest.mark.parametrize("message, text, thinking", [
    ({"content": "4", "reasoning_content": "2+2"}, "4", "2+2"), ({"content": "4", "reasoning": "2+2"}, "4", "2+2"), ({"content": None, "reasoning": "2+"}, "", "2+"),
    ({"content": None, "refusal": "No."}, "No.", None), ({"content": ""}, "", None),
])  # fmt: skip
def test_what_was_thought_stands_apart_and_no_text_is_an_empty_one(message, text, thinking):
    result = the_result(chat("", message=message))
    assert (result.text, result.thinking) == (text, thinking)


@pytest.mark.parametrize("message", [{}, {"content": 5}, {"content": [{"type": "text", "text": "x"}]}, None])
def test_a_message_without_a_text_is_no_answer(message):
    with pytest.raises(Refused, match="a choice without a text"):
        the_result(chat("", message=message))


YES = {"token": "Yes", "logprob": -0.5, "bytes": [89, 101, 115]}
NO = {"token": "\ufffd", "logprob": -1.5, "bytes": [236]}
WRONG = ({"logprob": 10**400}, {"logprob": float("-inf")}, {"bytes": 10**15}, {"bytes": "Yes"}, {"bytes": [256]})


def test_log_probabilities_of_a_chat_and_of_a_completion():
    params = SamplingParams(max_new_tokens=8, logprobs=2)
    content = [{**YES, "top_logprobs": [YES, NO]}, {**NO, "top_logprobs": []}]
    of_chat = the_result(chat("Yes", logprobs={"content": content})).top_logprobs, the_result(chat("Yes", logprobs={"content": content}), params).top_logprobs
    assert of_chat[0] == []  # nobody asked
    assert [(each.id, each.text, each.logprob, each.bytes) for each in of_chat[1]] == [(None, "Yes", -0.5, b"Yes"), (None, "\ufffd", -1.5, b"\xec")]
    assert [(each.text, each.logprob) for each in of_chat[1][0].top] == [("Yes", -0.5), ("\ufffd", -1.5)] and of_chat[1][1].top == ()
    told = {"tokens": ["Yes", "."], "token_logprobs": [-0.5, -2.0], "top_logprobs": [{"Yes": -0.5, "No": -1.5}, None], "text_offset": [0, 3]}
    of_text = the_result({"text": "Yes.", "logprobs": told}, params).top_logprobs
    assert [(each.text, each.logprob, each.bytes, [other.text for other in each.top]) for each in of_text] == [("Yes", -0.5, None, ["Yes", "No"]), (".", -2.0, None, [])]


def test_ids_that_are_told_are_those_of_the_log_probabilities_too():
    params = SamplingParams(max_new_tokens=8, logprobs=0)
    result = the_result(chat("Yes", logprobs={"content": [YES, NO]}, token_ids=[40, 41]), params, token_ids=True)
    assert result.ids == [40, 41] and [each.id for each in result.top_logprobs] == [40, 41]
    assert the_result(chat("Yes", token_ids=[40, 41])).ids == []


@pytest.mark.parametrize("told", [None, {}, {"content": None}, {"content": [{"token": "x"}]}, {"tokens": ["x"], "token_logprobs": [None]}, {"tokens": ["x", "y"], "token_logprobs": [-1.0]}, *({"content": [{**YES, **wrong}]} for wrong in WRONG)])
def test_a_server_that_tells_no_log_probabilities_is_said_to(told):
    with pytest.raises(Refused, match="the server tells no log-probabilities: leave --logprobs out"):
        the_result(chat("x", logprobs=told), SamplingParams(logprobs=1))


@pytest.mark.parametrize("ids", [None, ["40"], 40])
def test_a_server_that_tells_no_ids_is_said_to(ids):
    with pytest.raises(Refused, match="the server tells no ids of tokens: leave --token_ids out"):
        the_result(chat("x", token_ids=ids), token_ids=True)


@pytest.mark.parametrize("body, told", [
    ({"error": {"message": "a", "type": "b"}}, "a"), ({"error": "a"}, "a"), ({"message": "a"}, "a"), ({"detail": "a"}, "a"), ({"detail": [{"loc": ["수"]}]}, '[{"loc": ["수"]}]'),
    ({"error": {}}, None), ({}, None), ("text", None), (None, None),
])  # fmt: skip
def test_what_is_wrong_is_found_where_servers_write_it(body, told):
    assert error_in(body) == told


SAME = [
    ("gpt-4o", "gpt-4o-2024-08-06"), ("mistral-large-latest", "mistral-large-2411"), ("llama3.2", "llama3.2:latest"), ("llama3.2:latest", "llama3.2"), ("out/sft", "out/sft@main"),
    ("gemini", "models/gemini"), ("openai/gpt-4o", "gpt-4o"), ("Qwen/Qwen3", "qwen/qwen3"), ("a", None), ("a", ""), ("a", 5),
]  # fmt: skip


@pytest.mark.parametrize("asked, told", SAME)
def test_a_model_is_the_same_by_its_version_and_its_makers_name(asked, told):
    assert other_model({"model": told}, asked) is None and other_model({}, asked) is None


@pytest.mark.parametrize("asked, told", [
    ("gpt-4o", "gpt-4o-mini"), ("gpt-4", "gpt-3"), ("a", "b"), ("sft-1000", "sft-2000"), ("a.b", "a-b"), ("one/m", "two/m"), ("m-latest", "n-2411"), ("school", "old-school"),
])  # fmt: skip
def test_another_models_answer_is_told_by_its_name(asked, told):
    assert other_model({"model": told}, asked) == told


def test_a_servers_words_are_one_line_of_bounded_length():
    assert one_line("a\n b\x1b[31m\u202ec\ud800") == "a b [31m c"
    assert one_line("x" * 900) == "x" * 500 + "..."
