import pytest

from seodang.data.errors import UserError
from seodang.data.files.conll import conll_records, looks_like_conll
from seodang.data.files.sources import records_of


@pytest.fixture
def written(tmp_path):
    def write(text, name="a.conll"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def test_sentences_are_parted_by_blank_lines_and_know_where_they_begin(written):
    path = written("EU\tB-ORG\nrejects\tO\n\n\t\nPeter\tB-PER\n\n")
    assert list(conll_records(path)) == [
        ("a.conll line 1", {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}),
        ("a.conll line 5", {"tokens": ["Peter"], "tags": ["B-PER"]}),
    ]
    assert list(records_of(str(path))) == list(conll_records(path))


def test_the_first_and_the_last_of_several_columns_count_parted_by_spaces_where_there_is_no_tab(written):
    path = written("-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\n. . O O\n-DOCSTART- -X- -X- O\nPeter NNP B-NP B-PER\n")
    assert [record for _, record in conll_records(path)] == [{"tokens": ["EU", "."], "tags": ["B-ORG", "O"]}, {"tokens": ["Peter"], "tags": ["B-PER"]}]


def test_a_comment_is_a_line_that_begins_with_a_hash_and_does_not_end_in_a_tag(written):
    """KLUE's name and mark up each sentence behind two; a hash is also a token, and the beginning of one."""
    path = written("## columns : CHAR\tNE_TAG\n## dev_00000\t<박:PS>씨 #1\n박\tB-PS\n \tO\n씨\tO\n\n# 2\n#\tO\n#NFL\tB-GRP\n")
    assert [record for _, record in conll_records(path)] == [
        {"tokens": ["박", " ", "씨"], "tags": ["B-PS", "O", "O"]}, {"tokens": ["#", "#NFL"], "tags": ["O", "B-GRP"]},
    ]  # fmt: skip


def test_a_file_of_one_column_has_no_tags(written):
    assert [record for _, record in conll_records(written("Peter\nsings\n"))] == [{"tokens": ["Peter", "sings"]}]


def test_a_line_of_other_columns_is_refused_where_it_stands(written):
    with pytest.raises(UserError, match=r"a.conll line 4: 1 columns, separated by tabs, where lines before it have 2"):
        list(conll_records(written("EU\tB-ORG\n\nPeter\tB-PER\nBlackburn\n")))


def test_a_tsv_is_told_from_a_table_by_its_first_line(written):
    assert looks_like_conll(written("## a comment\nEU\tB-ORG\n", "a.tsv")) and not looks_like_conll(written("text\tentities\nEU\t[]\n", "b.tsv"))
