import pytest

from seodang.data.classification.choices import Choices, choices_of
from seodang.data.errors import UserError

TEXTS = ("red", "green", "blue")


@pytest.mark.parametrize(
    "record, right",
    [
        ({"choices": [*TEXTS], "answer": 1}, 1),
        ({"options": [*TEXTS], "answer": "blue"}, 2),
        ({"endings": [*TEXTS], "label": "2"}, 2),
        ({"choices": [*TEXTS], "answer": " b"}, 1),
        ({"choices": '["red", "green", "blue"]', "answer": "A"}, 0),  # a table's
        ({"choices": {"text": [*TEXTS], "label": ["1", "2", "3"]}, "answerKey": "1"}, 0),
        ({"choices": {"text": [*TEXTS], "label": ["1", "2", "3"]}, "answerKey": 3}, 2),
        ({"보기": [*TEXTS], "정답": "green"}, 1),
    ],
)
def test_the_right_one_is_told_in_many_ways(record, right):
    assert choices_of({"question": "?", **record}, {}) == (Choices(TEXTS, right), {"question": "?"})


def test_a_text_wins_over_a_number():
    assert choices_of({"choices": ["3", "2", "1"], "answer": "2"}, {})[0].right == 1
    assert choices_of({"choices": ["3", "2", "1"], "answer": 2}, {})[0].right == 2


def test_columns_of_other_names_and_records_without():
    assert choices_of({"q": "?", "a": [*TEXTS], "gold_one": "C"}, {"choices": "a", "answer": "gold_one"}) == (Choices(TEXTS, 2), {"q": "?"})
    assert choices_of({"prompt": "?", "completion": "red"}, {}) is None and choices_of({"prompt": "?", "options": "none"}, {}) is None


@pytest.mark.parametrize(
    "record, message",
    [
        ({"choices": [*TEXTS]}, "nothing says (answer, label"),
        ({"choices": [*TEXTS], "answer": "A", "label": 0}, "answer and label may both say which is right"),
        ({"choices": [*TEXTS], "answer": 3}, "answer 3 is none of the 3 choices"),
        ({"choices": [*TEXTS], "answer": "purple"}, "answer 'purple' is none of the 3 choices"),
        ({"choices": [*TEXTS], "answer": True}, "answer True is none"),
        ({"choices": ["red"], "answer": 0}, "choices must be a list of two texts or more, got ['red']"),
        ({"choices": ["red", ""], "answer": 0}, "choices must be a list of two texts or more"),
    ],
)
def test_what_cannot_be_told_is_refused(record, message):
    with pytest.raises(UserError) as error:
        choices_of(record, {})
    assert message in str(error.value)
