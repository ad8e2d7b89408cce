import json

import pytest

from seodang.data.errors import UserError
from seodang.data.tagging.records import TagColumns, TaggedText, tagged_texts
from seodang.data.tagging.schemes import Span


@pytest.fixture
def read(tmp_path):
    def found(records, name="a.jsonl", *, labelled=True, **columns):
        path = tmp_path / name
        path.write_text(records if isinstance(records, str) else "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records), encoding="utf-8")
        return list(tagged_texts(str(path), TagColumns(**columns), labelled=labelled))

    return found


def test_words_are_joined_by_spaces_and_entities_lie_in_that_text(read):
    [found] = read([{"tokens": ["Anna", "sees", "New", "York"], "tags": ["B-PER", "O", "B-LOC", "I-LOC"]}])
    assert found == TaggedText("a.jsonl line 1", "Anna sees New York", (Span(0, 4, "PER"), Span(10, 18, "LOC")), ((0, 4), (5, 9), (10, 13), (14, 18)))


def test_characters_are_joined_as_they_are_in_the_whole_of_a_file_that_has_a_space_among_its_tokens(read):
    text = "박\tB-PS\n씨\tO\n \tO\n의\tO\n\n서\tB-LC\n울\tI-LC\n에\tO\n"
    for name in ("a.tsv", "a.conll"):
        one, other = read(text, name)
        assert (one.text, one.entities, one.words) == ("박씨 의", (Span(0, 1, "PS"),), None)
        assert (other.text, other.entities, other.words) == ("서울에", (Span(0, 2, "LC"),), None)


def test_a_text_has_its_entities_by_their_places_in_all_the_usual_forms(read):
    text = "서울에서 Anna"
    forms = [
        {"entities": [{"start": 5, "end": 9, "label": "PER"}, {"start": 0, "end": 2, "label": "LOC", "text": "서울"}]},
        {"label": [[0, 2, "LOC"], [5, 9, "PER"]]},  # doccano
        {"spans": [{"start_offset": 0, "end_offset": 2, "type": "LOC"}, {"start_offset": 5, "end_offset": 9, "type": "PER"}]},
        {"entities": '[[0, 2, "LOC"], [5, 9, "PER"]]'},  # a table's cell
    ]
    for form in forms:
        [found] = read([{"text": text, **form}])
        assert found.entities == (Span(0, 2, "LOC"), Span(5, 9, "PER")) and found.words is None
    assert read([{"text": text, "tags": ["a topic"], "entities": [[0, 2, "LOC"]]}])[0].entities == (Span(0, 2, "LOC"),)
    [none] = read([{"text": text, "entities": []}])
    assert none.entities == ()


def test_a_table_of_texts_is_read_from_tsv(read):
    [found] = read('text\tentities\nAnna sings\t"[[0, 4, ""PER""]]"\n', "b.tsv")
    assert found.text == "Anna sings" and found.entities == (Span(0, 4, "PER"),)


def test_tags_that_are_numbers_have_names(read):
    record = {"tokens": ["Anna", "B."], "ner_tags": [1, 2]}
    [found] = read([record], tag_names=("O", "B-PER", "I-PER"))
    assert found.entities == (Span(0, 7, "PER"),)
    with pytest.raises(UserError, match=r"line 1, token 1 \('Anna'\): a tag must be a text, got 1: say what numbers mean by --tag_names"):
        read([record])


def test_columns_of_other_names(read):
    [found] = read([{"s": ["Anna"], "t": ["B-PER"]}], text="s", label="t")
    assert found.entities == (Span(0, 4, "PER"),)
    assert read([{"text": "Anna", "tokens": ["Anna"], "tags": ["B-PER"]}])[0].words == ((0, 4),)


@pytest.mark.parametrize("scheme", ["auto", "IOB1"])
def test_iob1_is_read_as_what_it_means(read, scheme):
    [found] = read([{"tokens": list("abcd"), "tags": ["I-X", "I-X", "B-X", "O"]}], scheme=scheme)
    assert found.entities == (Span(0, 3, "X"), Span(4, 5, "X"))


def test_broken_tags_are_refused_and_read_as_beginnings_where_that_is_asked_for(read):
    records = [{"tokens": ["a", "b"], "tags": ["B-X", "O"]}, {"tokens": ["c", "d"], "tags": ["O", "I-X"]}]
    with pytest.raises(UserError, match=r"line 2, token 2 \('d'\): the tag I-X behind O is not IOB2: mend it, or give --scheme IOB1"):
        read(records)
    assert [each.entities for each in read(records, scheme="IOB1")] == [(Span(0, 1, "X"),), (Span(2, 3, "X"),)]
    with pytest.raises(UserError, match=r"the tag B-X behind E-X is not BIOES: mend it"):
        read([{"tokens": ["a", "b", "c"], "tags": ["B-X", "E-X", "B-X"]}])
    with pytest.raises(UserError, match=r"the tag E-X behind B-X is not IOB1: mend it"):
        read([{"tokens": ["a", "b"], "tags": ["B-X", "E-X"]}], scheme="IOB1")
    with pytest.raises(UserError, match=r"the tag I-X at the beginning is not IOB2"):
        read([{"tokens": ["a"], "tags": ["I-X"]}], scheme="IOB2")


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "line 1: 2 tokens and 1 tags: give each token its tag"),
        ({"tokens": ["a"], "tags": ["PER"]}, r"line 1, token 1 \('a'\): 'PER' is no BIO tag"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, "tokens must be a text, or a list of tokens that are texts and not empty"),
        ({"tokens": ["a"]}, "there is no column of tags or entities among tokens: name it, as --label_column COLUMN"),
        ({"tokens": ["a"], "tag": ["O"], "label": "x"}, "label must be a list of tags, or of entities, got 'x': name another column by --label_column"),
        ({"sentence": "a", "tags": []}, "no column 'text' or 'tokens' among sentence, tags: name it, as --text_column COLUMN"),
        ({"text": "a", "tags": ["O"]}, "there are tags and no tokens that they belong to"),
        ({"text": "서울", "entities": [[0, 3, "LOC"]]}, "line 1: an entity goes from 0 to 3, and the text has 2 characters"),
        ({"text": "서울", "entities": [[1, 1, "LOC"]]}, "goes from 1 to 1"),
        ({"text": "서울", "entities": [[-1, 1, "LOC"]]}, "goes from -1 to 1"),
        ({"text": "서울", "entities": [[0, 1.0, "LOC"]]}, "whole numbers as start and end and a label"),
        ({"text": "서울", "entities": [{"start": 0, "end": 1}]}, "whole numbers as start and end and a label"),
        ({"text": "서울", "entities": [[0, 1]]}, r"an entity must be \{start, end, label\} or \[start, end, label\]"),
        ({"text": "서울역", "entities": [[0, 2, "A"], [1, 3, "B"]]}, r"'서울' \(A, 0 to 2\) and '울역' \(B, 1 to 3\) overlap"),
        ({"text": "서울 Anna", "entities": [{"start": 7, "end": 8, "label": "PER", "text": "Anna"}]}, "an entity goes from 7 to 8|stands 'a'"),
        ({"text": "서울 Annas", "entities": [{"start": 4, "end": 8, "label": "PER", "text": "Anna"}]}, "from 4 to 8 stands 'nnas', and the entity is to be 'Anna'"),
        (["a"], "must be an object"),
    ],
)
def test_what_cannot_be_read_is_refused_where_it_stands(read, record, told):
    with pytest.raises(UserError, match=told):
        read([record])


