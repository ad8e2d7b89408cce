import pytest

from seodang.data.errors import UserError
from seodang.data.seq2seq.written_forms import written_forms
from seodang.data.text.syllable_tokenizer import syllable_tokenizer

TEXTS = ["digits>ko: 321", "삼백이십일", "digits>en: 21", "twenty-one", "ko>en: 나는 일본에 갔다.", "I went to Japan, Japan!"] * 3


def pieces(tokenizer, text):
    return [tokenizer.decode([id]) for id in tokenizer(text)["input_ids"]]


def test_syllables_digits_and_signs_are_tokens_and_words_come_with_their_space():
    tokenizer = syllable_tokenizer(TEXTS)
    assert pieces(tokenizer, "ko>en: 일본에 21") == ["ko>en: ", "일", "본", "에", " ", "2", "1", "</s>"]
    assert pieces(tokenizer, "twenty-one to Japan,") == ["twenty", "-", "one", " to", " Japan", ",", "</s>"]


def test_text_comes_back_as_it_was_and_what_is_unknown_is_said():
    tokenizer = syllable_tokenizer(TEXTS)
    for text in (*TEXTS, "  two  wands ", " 일 ,본"):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert pieces(tokenizer, "漢일\n") == ["<unk>", "일", "<unk>", "</s>"]


def test_held_out_rows_have_no_unknown_tokens_and_come_back(tmp_path):
    train, held = written_forms(3000, 20)
    tokenizer = syllable_tokenizer(text for each in train for text in (each["source"], each["target"]))
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    for each in held:
        for text in (each["source"], each["target"]):
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids and loaded(text)["input_ids"] == ids and loaded.decode(ids) == text + "</s>"


def test_the_same_texts_give_the_same_tokens_and_the_special_ones_are_first():
    assert syllable_tokenizer(TEXTS).get_vocab() == syllable_tokenizer(TEXTS).get_vocab()
    tokenizer = syllable_tokenizer(TEXTS)
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id] == [0, 1, 2, 3]


def test_more_characters_than_tokens_are_refused():
    with pytest.raises(UserError, match="vocab_size 10: the text has 7 different characters, give 11 or more"):
        syllable_tokenizer(["abcdefg"], 10)
