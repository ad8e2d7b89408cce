"""What stands about a filter once is whole, and the two lists that name filters agree."""

import inspect

from seodang.infer.engine.params import OPTIONS, WARPING
from seodang.infer.filters.registry import FILTERS, FilterOptions
from seodang.infer.requests.options import options_of


def test_every_filter_is_in_both_lists_and_every_setting_of_the_classes_belongs_to_one():
    assert {spec.options for spec in FILTERS.values()} <= set(FilterOptions.__bases__)
    read = {name for spec in FILTERS.values() for name in spec.fields}
    assert set(options_of(FilterOptions)) - read == {"prefix", "thinking_end", "filter_order"}


def test_the_filters_of_sampling_are_those_that_turn_it_on():
    read = {name for spec in FILTERS.values() if spec.kind == "warper" for name in spec.fields if not OPTIONS[name].part_of}
    assert read == set(WARPING)


def test_every_function_of_a_filter_is_documented_and_its_source_is_read_from_there():
    assert not [name for name, spec in FILTERS.items() if not inspect.getdoc(spec.function)]
    assert FILTERS["dry"].source.startswith("p-e-w, text-generation-webui's pull request 5677")
    assert FILTERS["min_length"].source == ""
