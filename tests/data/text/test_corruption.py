import numpy as np
import pytest

from seodang.data.errors import UserError
from seodang.data.text.corruption import Masking, MaskingOptions, held_out_noise, noise_of

SPECIAL, MASK, VOCAB = [0, 1, 2, 3, 4], 4, 50


def masking(**options):
    return Masking(MaskingOptions(**options), MASK, np.array(SPECIAL), np.arange(5, VOCAB))


def chosen_of(labels):
    return np.array(labels) != -100


ROW = [2, *range(5, 45), 3, 2, 7, 8, 3, 0, 0, 0]  # [CLS] ... [SEP] [CLS] ... [SEP] [PAD] [PAD] [PAD]
PLAIN = 42  # tokens of it that are text


def test_the_shares_are_those_that_are_asked_for():
    many, place = masking(mlm_probability=0.3, mask_share=0.7, random_share=0.2), np.array(ROW)
    hidden = masked = kept = other = 0
    for row in range(2000):
        corrupted, labels = many.corrupt(place, noise_of(1, 0, row))
        here = chosen_of(labels)
        assert (labels[here] == place[here]).all() and (corrupted[~here] == place[~here]).all()
        assert not np.isin(place[here], SPECIAL).any()  # special tokens and padding never
        hidden += here.sum()
        masked += (corrupted[here] == MASK).sum()
        kept += (corrupted[here] == place[here]).sum()
        other += (~np.isin(corrupted[here], [MASK]) & (corrupted[here] != place[here])).sum()
    count = 2000 * PLAIN
    assert abs(hidden / count - 0.3) < 4 * (0.3 * 0.7 / count) ** 0.5  # four standard errors
    assert abs(masked / hidden - 0.7) < 4 * (0.7 * 0.3 / hidden) ** 0.5
    stays = 0.1 + 0.2 / (VOCAB - 5)  # a random token may be the same
    assert abs(kept / hidden - stays) < 4 * (stays * (1 - stays) / hidden) ** 0.5
    assert other + masked + kept == hidden


def test_what_stands_in_a_tokens_place_is_any_ordinary_token_equally_often():
    counts, one = np.zeros(VOCAB), masking(mlm_probability=0.9, mask_share=0.0, random_share=1.0)
    for row in range(1500):
        corrupted, labels = one.corrupt(np.array(ROW), noise_of(0, 0, row))
        counts += np.bincount(corrupted[chosen_of(labels)], minlength=VOCAB)
    assert counts[SPECIAL].sum() == 0
    expected = counts.sum() / (VOCAB - 5)
    assert ((counts[5:] - expected) ** 2 / expected).sum() < 44 + 5 * (2 * 44) ** 0.5  # chi square


def test_words_are_chosen_whole_and_at_the_same_rate():
    starts = np.array([True, *[i % 3 == 0 for i in range(40)], True, True, True, False, True, True, False, False])
    words, ids = np.cumsum(starts), np.array(ROW)
    whole, hidden = masking(whole_words=True), 0
    plain = ~np.isin(ids, SPECIAL)
    for row in range(3000):
        _, labels = whole.corrupt(ids, noise_of(0, 2, row), starts)
        here = chosen_of(labels)
        assert all(here[plain & (words == word)].all() for word in set(words[here]))
        assert not here[~plain].any()
        hidden += here.sum()
    rate = 0.15 + 0.85**15 / 15  # of 15 words one is chosen where none would be
    assert abs(hidden / (3000 * PLAIN) - rate) < 4 * (0.15 * 0.85 * (13 * 3**2 + 1 + 2**2) / 3000) ** 0.5 / PLAIN


def test_a_special_token_within_a_word_is_not_hidden_with_it():
    _, labels = masking(mlm_probability=0.99, whole_words=True).corrupt(np.array([7, 1, 8]), noise_of(0, 0, 0), np.array([True, False, False]))
    assert labels.tolist() == [7, -100, 8]


def test_each_row_with_text_has_something_to_say_and_no_other():
    rare = masking(mlm_probability=1e-9)
    assert {int(chosen_of(rare.corrupt(np.array([2, 9, 10, 3]), noise_of(0, 0, row))[1]).argmax()) for row in range(50)} == {1, 2}
    assert all(chosen_of(rare.corrupt(np.array([2, 9, 10, 3]), noise_of(0, 0, row))[1]).sum() == 1 for row in range(50))
    for empty in ([2, 3], [0, 0], []):
        assert not chosen_of(rare.corrupt(np.array(empty, dtype=np.int64), noise_of(0, 0, 0))[1]).any()


def test_what_was_padded_before_is_not_chosen_whatever_its_id():
    row = {"input_ids": [2, 9, 3, 9, 9], "attention_mask": [1, 1, 1, 0, 0], "number": 4}
    made = masking(mlm_probability=0.999)(row, noise_of(0, 0, 0))
    assert made["labels"] == [-100, 9, -100, -100, -100] and made["input_ids"][2:] == [3, 9, 9]
    assert made["attention_mask"] == [1, 1, 1, 0, 0] and made["number"] == 4 and row["input_ids"] == [2, 9, 3, 9, 9]


def test_draws_hang_on_seed_epoch_and_row_alone():
    one = masking()
    draw = lambda *key: one.corrupt(np.array(ROW), noise_of(*key))[0].tolist()
    assert draw(3, 1, 7) == draw(3, 1, 7)
    assert len({str(draw(*key)) for key in ((3, 1, 7), (4, 1, 7), (3, 2, 7), (3, 1, 8))}) == 4
    held = lambda row: one.corrupt(np.array(ROW), held_out_noise(row))[0].tolist()
    assert held(1) == held(1) != held(2)


def test_the_tokenizer_says_what_is_special_and_the_model_how_many_ids_there_are(text_tokenizer):
    tokenizer = text_tokenizer("wordpiece")
    made = Masking.of(tokenizer, MaskingOptions(), vocab_size=60)
    assert sorted(made.special_ids) == sorted(tokenizer.all_special_ids) and made.mask_token_id == tokenizer.mask_token_id
    assert set(made.ordinary_ids) == set(range(60)) - set(tokenizer.all_special_ids)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"mlm_probability": 0}, "between 0 and 1, got 0"), ({"mlm_probability": 1.0}, "between 0 and 1, got 1.0"), ({"mlm_probability": float("nan")}, "got nan"),
        ({"mask_share": 0.95}, "0.95 and random_share 0.1 come to more than 1"), ({"random_share": -0.1}, r"random_share must be in \[0, 1\], got -0.1"),
    ],
)  # fmt: skip
def test_shares_out_of_range_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        MaskingOptions(**options)


def test_what_cannot_be_masked_is_refused(tokenizer, text_tokenizer):
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="no mask token"):
        Masking.of(tokenizer, MaskingOptions())
    with pytest.raises(UserError, match=r"the mask token \[MASK\] \(4\) is beyond the model's vocabulary of 4"):
        Masking.of(text_tokenizer("wordpiece"), MaskingOptions(), vocab_size=4)
    with pytest.raises(UserError, match="know where words begin"):
        masking(whole_words=True)({"input_ids": [7]}, noise_of(0, 0, 0))
