import json

import pytest

from seodang.data.classification.records import TextColumns, text_records
from seodang.data.errors import UserError


def written(tmp_path, records, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_columns_of_other_names_are_read_where_they_are_named(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("review,stars\nfine,5\n\"no, thanks\",1\n")
    columns = TextColumns.of("review", None, "stars")
    assert [(record.text, record.label) for record in text_records(str(path), columns)] == [("fine", "5"), ("no, thanks", "1")]
    assert TextColumns.of(None, None, None, ["text=review", "label=stars"]) == columns


def test_a_second_text_is_taken_where_the_first_record_has_one(tmp_path):
    path = written(tmp_path, [{"text": "a", "text_pair": "b", "label": 1}, {"text": "c", "text_pair": None, "label": 0}])
    assert [record.text_pair for record in text_records(path)] == ["b", ""]
    assert [record.text_pair for record in text_records(written(tmp_path, [{"text": "a", "label": 1}], "single.jsonl"))] == [None]


@pytest.mark.parametrize(
    ("record", "columns", "told"),
    [
        ({"text": "a", "sentiment": "good"}, TextColumns(), "no column 'label' among text, sentiment: did you mean --label_column sentiment?"),
        ({"text": "a", "lable": "good"}, TextColumns(), "did you mean --label_column lable?"),
        ({"text": "a", "x": 1}, TextColumns(), "no column 'label' among text, x: name it, as --label_column COLUMN"),
        ({"document": "a", "label": 1}, TextColumns(), "did you mean --text_column document?"),
        ({"text": 3, "label": 1}, TextColumns(), "text must be a text, got 3"),
    ],
)
def test_a_column_that_is_not_there_is_refused_with_the_one_that_may_be_meant(tmp_path, record, columns, told):
    with pytest.raises(UserError) as raised:
        list(text_records(written(tmp_path, [record]), columns))
    assert "data.jsonl line 1" in str(raised.value) and told in str(raised.value)


def test_a_column_named_in_two_ways_or_of_no_use_is_refused():
    with pytest.raises(UserError, match="name one thing twice"):
        TextColumns.of("review", None, None, ["text=body"])
    with pytest.raises(UserError, match="reads text, text_pair, label and no 'answer'"):
        TextColumns.of(None, None, None, ["answer=body"])


def test_a_file_is_read_as_far_as_it_is_asked_for(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": 1}\nnot JSON\n')
    records = text_records(str(path), streaming=True)
    assert next(records).text == "a"
    with pytest.raises(UserError, match="line 2"):
        next(records)


def test_a_pair_that_comes_late_and_the_option_of_another_command_are_told_by_name(tmp_path):
    path = tmp_path / "late.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b", "text_pair": "c"}\n')
    with pytest.raises(UserError, match="line 2: this record has a text_pair, and the first one has none"):
        list(text_records(str(path), TextColumns(label=None)))
    path.write_text('{"text": "b", "text_pair": "c"}\n{"text": "a"}\n')
    with pytest.raises(UserError, match="no column 'text_pair' among text: name it, as --pair_column COLUMN"):
        list(text_records(str(path), TextColumns(label=None)))
    path.write_text('{"review": "b"}\n')
    with pytest.raises(UserError, match="did you mean --column review"):
        list(text_records(str(path), TextColumns(label=None, text_option="--column")))
