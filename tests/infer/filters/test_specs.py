"""What stands about filters and settings once is whole: each setting belongs to a filter, has a help, and an example that it takes."""

import inspect
import pickle
from dataclasses import fields

import pytest

from seodang.infer.engine.params import OPTIONS, WARPING, SamplingParams
from seodang.infer.filters.specs import FILTERS, FilterOptions
from seodang.infer.requests.options import options_of
from seodang.infer.requests.params import RequestParams, refusal
from seodang.infer.strategies.registry import STRATEGIES, StrategyOptions


def test_every_filter_is_in_both_lists_and_every_setting_of_the_classes_belongs_to_one():
    assert {spec.options for spec in FILTERS.values()} <= set(FilterOptions.__bases__)
    read = {name for spec in FILTERS.values() for name in spec.fields}
    assert set(options_of(FilterOptions)) - read == {"prefix", "thinking_end", "filter_order"}


def test_every_strategys_settings_are_in_both_lists():
    owned = {name for spec in STRATEGIES.values() for name in spec.honours}
    assert owned == set(options_of(StrategyOptions))


def test_the_settings_are_those_of_the_request_the_filters_and_the_strategies_each_once():
    parts = [options_of(cls) for cls in (RequestParams, FilterOptions, StrategyOptions)]
    assert [name for part in parts for name in part] == list(OPTIONS)
    assert set(OPTIONS) == {each.name for each in fields(SamplingParams)}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_setting_has_a_help_and_an_example_that_it_takes_and_that_asks_for_something(name):
    each = OPTIONS[name]
    assert each.help.endswith(".") and len(each.help) < 140
    if name == "assistant_tokenizer":
        return  # any would need a model beside it
    assert refusal(each, each.example) is None
    settings = {name: each.example} | ({each.part_of: OPTIONS[each.part_of].example} if each.part_of else {})
    settings |= {"temperature": 0.7} if "dynatemp_range" in settings else {}
    params = SamplingParams(**settings)
    assert name in params.given
    assert pickle.loads(pickle.dumps(params.given)).keys() == params.given.keys() if not callable(each.example) and name != "filters" else True


def test_the_filters_of_sampling_are_those_that_turn_it_on():
    read = {name for spec in FILTERS.values() if spec.kind == "warper" for name in spec.fields if not OPTIONS[name].part_of}
    assert read == set(WARPING)


def test_every_function_of_a_filter_is_documented():
    assert not [name for name, spec in FILTERS.items() if not inspect.getdoc(spec.function)]
