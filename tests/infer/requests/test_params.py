"""Settings of a request: what turns sampling on, and what is refused."""

import pytest

from seodang.data.errors import UserError
from seodang.infer.engine.params import SamplingParams
from seodang.infer.requests.params import DEFAULT_MAX_NEW_TOKENS


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
    assert SamplingParams(max_length=4000).max_new_tokens == 4000  # no default cuts it shorter
    with pytest.raises(UserError, match="max_length must be a whole number from 1, got 0"):
        SamplingParams(max_length=0)
    assert SamplingParams(stop="END").stop == ("END",)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"top_p": 0}, "top_p must be in"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"min_p": -0.1}, "min_p must be in"),
        ({"temperature": -1.0}, "temperature must be 0, or a number from 1e-30"),
        ({"temperature": float("nan")}, "temperature must be 0, or a number from 1e-30"),
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


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"xtc_threshold": 0.2}, "xtc_threshold=0.2 says nothing without xtc_probability"),
        ({"mirostat_eta": 0.2}, "without mirostat_tau"),
        ({"dynatemp_exponent": 2.0, "temperature": 1.0}, "without dynatemp_range"),
        ({"dry_sequence_breakers": ["."]}, "without dry_multiplier"),
        ({"thinking_end": "</thought>"}, "without thinking_budget"),
        ({"early_stopping": 1, "num_beams": 2}, "early_stopping must be True, False or .never., got 1"),
        ({"stop": 5}, "stop must be a text or a list of texts, got 5"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a list, got 5"),
        ({"trie": "yes"}, "trie must be a list, got 'yes'"),
        ({"bad_words_ids": [5]}, "bad_words_ids must be a list of lists of ids, got the entry 5"),
        ({"hide": [(0, 1)]}, r"got the entry \(0, 1\): give Span"),
        ({"forced_text": ["a"]}, "forced_text must be a dictionary"),
        ({"logit_bias": {5: "much"}}, "logit_bias must be numbers by token id or text, got 5: 'much'"),
        ({"sequence_bias": {5: 1.0}}, "sequence_bias must be numbers by tuples of ids, got 5: 1.0"),
        ({"logit_bias": {5: float("inf")}}, "logit_bias must be at most 1e"),
        ({"sequence_bias": {(5,): float("nan")}}, "sequence_bias must be at most 1e"),
        ({"exponential_decay_length_penalty": (0, 0)}, "must be a place and a factor above 0"),
        ({"target_lang": "ko", "forced_bos_token_id": 5}, "target_lang='ko' and forced_bos_token_id=5 both begin the answer"),
        ({"decoder_input_ids": ["a"]}, "decoder_input_ids must be a list of ids, got the entry 'a'"),
        ({"source_lang": 5}, "source_lang must be a language's code, got 5"),
        ({"prefix": "Yes", "begin_suppress_tokens": [5]}, "begin_suppress_tokens=.5. has no place"),
        ({"strategy": ["beam"]}, "strategy must be the name of a strategy"),
        ({"filter_order": 5}, "filter_order must be a list"),
        ({"filter_order": [5]}, "filter_order must be a list"),
        ({"forced_eos_token_id": 1.5}, "forced_eos_token_id must be an id or a list of ids"),
        ({"dry_multiplier": 0.8, "dry_sequence_breakers": [5]}, "dry_sequence_breakers must be texts"),
        ({"exponential_decay_length_penalty": (3,)}, "exponential_decay_length_penalty must be where it begins and its factor"),
    ],
    ids=str,
)
def test_a_setting_of_another_shape_or_without_the_one_it_belongs_to_is_refused(setting, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**setting)


@pytest.mark.parametrize(
    "setting, place",
    [
        ({"stop": ["a", "\ud800"]}, "stop[1]"),
        ({"bad_words": ("\udfff",)}, "bad_words[0]"),
        ({"prefix": "\ud800"}, "prefix"),
        ({"choice": ["\ud800"]}, "choice[0]"),
        ({"forced_text": {3: "\ud800"}}, "forced_text.3"),
        ({"json_schema": {"enum": ["\ud800"]}}, "json_schema.enum[0]"),
    ],
    ids=ascii,
)
def test_half_a_character_in_a_setting_is_refused_by_its_place(setting, place):
    with pytest.raises(UserError) as refused:
        SamplingParams(**setting)
    assert str(refused.value).startswith(f"{place} has the lone surrogate U+D")
