"""Settings as OpenAI, vLLM and checkpoints write them."""

import pytest
from transformers import GenerationConfig

from seodang.data.errors import UserError
from seodang.infer.engine.compat import CONFIG, CONFIG_NEUTRAL, CONFIG_PASSED_OVER, from_generation_config, from_openai, from_vllm
from seodang.infer.engine.params import SamplingParams

QWEN3 = {
    "bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643, "temperature": 0.6, "top_k": 20,
    "top_p": 0.95, "transformers_version": "4.51.0",
}  # fmt: skip
LLAMA32 = {
    "bos_token_id": 128000, "do_sample": True, "eos_token_id": [128001, 128008, 128009], "temperature": 0.6, "top_p": 0.9,
    "transformers_version": "4.45.0.dev0",
}  # fmt: skip
SMOLLM2 = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "transformers_version": "4.42.3"}


def test_every_option_of_an_openai_body_arrives_under_our_name():
    body = {
        "model": "m", "messages": [], "stream": True, "max_completion_tokens": 7, "n": 2, "stop": ["END"], "seed": 5, "temperature": 0.5,
        "top_p": 0.9, "frequency_penalty": 0.1, "presence_penalty": -0.2, "logit_bias": {"17": -100, "4": 2.5}, "logprobs": True, "user": "u",
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
            "top_k": -1, "min_p": 0.1, "temperature": 0.7, "n": 3, "stop": "END", "skip_special_tokens": True, "logprobs": 2,
            "allowed_token_ids": [5, 6],
        }
    )  # fmt: skip
    assert (params.max_new_tokens, params.min_new_tokens, params.ignore_eos, params.bad_words) == (9, 3, True, ("no",))
    assert (params.repetition_penalty, params.stop_token_ids, params.top_k, params.min_p) == (1.1, [4], 0, 0.1)
    assert (params.temperature, params.num_return_sequences, params.stop) == (0.7, 3, ("END",))
    assert params.prefix_allowed_tokens_fn([1, 2]) == [5, 6]


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
        ({"prompt_logprobs": 1}, "prompt_logprobs=1"),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
        ({"structured_outputs": {"regexp": "a"}}, "did you mean regex"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "regex and choice"),
    ],
)
def test_what_vllm_asks_and_we_cannot_is_named(options, words):
    with pytest.raises(UserError, match=words):
        from_vllm(options)


@pytest.mark.parametrize("kind", [dict, lambda given: GenerationConfig(**given)])
def test_the_configs_that_checkpoints_come_with(kind):
    read = from_generation_config
    assert read(kind(QWEN3)) == SamplingParams(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    assert read(kind(LLAMA32)) == SamplingParams(do_sample=True, temperature=0.6, top_p=0.9)
    assert read(kind(SMOLLM2)) == SamplingParams()


def test_warpers_of_a_config_that_does_not_sample_are_without_effect_as_in_transformers():
    read = from_generation_config
    assert read({"do_sample": False, "temperature": 0.6, "top_k": 50}) == SamplingParams(do_sample=False)
    assert read({"temperature": 0.6, "top_p": 0.9}) == SamplingParams()
    assert read({"penalty_alpha": 0.6, "top_k": 4}) == SamplingParams(penalty_alpha=0.6, top_k=4)


def test_the_callers_changes_win_over_the_config():
    read = from_generation_config
    assert read(QWEN3, temperature=0.2, max_new_tokens=5) == SamplingParams(temperature=0.2, top_k=20, top_p=0.95, max_new_tokens=5)
    assert not read(QWEN3, temperature=0).samples
    assert read({"do_sample": False}, temperature=0.5).samples


def test_lists_of_a_config_become_what_the_filters_take():
    params = from_generation_config({
        "sequence_bias": [[[5, 6], -2.0]], "exponential_decay_length_penalty": [10, 1.1], "stop_strings": ["END"], "no_repeat_ngram_size": 0,
        "num_assistant_tokens_schedule": "heuristic_transient",
    })  # fmt: skip
    assert params == SamplingParams(sequence_bias={(5, 6): -2.0}, exponential_decay_length_penalty=(10, 1.1), stop="END")


@pytest.mark.parametrize("field", [{"watermarking_config": {"bias": 2}}, {"renormalize_logits": True}, {"constraints": ["x"]}, {"temprature": 1}])
def test_a_field_that_we_cannot_honour_is_named(field):
    with pytest.raises(UserError, match=next(iter(field))):
        from_generation_config(field)


def test_every_field_of_a_generation_config_is_honoured_refused_or_passed_over():
    assert set(GenerationConfig().to_dict()) <= {*CONFIG, *CONFIG_NEUTRAL, *CONFIG_PASSED_OVER}
    assert from_generation_config(GenerationConfig()) == SamplingParams()


def test_a_caller_who_does_not_sample_leaves_out_what_the_checkpoint_samples_by():
    config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert from_generation_config(config, do_sample=False) == SamplingParams(do_sample=False, repetition_penalty=1.1)
