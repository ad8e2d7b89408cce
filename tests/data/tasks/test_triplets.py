"""Triplets that share an input become records, in their order, and back."""

import pytest

from seodang.data import UserError, group_triplets, task_triplets

TRIPLETS = [
    {"instruction": "mood?", "input": "Kim.", "output": "plain", "name": "mood"},
    {"instruction": "mood?", "input": "Lee.", "output": "sad"},
    {"instruction": "names?", "input": "Kim.", "output": ["Kim"]},
    {"instruction": "say a", "output": "a"},
    {"instruction": "names?", "input": "Kim. ", "output": "-"},
    {"instruction": "say b", "input": "", "output": "b"},
    {"instruction": "mood?", "input": "Kim.", "output": "grave", "system": "Be grave."},
]


def placed(triplets):
    return [(f"line {number}", each) for number, each in enumerate(triplets, 1)]


def test_equal_inputs_are_one_record_and_what_is_told_apart_stays_apart():
    found = group_triplets(placed([*TRIPLETS, TRIPLETS[2]]))
    mood, names = {"name": "mood", "instruction": "mood?", "output": "plain"}, {"instruction": "names?", "output": ["Kim"]}
    assert found.records == [
        {"input": "Kim.", "tasks": [mood, names]},
        {"input": "Lee.", "tasks": [{"instruction": "mood?", "output": "sad"}]},
        {"input": "", "tasks": [{"instruction": "say a", "output": "a"}]},  # no input: shared with none
        {"input": "Kim. ", "tasks": [{"instruction": "names?", "output": "-"}]},  # a blank tells inputs apart
        {"input": "", "tasks": [{"instruction": "say b", "output": "b"}]},
        {"input": "Kim.", "tasks": [{"instruction": "mood?", "output": "grave"}], "system": "Be grave."},
    ]
    assert found.lines() == ["triplets        8 triplets with 6 inputs, 5 of these with one task alone", "left out        1 x the same triplet again"]
    back = [triplet for record in found.records for triplet in task_triplets(record)]
    assert sorted(map(repr, group_triplets(placed(back)).records)) == sorted(map(repr, found.records))
    assert back[:2] == [TRIPLETS[0] | {"name": "mood"}, TRIPLETS[2]]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"instruction": "mood?", "input": "Kim.", "output": "gay"}, "line 8: the instruction 'mood\\?' has another output here than in line 1"),
        ({"instruction": "how many?", "input": "Sum.", "output": True}, "line 8: the instruction .* has another output"),  # no 1 of JSON
        ({"instruction": "mood?", "input": "Kim."}, "line 8: the key 'output' is missing"),
        ({"input": "Kim.", "output": "x"}, "line 8: the key 'instruction' is missing"),
        ({"instruction": "again?", "input": "Kim.", "output": "x", "name": "mood"}, "line 8: two tasks are called 'mood'"),
        ({"input": "Kim.", "tasks": []}, r"line 8: this is a record of several tasks already, .* `seodang prepare --triplets_from` makes triplets of it"),
        ([1], "line 8: a record must be an object of keys and values, got list"),
    ],
)
def test_what_cannot_be_one_record_is_refused_with_its_line(changed, message):
    with pytest.raises(UserError, match=message):
        group_triplets(placed([*TRIPLETS[:-1], {"instruction": "how many?", "input": "Sum.", "output": 1}, changed]))
