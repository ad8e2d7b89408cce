"""Records for encoder-decoders: which shapes there are, the languages of translations, given beginnings."""

import json

import pytest

from seodang.data.errors import UserError
from seodang.data.files.sources import read
from seodang.data.seq2seq.records import Exchange, behind, seq2seq_shapes

PAIR = Exchange("나무", "tree")
MESSAGES = Exchange([{"role": "user", "content": "나무"}], "tree")
ASKED = Exchange([{"role": "user", "content": "Translate.\n\n나무"}], "tree")
BRIEFLY = Exchange([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "나무"}], "tree")


def written(path, *records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read_one(tmp_path, record, columns=None, source_lang=None, target_lang=None, **how):
    path = written(tmp_path / "a.jsonl", record)
    [found] = read([path], shapes=seq2seq_shapes(source_lang, target_lang), columns=columns, **how)
    return found


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"source": "나무", "target": "tree"}, PAIR),
        ({"source": "나무", "target": "tree", "prompt": "unread"}, PAIR),
        ({"instruction": "Translate.", "input": "나무", "output": "tree"}, ASKED),
        ({"instruction": "Translate.", "input": "나무", "output": "tree", "source": "a book"}, ASKED),  # where the record comes from
        ({"prompt": "나무", "completion": "tree"}, MESSAGES),
        ({"질문": "나무", "답변": "tree"}, MESSAGES),
        ({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "나무"}, {"role": "assistant", "content": "tree"}]}, BRIEFLY),
        ({"conversations": [{"from": "human", "value": "나무"}, {"from": "gpt", "value": "tree"}]}, MESSAGES),
    ],
)  # fmt: skip
def test_each_shape_is_a_source_and_a_target(tmp_path, record, expected):
    found = read_one(tmp_path, record)
    assert (found.source, found.target, found.prefix, found.where) == (expected.source, expected.target, "", "a.jsonl line 1")


@pytest.mark.parametrize("languages", [("ko", "en"), ("ko_KR", "en_XX"), ("KO-kr", "EN")])
def test_languages_name_the_keys_of_a_translation_by_their_codes_or_what_these_begin_with(tmp_path, languages):
    sides = {"ko": "나무", "en": "tree", "de": "Baum"}
    for value in (sides, json.dumps(sides)):  # a column of a table holds it as text
        found = read_one(tmp_path, {"id": 7, "translation": value}, None, *languages)
        assert (found.source, found.target, found.translated) == ("나무", "tree", True)
    assert read_one(tmp_path, {"translation": sides}, None, "de", "ko").source == "Baum"


def test_columns_of_other_names_and_the_beginning_of_an_answer(tmp_path, caplog):
    found = read_one(tmp_path, {"kor": "나무가", "eng": "the tree", "begin": "the", "id": 3}, {"source": "kor", "target": "eng", "prefix": "begin"})
    assert (found.source, found.target, found.prefix) == ("나무가", "the tree", "the")
    assert found.taken == "kor as source, eng as target, begin as prefix (not read: id)"
    assert read_one(tmp_path, {"instruction": "a", "output": "b c", "target_prefix": "b"}).prefix == "b"
    with pytest.raises(UserError, match="no shape has a key 'prefix'"):
        read([written(tmp_path / "b.jsonl", {"prompt": "a", "completion": "b"})], columns={"prefix": "begin"})  # of `sft`, which gives none


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"source": "a"}, "no shape wanted here has the keys source: use translation or source/target or"),
        ({"source": 3, "target": True}, "target must be a text, got True: write it as a text, in quotes"),
        ({"translation": {"ko": "가", "en": "a"}}, "translation holds ko, en: say which is read and which is written, by --source_lang and --target_lang"),
        ({"translation": "가"}, 'translation must hold a text for each language, as {"ko": ..., "en": ...}'),
        ({"source": "a", "target": "the tree", "prefix": "a tree"}, "does not begin with its prefix 'a tree': give the whole target"),
        ({"source": "a", "target": "b", "prefix": "b", "target_prefix": "b"}, "prefix and target_prefix both give"),
        ({"messages": [{"role": "user", "content": "a"}]}, "the last message must be an assistant's, behind a user's"),
        ({"messages": [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]}, "there are several answers"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}]}, "reads texts and answers with one"),
    ],
)  # fmt: skip
def test_what_is_no_source_and_target_is_refused_by_its_line(tmp_path, record, told):
    with pytest.raises(UserError) as refused:
        read_one(tmp_path, record)
    assert str(refused.value).startswith("a.jsonl line 1: ") and told in str(refused.value)


def test_a_language_that_a_translation_does_not_have_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds ko, en, and no 'kor_Hang': name the languages by these keys.*, rename the keys"):
        read_one(tmp_path, {"translation": {"ko": "가", "en": "a"}}, None, "kor_Hang", "en")
    with pytest.raises(UserError, match="holds nothing"):
        read_one(tmp_path, {"translation": {"ko": "가", "en": None}}, None, "ko", "en")


def test_a_source_prefix_stands_before_the_first_text():
    assert behind("나무", "to English: ") == "to English: 나무"
    assert [each["content"] for each in behind(BRIEFLY.source, "> ")] == ["> Be brief.", "나무"]
    assert BRIEFLY.source[0]["content"] == "Be brief."  # the record's own stays
