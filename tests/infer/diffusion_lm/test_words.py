"""Words to ids and back, templates, and what is refused of them."""

import pytest
from transformers import AutoTokenizer

from seodang.data.errors import UserError
from seodang.infer.diffusion_lm.words import canvas_of, filled, ids_of, split, text_of, train_words, word_id

TEXTS = ["Lucy's hat is old.", "The hat is Lucy's, really!", "수원은 도시다. hat", "a [PAD] hat"]


def test_the_commonest_words_come_first_and_rare_ones_are_unknown():
    tokenizer = train_words(TEXTS, min_count=2)
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == ["[PAD]", "[END]", "[UNK]", "▁hat", "'", ".", "s", "▁Lucy", "▁is"]
    assert ids_of("hat is old.", tokenizer) == [3, 8, 2, 5]
    with pytest.raises(UserError, match="no word occurs 9 times: lower --min_count"):
        train_words(TEXTS, 9)


@pytest.mark.parametrize("text", [*TEXTS[:3], "old.hat", "  is  hat ", "is\nhat"])
def test_ids_are_those_of_transformers_and_texts_come_back(text, tmp_path):
    tokenizer = train_words(TEXTS)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    if "\n" not in text and "  " not in text:
        assert ids_of(text, tokenizer) == loaded(text)["input_ids"]
        assert text_of([*ids_of(text, loaded), 1, 0, 0], loaded) == (text if "old.hat" not in text else "old.[UNK]")
    assert split(text)[0].startswith("▁")


def test_what_looks_like_a_special_token_is_text():
    tokenizer = train_words(TEXTS)
    ids = ids_of(TEXTS[3], tokenizer)
    assert tokenizer.pad_token_id not in ids and tokenizer.convert_ids_to_tokens(ids) == ["▁a", "▁[", "PAD", "]", "▁hat"]


def test_a_template_has_as_many_positions_as_words():
    tokenizer = train_words(TEXTS)
    hat, is_, stop = ids_of("hat is.", tokenizer)
    assert canvas_of("_ hat _.", tokenizer) == [None, hat, None, stop]
    assert filled([None, hat], 5, tokenizer) == [None, hat, 1, 0, 0]
    assert word_id("is", tokenizer) == is_ and word_id(".", tokenizer) == stop  # which never stands behind a space
    for template, said in (("_ dog", r"the word 'dog' of '_ dog' is outside the model's vocabulary"), (" ", "the template ' ' has no words")):
        with pytest.raises(UserError, match=said):
            canvas_of(template, tokenizer)
    with pytest.raises(UserError, match="5 words and their end are longer than the model, which has 5 positions"):
        filled([None] * 5, 5, tokenizer)
    with pytest.raises(UserError, match="'old hat' is 2 words, give one"):
        word_id("old hat", tokenizer)
