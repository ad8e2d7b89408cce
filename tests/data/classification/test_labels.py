import math

import pytest

from seodang.data.classification.labels import MULTI, REGRESSION, SINGLE, check_classes, class_weights, label_names, parse_label, to_target
from seodang.data.errors import UserError


@pytest.mark.parametrize(
    ("value", "problem", "label"),
    [
        ("good", SINGLE, "good"), (3, SINGLE, "3"), (3.0, SINGLE, "3"), (True, SINGLE, "True"), (None, SINGLE, None), ("  ", SINGLE, None),
        ("a, b", MULTI, ("a", "b")), ('["a, b", "c"]', MULTI, ("a, b", "c")), (["a"], MULTI, ("a",)), ("", MULTI, ()), ([], MULTI, ()), (2, MULTI, ("2",)),
        ("-0.5", REGRESSION, -0.5), (2, REGRESSION, 2.0), (None, REGRESSION, None),
    ],
)  # fmt: skip
def test_a_label_is_read_as_the_problem_has_it(value, problem, label):
    assert parse_label(value, problem, "here") == label


@pytest.mark.parametrize(
    ("value", "problem", "told"),
    [
        (["a", "b"], SINGLE, "give --multi_label"), (0.37, SINGLE, "give --regression"), (math.nan, SINGLE, "names no class"),
        (math.nan, REGRESSION, "the label is nan"), ("inf", REGRESSION, "the label is inf"), ("good", REGRESSION, "no number"), (True, REGRESSION, "no number"),
        ("[a", MULTI, "begins as a JSON list"), (["a", "a"], MULTI, "twice"), ({}, SINGLE, "must be a text or a number"),
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_with_its_place_and_the_remedy(value, problem, told):
    with pytest.raises(UserError, match="row 7.*" + told.replace("[", r"\[")):
        parse_label(value, problem, "row 7")


def test_numbers_are_in_order_of_their_size_and_names_of_the_alphabet():
    assert label_names(["10", "9", "-1"]) == ["-1", "9", "10"]
    assert label_names([("b", "a"), (), ("10",)]) == ["10", "a", "b"]


def test_targets_by_hand():
    assert to_target("b", ["a", "b"], SINGLE, "") == 1
    assert to_target(("b", "c"), ["a", "b", "c"], MULTI, "") == [0.0, 1.0, 1.0]
    assert to_target(0.5, [], REGRESSION, "") == 0.5
    with pytest.raises(UserError, match=r"line 3: the label 'x' is none of those trained on \(a, b\)"):
        to_target("x", ["a", "b"], SINGLE, "line 3")


@pytest.mark.parametrize(
    ("labels", "names", "problem", "told"),
    [
        (["a", "a"], ["a"], SINGLE, "all 2 records have the label 'a': a classifier needs two"),
        (["a", "b"], ["a", "b", "c"], SINGLE, "no record to train on has the label 'c'"),
        ([("a",), ("a", "b")], ["a", "b"], MULTI, "all 2 records have the label 'a': there is nothing to tell apart"),
        ([1.5, 1.5], [], REGRESSION, "all 2 records have the label 1.5"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(labels, names, problem, told):
    with pytest.raises(UserError, match=told):
        check_classes(labels, names, problem)


def test_class_weights_by_hand():
    names, counts = ["a", "b"], [30, 10]
    assert class_weights(["balanced"], names, counts, 40, SINGLE) == pytest.approx([40 / (2 * 30), 40 / (2 * 10)])
    assert class_weights(["balanced"], names, counts, 50, MULTI) == pytest.approx([20 / 30, 40 / 10])
    assert class_weights(["b=2.5"], names, counts, 40, SINGLE) == [1, 2.5] and class_weights(["1", "3"], names, counts, 40, SINGLE) == [1, 3]
    assert class_weights(None, names, counts, 40, SINGLE) is None
    for given, told in ((["c=2"], "no class 'c'"), (["1"], "each of the 2 classes"), (["0", "1"], "above 0"), (["x", "1"], "give numbers")):
        with pytest.raises(UserError, match=told):
            class_weights(given, names, counts, 40, SINGLE)
    with pytest.raises(UserError, match="--regression has none"):
        class_weights(["balanced"], [], [], 40, REGRESSION)


def test_numbers_beyond_all_floats_and_labels_of_nobody_are_refused():
    with pytest.raises(UserError, match="line 3: the label is 1000.*which nothing can be learned from"):
        parse_label(10**400, REGRESSION, "line 3")
    with pytest.raises(UserError, match="none of the 2 records has a label"):
        check_classes([(), ()], [], MULTI)
    with pytest.raises(UserError, match="class_weights names a class twice: a=2 a=3"):
        class_weights(["a=2", "a=3"], ["a", "b"], [1, 1], 2, SINGLE)
