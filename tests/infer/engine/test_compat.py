"""Settings as OpenAI and vLLM write them."""

import pytest

from seodang.data.errors import UserError
from seodang.infer.engine.compat import from_openai, from_vllm
from seodang.infer.engine.params import SamplingParams


def test_every_option_of_an_openai_body_arrives_under_our_name():
    body = {
        "model": "m", "messages": [], "stream": True, "max_completion_tokens": 7, "n": 2, "stop": ["END"], "seed": 5, "temperature": 0.5,
        "top_p": 0.9, "frequency_penalty": 0.1, "presence_penalty": -0.2, "logit_bias": {"17": -100, "4": 2.5}, "logprobs": False, "user": "u",
        "tool_choice": "auto", "response_format": {"type": "text"}, "max_tokens": None,
    }  # fmt: skip
    assert from_openai(body) == SamplingParams(
        max_new_tokens=7, num_return_sequences=2, stop=("END",), seed=5, temperature=0.5, top_p=0.9, frequency_penalty=0.1,
        presence_penalty=-0.2, logit_bias={17: -100.0, 4: 2.5},
    )  # fmt: skip


def test_without_a_temperature_openai_and_vllm_sample_and_at_0_they_do_not():
    assert from_openai({}).samples and from_vllm({}).samples and from_openai({"top_p": 1.0}).samples
    assert not from_openai({"temperature": 0, "top_p": 0.9}).samples and not from_vllm({"temperature": 0.0, "top_k": -1}).samples


def test_a_response_format_is_a_schema():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert from_openai({"response_format": wanted}).json_schema == schema
    assert from_openai({"response_format": {"type": "json_object"}}).json_schema == {"type": "object"}
    with pytest.raises(UserError, match='"text", "json_object" or "json_schema"'):
        from_openai({"response_format": {"type": "xml"}})
    with pytest.raises(UserError, match="needs"):
        from_openai({"response_format": {"type": "json_schema", "schema": {}}})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_token": 5}, "did you mean max_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "by another name"),
        ({"tool_choice": "required"}, "tool_choice='required'"),
        ({"echo": True}, "echo=True"),
        ({"top_logprobs": 3}, "top_logprobs=3 without logprobs"),
        ({"logprobs": 2, "top_logprobs": 3}, "logprobs=2 and top_logprobs=3"),
        ({"logprobs": True, "top_logprobs": -1}, "logprobs must be a whole number from 0, got -1"),
        ({"logit_bias": {"a": 1}}, "by token id"),
        ({"reasoning_effort": "high"}, "unknown"),
        ({"temperature": -1}, "temperature must be"),
    ],
)
def test_what_openai_asks_and_we_cannot_is_named(body, words):
    with pytest.raises(UserError, match=words):
        from_openai(body)


def test_every_option_of_vllm_arrives_under_our_name():
    params = from_vllm(
        {
            "max_tokens": 9, "min_tokens": 3, "ignore_eos": True, "bad_words": ["no"], "repetition_penalty": 1.1, "stop_token_ids": [4],
            "top_k": -1, "min_p": 0.1, "temperature": 0.7, "n": 3, "stop": "END", "skip_special_tokens": True, "logprobs": 2, "prompt_logprobs": 1,
            "allowed_token_ids": [5, 6],
        }
    )  # fmt: skip
    assert (params.max_new_tokens, params.min_new_tokens, params.ignore_eos, params.bad_words) == (9, 3, True, ("no",))
    assert (params.repetition_penalty, params.stop_token_ids, params.top_k, params.min_p) == (1.1, [4], 0, 0.1)
    assert (params.temperature, params.num_return_sequences, params.stop) == (0.7, 3, ("END",))
    assert params.prefix_allowed_tokens_fn([1, 2]) == [5, 6] and (params.logprobs, params.prompt_logprobs) == (2, 1)


def test_log_probabilities_of_a_chat_of_a_completion_and_of_its_prompt():
    found = lambda body: (from_openai(body).logprobs, from_openai(body).prompt_logprobs)
    assert found({"logprobs": True, "top_logprobs": 3}) == found({"logprobs": 3}) == (3, None)
    assert found({"logprobs": True}) == found({"logprobs": 0}) == (0, None) and found({"logprobs": False, "top_logprobs": 0}) == (None, None)
    assert found({"logprobs": 2, "echo": True}) == (2, 2) and found({"logprobs": None, "echo": False}) == (None, None)


def test_vllm_structured_outputs_by_all_their_names():
    assert from_vllm({"structured_outputs": {"regex": "a+"}}).regex == "a+"
    assert from_vllm({"guided_choice": ["a", "b"]}).choice == ("a", "b")
    assert from_vllm({"guided_decoding": {"json": '{"type": "null"}', "backend": None}}).json_schema == '{"type": "null"}'
    assert from_vllm({"structured_outputs": {"json_object": True}}).json_schema == {"type": "object"}
    compact = from_vllm({"structured_outputs": {"json": {}, "disable_any_whitespace": True}})
    assert compact.json_schema == {"x-guidance": {"whitespace_flexible": False}}
    assert "start:" in from_vllm({"guided_grammar": 'root ::= "a" | "b"'}).grammar  # GBNF becomes Lark
    assert from_vllm({"guided_grammar": 'start: "a"'}).grammar == 'start: "a"'


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"repetion_penalty": 1.1}, "did you mean repetition_penalty"),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
        ({"structured_outputs": {"regexp": "a"}}, "did you mean regex"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
        ({"structured_outputs": "a+"}, r"structured_outputs must be an object, got 'a\+'"),
        ({"guided_grammar": 5}, "grammar must be a text, got 5"),
        ({"guided_grammar": "root is a"}, "the grammar is neither Lark nor GBNF"),
        ({"allowed_token_ids": 5}, "allowed_token_ids must be a list of ids, got 5"),
        ({"skip_special_tokens": 1}, "skip_special_tokens=1"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "regex and choice"),
    ],
)
def test_what_vllm_asks_and_we_cannot_is_named(options, words):
    with pytest.raises(UserError, match=words):
        from_vllm(options)
