"""The settings of a request are those that requests, filters and strategies declare, each once and whole."""

import pickle
from dataclasses import fields, replace

import pytest

from seodang.data.errors import UserError
from seodang.infer.engine.params import OPTIONS, SamplingParams
from seodang.infer.filters.registry import FilterOptions
from seodang.infer.requests.options import options_of
from seodang.infer.requests.params import RequestParams, refusal
from seodang.infer.strategies.registry import STRATEGIES, StrategyOptions


def test_the_settings_are_those_of_the_request_the_filters_and_the_strategies_each_once():
    parts = [options_of(cls) for cls in (RequestParams, FilterOptions, StrategyOptions)]
    assert [name for part in parts for name in part] == list(OPTIONS)
    assert set(OPTIONS) == {each.name for each in fields(SamplingParams)}


def test_every_setting_of_a_strategy_is_honoured_by_one():
    assert {name for spec in STRATEGIES.values() for name in spec.honours} == set(options_of(StrategyOptions))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_setting_has_a_help_and_an_example_that_it_takes_and_that_asks_for_something(name):
    each = OPTIONS[name]
    assert each.help.endswith(".") and len(each.help) < 140
    if name == "assistant_tokenizer":
        return  # any would need a model beside it
    assert refusal(each, each.example) is None
    settings = {name: each.example} | ({each.part_of: OPTIONS[each.part_of].example} if each.part_of else {})
    assert name in SamplingParams(**settings, **({"temperature": 0.7} if "dynatemp_range" in settings else {})).given


def test_settings_are_equal_after_a_journey_and_a_change_and_back():
    params = SamplingParams(temperature=0.7, stop="END", num_beams=2, logit_bias={5: 1.0})
    assert params.samples and pickle.loads(pickle.dumps(params)) == params
    greedy = replace(params, temperature=None)
    assert not greedy.samples and replace(greedy, temperature=0.7) == params
    with pytest.raises(UserError, match="SamplingParams has no setting 'temprature': did you mean temperature?"):
        SamplingParams(temprature=0.7)


def test_a_length_that_nobody_gave_follows_the_one_that_was():
    ten = SamplingParams(max_length=10)
    assert (ten.max_new_tokens, replace(ten, max_length=20).max_new_tokens, replace(ten, max_length=None).max_new_tokens) == (10, 20, 256)
    assert replace(SamplingParams(max_length=10, max_new_tokens=4), max_length=20).max_new_tokens == 4
    assert replace(pickle.loads(pickle.dumps(ten)), max_length=20) == SamplingParams(max_length=20)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": 10**400}, "temperature must be 0, or a number from 1e-30, got 1000"),
        ({"top_p": 10**5000}, "got a number of thousands of digits"),
        ({"temperature": 1e-320}, "temperature must be 0, or a number from 1e-30, got 1e-320"),
        ({"top_k": 2**63}, "top_k must be a whole number"),
        ({"do_sample": "false"}, "do_sample must be True or False, got 'false'"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
        ({"token_healing": "no"}, "token_healing must be True or False, got 'no'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_no_number_and_no_yes_or_no_is_refused(settings, words):
    with pytest.raises(UserError) as refused:
        SamplingParams(**settings)
    assert words in str(refused.value)
