"""Settings of a request: what turns sampling on, and what is refused."""

import pytest

from seodang.data.refusal import UserError
from seodang.infer.params import DEFAULT_MAX_NEW_TOKENS, SamplingParams


def test_a_sampling_option_turns_sampling_on_and_temperature_zero_off():
    assert not SamplingParams().samples
    assert SamplingParams(temperature=0.7).samples
    assert SamplingParams(top_k=5).samples
    assert SamplingParams(do_sample=True).samples
    assert not SamplingParams(seed=3, repetition_penalty=1.2).samples
    assert not SamplingParams(temperature=0.0).samples
    assert not SamplingParams(temperature=0.0, top_p=0.9).samples  # OpenAI's greedy


def test_defaults_are_visible_and_one_stop_text_may_stand_alone():
    assert SamplingParams().max_new_tokens == DEFAULT_MAX_NEW_TOKENS == 256
    assert SamplingParams(stop="END").stop == ("END",)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"top_p": 0}, "top_p must be in"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"min_p": -0.1}, "min_p must be in"),
        ({"temperature": -1.0}, "temperature must be a number from 0"),
        ({"temperature": float("nan")}, "temperature must be a number from 0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be a number above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1"),
        ({"seed": "seven"}, "seed must be a whole number"),
        ({"stop": ("",)}, "stop must be texts"),
        ({"filters": ["no function"]}, "a filter must be a function"),
        ({"do_sample": False, "temperature": 0.5}, "temperature=0.5 asks for sampling"),
        ({"do_sample": False, "top_k": 5}, "top_k=5 asks for sampling"),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0 is greedy"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(setting, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**setting)