def test_one_kind_a_source(read):
    with pytest.raises(UserError, match="line 2: this record has tokens, and the first one of its source a text"):
        read([{"text": "a", "entities": []}, {"tokens": ["a"], "entities": []}])
    with pytest.raises(UserError, match="line 2: this record has a text, and the first one of its source tokens"):
        read([{"tokens": ["a"], "tags": ["O"]}, {"text": "a", "entities": []}])


def test_texts_without_entities_are_read_where_they_need_none(read):
    assert [(each.where, each.text, each.entities) for each in read("Anna\n\nsings\n", "a.txt", labelled=False)] == [("a.txt line 1", "Anna", None), ("a.txt line 3", "sings", None)]
    assert read([{"text": "Anna"}], labelled=False)[0].entities is None
    assert read("Anna\nsings\n", "a.conll", labelled=False)[0].words == ((0, 4), (5, 10))
    with pytest.raises(UserError, match="a.txt: a text a line has no entities: name it .conll"):
        read("Anna\tB-PER\n", "a.txt")
    with pytest.raises(UserError, match="has no records"):
        read("", "a.conll")


def test_columns_are_named_once():
    assert TagColumns.of(None, "e", ["text=t"]) == TagColumns("t", "e")
    with pytest.raises(UserError, match="--text_column a and --columns text=b name one thing twice"):
        TagColumns.of("a", None, ["text=b"])
    with pytest.raises(UserError, match="a tagger reads text and label and no 'tags'"):
        TagColumns.of(None, None, ["tags=b"])
