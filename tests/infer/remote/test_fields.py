"""Settings as the fields of OpenAI's protocol: each by its name there, nothing that was not set, and what has no name refused."""

import json

import pytest

from seodang.data.errors import UserError
from seodang.infer import SamplingParams, from_vllm
from seodang.infer.engine.compat import from_request
from seodang.infer.engine.params import OPTIONS
from seodang.infer.remote.fields import WORDS, fields_of
from seodang.infer.strategies.registry import OWNED


def test_nothing_is_sent_that_was_not_set_but_the_length():
    assert fields_of(SamplingParams(), chat=True) == {"max_tokens": 256}
    assert fields_of(SamplingParams(max_new_tokens=7, num_return_sequences=1), chat=False) == {"max_tokens": 7}


def test_each_setting_goes_by_its_name_there():
    params = SamplingParams(
        max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, stop=("a", "b"), seed=3, num_return_sequences=2, presence_penalty=0.5,
        frequency_penalty=0.25, repetition_penalty=1.25, min_new_tokens=2, ignore_eos=True, stop_token_ids=(7,), bad_words=("x",), logit_bias={15: -100.0},
        json_schema='{"type": "object"}', logprobs=3,
    )  # fmt: skip
    schema = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True}}
    assert fields_of(params, chat=True) == {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "stop": ["a", "b"], "seed": 3, "n": 2, "presence_penalty": 0.5,
        "frequency_penalty": 0.25, "repetition_penalty": 1.25, "min_tokens": 2, "ignore_eos": True, "stop_token_ids": [7], "bad_words": ["x"],
        "logit_bias": {"15": -100.0}, "response_format": schema, "logprobs": True, "top_logprobs": 3,
    }  # fmt: skip
    assert fields_of(SamplingParams(logprobs=0), chat=True) == {"max_tokens": 256, "logprobs": True}
    assert fields_of(SamplingParams(logprobs=3), chat=False) == {"max_tokens": 256, "logprobs": 3}
    assert fields_of(SamplingParams(choice=("a", "b")), chat=True)["structured_outputs"] == {"choice": ["a", "b"]}
    assert fields_of(SamplingParams(), chat=True, token_ids=True)["return_token_ids"] is True


def test_greedy_and_drawing_are_said_by_the_temperature():
    assert fields_of(SamplingParams(do_sample=False), chat=True)["temperature"] == 0.0
    assert fields_of(SamplingParams(do_sample=True), chat=True)["temperature"] == 1.0
    assert fields_of(SamplingParams(do_sample=True, temperature=0.5), chat=True)["temperature"] == 0.5
    assert fields_of(SamplingParams(), chat=True, explicit=True)["temperature"] == 0.0
    assert fields_of(SamplingParams(top_p=0.5), chat=True, explicit=True)["temperature"] == 1.0


EXAMPLES = {name: each.example for name, each in OPTIONS.items() if each.example is not None}


@pytest.mark.parametrize("name", sorted(WORDS.keys() & EXAMPLES.keys()))
def test_what_is_sent_means_the_same_to_who_reads_it(name):
    """Back through the translation that the server has, as JSON carries it."""
    params = SamplingParams(**{name: EXAMPLES[name]})
    read = from_vllm(json.loads(json.dumps(fields_of(params, chat=False, explicit=True))))
    value, sent = getattr(read, name), getattr(params, name)
    assert (tuple(value) if isinstance(value, list) else value, read.samples) == (sent, params.samples)


WITHOUT_WORD = [
    ({"num_beams": 3}, "the strategy 'beam' has no word"), ({"penalty_alpha": 0.6, "top_k": 4}, "the strategy 'contrastive' has no word"),
    ({"strategy": "stochastic_beam", "num_beams": 3}, "the strategy 'stochastic_beam' has no word"), ({"best_of": 3}, "the strategy 'best_of_n' has no word"),
    ({"guidance_scale": 1.5}, "guidance_scale has no word"), ({"stop_regex": "a"}, "stop_regex has no word"), ({"max_time": 3.0}, "max_time has no word"),
    ({"mirostat_tau": 3.0}, "mirostat_tau has no word"), ({"prefix": "Yes"}, "prefix has no word"),
]  # fmt: skip


@pytest.mark.parametrize("settings, message", WITHOUT_WORD, ids=[next(iter(settings)) for settings, _ in WITHOUT_WORD])
def test_what_the_protocol_has_no_word_for_is_refused_by_name_and_taken_by_a_seodang_server(settings, message):
    with pytest.raises(UserError, match=message):
        fields_of(SamplingParams(**settings), chat=True)
    assert fields_of(SamplingParams(**settings), chat=True, seodang=True) == {"max_tokens": 256, **settings}


@pytest.mark.parametrize("seodang", [False, True])
@pytest.mark.parametrize("settings, message", [
    ({"assistant_model": "small"}, "assistant_model cannot be sent"), ({"filters": [lambda scores, ids: scores]}, "filters cannot be sent"),
    ({"logit_bias": {"yes": 2.5}}, "logit_bias has 'yes', and a server is told ids alone"), ({"prompt_logprobs": 0}, "prompt_logprobs come from --backend seodang alone"),
    ({"json_schema": "true"}, "json_schema must be an object"),
])  # fmt: skip
def test_what_no_server_can_be_told_is_refused(settings, message, seodang):
    with pytest.raises(UserError, match=message):
        fields_of(SamplingParams(**settings), chat=True, seodang=seodang)


def test_a_seodang_server_is_sent_what_it_reads_back():
    params = SamplingParams(num_beams=3, num_return_sequences=2, hide=["x"], forced_text={1: "so"}, stop_regex="b+", do_sample=False)
    sent = json.loads(json.dumps(fields_of(params, chat=True, seodang=True)))
    read = SamplingParams(**from_request(sent))
    assert {name: getattr(read, name) for name in ("num_beams", "num_return_sequences", "stop_regex", "do_sample")} == {
        "num_beams": 3, "num_return_sequences": 2, "stop_regex": "b+", "do_sample": False,
    }  # fmt: skip
    assert [*read.hide] == ["x"] and read.forced_text == {1: "so"}


def test_no_setting_of_a_strategy_has_a_word():
    assert not OWNED & WORDS.keys()
