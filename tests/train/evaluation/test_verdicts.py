import json

import pytest

from seodang.train.evaluation.verdicts import points, points_of_scores, questions, verdict_in


def test_a_judge_is_asked_both_ways_round():
    one, other = (question[0]["content"] for question in questions([{"role": "user", "content": "{first}?"}], "red", "blue"))
    assert one.index("{first}?") < one.index("Answer A:\nred") < one.index("Answer B:\nblue") and other.index("Answer A:\nblue") < other.index("Answer B:\nred")
    assert json.loads(one[one.rindex('{"better"') :].rstrip(".")) == {"better": "B"}


@pytest.mark.parametrize("text, letter", [('{"better": "A"}', "A"), (' "B" ', "B"), ("**B**.", "B"), ("A or B", None), ('{"better": "C"}', None), ("", None), ("[]", None), ('{"better": []}', None)])
def test_verdicts_out_of_form_are_none(text, letter):
    assert verdict_in(text) == letter


def test_who_wins_one_way_alone_has_half_a_point():
    assert [points(*ways) for ways in ("AB", "BA", "AA", "BB")] == [1, 0, 0.5, 0.5] and points(None, "B") is points("A", None) is None
    assert [points_of_scores(*scores) for scores in ((2, 1), (1, 2), (1, 1))] == [1, 0, 0.5]
