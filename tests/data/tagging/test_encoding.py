import copy
import random

import pytest
from transformers import BertTokenizer

from seodang.data.errors import UserError
from seodang.data.tagging.encoding import TagEncoder, windows_of


def whole(tokenizer, text, words=None, **how):
    [found] = TagEncoder(tokenizer, **how)([text], [words])
    return found


def test_a_words_first_token_speaks_for_all_of_it(wordpiece):
    """Of [CLS] seoul is un ##believ ##able . [SEP]."""
    found = whole(wordpiece, "seoul is unbelievable.")
    [window] = found.windows
    assert wordpiece.convert_ids_to_tokens(window.input_ids) == ["[CLS]", "seoul", "is", "un", "##believ", "##able", ".", "[SEP]"]
    assert window.asked == (1, 2, 3, 6) and found.units == ((0, 5), (6, 8), (9, 21), (21, 22))
    every = whole(wordpiece, "seoul is unbelievable.", all_subwords=True)
    assert every.windows[0].asked == (1, 2, 3, 4, 5, 6) and every.units == ((0, 5), (6, 8), (9, 11), (11, 17), (17, 21), (21, 22))


def test_words_that_a_text_comes_with_are_its_units_however_the_tokenizer_parts_them(wordpiece):
    found = whole(wordpiece, "seoul. is", [(0, 6), (7, 9)])
    assert found.units == ((0, 6), (7, 9)) and found.windows[0].asked == (1, 3)  # the full stop is the word's second token


def test_a_particle_is_apart_from_the_name_before_it_where_every_token_counts(wordpiece):
    found = whole(wordpiece, "서울은 수도이다", all_subwords=True)
    assert found.units == ((0, 2), (2, 3), (4, 6), (6, 8))


def test_parts_of_one_character_are_one_unit(text_tokenizer):
    """Byte-level tokens of what was not in the training text, of which each has the place of the whole character, and spaces that tokens begin with."""
    tokenizer = text_tokenizer("bytes")
    found = whole(tokenizer, "x 뷁 궤", all_subwords=True)
    assert found.units == ((0, 1), (2, 3), (4, 5)) and len(found.windows[0].input_ids) > 5
    assert len(found.windows[0].asked) == 3


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "unigram", "unsplit"])
@pytest.mark.parametrize("every", [False, True])
def test_units_lie_behind_one_another_and_hold_no_spaces(text_tokenizer, kind, every):
    text = "한국어 문장을  배워요. Don't stop learning!\n🙂🙂 x = foo(1)"
    found = whole(text_tokenizer(kind), text, all_subwords=every)
    assert all(one[1] <= other[0] for one, other in zip(found.units, found.units[1:], strict=False))
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in found.units) or kind == "unsplit"  # which parts no words
    assert len(found.units) == sum(len(window.asked) for window in found.windows)


def test_windows_answer_for_every_token_once_and_see_half_of_what_they_share_beyond():
    draw = random.Random(0)
    for _ in range(300):
        tokens, stride = draw.randint(0, 60), draw.randint(0, 9)
        room = stride + draw.randint(1, 12)
        found = list(windows_of(tokens, room, stride))
        assert [token for *_, mine in found for token in mine] == list(range(tokens))
        for number, (begin, end, mine) in enumerate(found):
            assert end - begin <= room and begin <= mine.start and mine.stop <= end
            assert number == 0 or mine.start - begin >= stride // 2
            assert number == len(found) - 1 or end - mine.stop >= stride // 2


def test_a_long_text_is_read_in_windows_each_between_its_special_tokens(word_tokenizer):
    tokenizer = word_tokenizer([f"w{number}" for number in range(12)])
    text = " ".join(f"w{number}" for number in range(12))
    found = whole(tokenizer, text, max_length=8, stride=2)
    ids = [window.input_ids for window in found.windows]
    assert ids == [[2, *range(5, 11), 3], [2, *range(9, 15), 3], [2, *range(13, 17), 3]]
    assert [tuple(window.input_ids[at] - 5 for at in window.asked) for window in found.windows] == [(0, 1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11)]
    assert found.units == tuple(whole(tokenizer, text).units) and found.tokens == 22
    assert [window.token_type_ids for window in found.windows] == [[0] * len(row) for row in ids]


def test_an_empty_text_has_no_units(wordpiece):
    assert whole(wordpiece, "").units == () and TagEncoder(wordpiece)([]) == []
    assert whole(wordpiece, " \n").units == ()


def test_what_no_encoder_can_do_is_refused(wordpiece, monkeypatch):
    with pytest.raises(UserError, match="max_length 8 leaves nothing beside stride 6 and 2 special tokens: raise it, or lower --stride"):
        TagEncoder(wordpiece, 8, 6)
    with pytest.raises(UserError, match="max_length 2 leaves nothing beside 2 special tokens: raise it"):
        TagEncoder(wordpiece, 2)
    with pytest.raises(UserError, match="stride must be at least 0, got -1"):
        TagEncoder(wordpiece, 8, -1)
    slow = copy.copy(wordpiece)
    monkeypatch.setattr(type(slow), "is_fast", False)
    with pytest.raises(UserError, match="BertTokenizer does not tell where in a text its tokens stand: use a fast tokenizer"):
        TagEncoder(slow)
    assert type(wordpiece) is BertTokenizer
