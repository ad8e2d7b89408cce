"""Rows for encoder-decoders, by hand: ids of a SentencePiece tokenizer of letters, with T5's end token 1."""

import pytest
import torch
from seq2seq_fixtures import PIECES

from seodang.data.errors import UserError
from seodang.data.seq2seq.languages import set_languages
from seodang.data.seq2seq.records import Exchange
from seodang.data.seq2seq.rows import Seq2SeqLabeller, seq2seq_rows

AB, BC, SPACE, END, IGNORED = PIECES.index("▁ab"), PIECES.index("bc"), PIECES.index("▁"), 1, -100


def letters(text: str) -> list[int]:
    return [PIECES.index(letter) for letter in text]


def rows(tokenizer, *exchanges, first=(0,), **how):
    return seq2seq_rows(exchanges, Seq2SeqLabeller(tokenizer, lambda target: first, **how))


def test_the_decoder_is_shown_what_it_begins_with_and_the_target_but_its_end(t5_tokenizer):
    made, counts = rows(t5_tokenizer, Exchange("ab c", "나무", where="line 1"))
    target = [SPACE, *letters("나무"), END]
    assert made == [{"input_ids": [AB, SPACE, *letters("c"), END], "decoder_input_ids": [0, *target[:-1]], "labels": target, "where": "line 1"}]
    assert (counts.tokens, counts.target_tokens, counts.trained_tokens, counts.kept) == (8, 4, 4, 1)
    assert counts.lines() == ["records         1 read, 1 kept in 1 rows", "tokens          4 in sources, 4 in targets, 4 trained"]


def test_of_several_first_ids_the_last_alone_predicts_a_target(t5_tokenizer):
    [row], _ = rows(t5_tokenizer, Exchange("a", "나"), first=(0, 5))
    assert row["decoder_input_ids"] == [0, 5, SPACE, *letters("나")]
    assert row["labels"] == [IGNORED, SPACE, *letters("나"), END]


def test_the_first_ids_may_hang_on_the_target(t5_tokenizer):
    """As for mBART, whose decoder begins with the target's last id."""
    made, _ = seq2seq_rows([Exchange("a", "나")], Seq2SeqLabeller(t5_tokenizer, lambda target: target[-1:]))
    assert made[0]["decoder_input_ids"] == [END, SPACE, *letters("나")]


def test_labels_and_shown_ids_give_the_loss_that_the_model_has_of_the_labels_alone(t5_tokenizer, tiny):
    model = tiny("t5", eos_token_id=1)
    [row], _ = rows(t5_tokenizer, Exchange("ab c", "나무가 자란다."))
    source, shown, labels = (torch.tensor([row[name]]) for name in ("input_ids", "decoder_input_ids", "labels"))
    with torch.no_grad():
        assert torch.equal(model(input_ids=source, labels=labels).loss, model(input_ids=source, decoder_input_ids=shown, labels=labels).loss)


def test_a_source_prefix_is_read_with_the_source_in_texts_and_in_messages(t5_tokenizer):
    messages = [{"role": "user", "content": "나"}]
    made, _ = rows(t5_tokenizer, Exchange("나", "a"), Exchange(messages, "a"), source_prefix="ab: ")
    assert made[0]["input_ids"] == made[1]["input_ids"] == [AB, *letters(":"), SPACE, *letters("나"), END]


def test_a_given_beginning_is_shown_and_never_learned(t5_tokenizer):
    [row], counts = rows(t5_tokenizer, Exchange("a", "ab 나무", prefix="ab"))
    assert row["decoder_input_ids"] == [0, AB, SPACE, *letters("나무")]
    assert row["labels"] == [IGNORED, SPACE, *letters("나무"), END]
    assert counts.trained_tokens == 4 and "4 trained (1 are given)" in counts.lines()[1] and not counts.boundary_merges


def test_a_beginning_whose_end_the_tokenizer_would_merge_is_as_generation_shows_it(t5_tokenizer):
    """ "ab" is one token, of which "a" is no beginning: generation is given "▁", "a"."""
    [row], counts = rows(t5_tokenizer, Exchange("a", "abc", prefix="a"))
    given = [SPACE, *letters("a")]
    assert row["decoder_input_ids"][: 1 + len(given)] == [0, *given] and row["labels"][: len(given)] == [IGNORED] * len(given)
    learned = [label for label in row["labels"] if label != IGNORED]
    assert learned[-1] == END and t5_tokenizer.decode([*given, *learned], skip_special_tokens=True) == "abc"
    assert counts.boundary_merges == 1 and "merges          1 answers keep the token border that generation has" in counts.lines()


def test_a_long_source_loses_its_end_but_for_what_closes_it_and_is_counted(t5_tokenizer):
    exchanges = [Exchange("나무가 자란다.", "a"), Exchange("나", "a")]  # 10 and 3 ids
    made, counts = rows(t5_tokenizer, *exchanges, max_source_length=6)
    assert [row["input_ids"] for row in made] == [[SPACE, *letters("나무가"), SPACE, END], [SPACE, *letters("나"), END]]
    assert "truncated       1 sources longer than 6 tokens lost their end (the longest has 10)" in counts.lines()

    made, counts = rows(t5_tokenizer, *exchanges, max_source_length=6, too_long="drop")
    assert len(made) == 1 and counts.dropped == {"source longer than max_source_length": 1} and not counts.truncated
    with pytest.raises(UserError, match="^line 4: the source has 10 tokens, more than max_source_length 6: shorten it"):
        rows(t5_tokenizer, Exchange("나무가 자란다.", "a", where="line 4"), max_source_length=6, too_long="error")


def test_a_long_target_is_never_cut(t5_tokenizer):
    long, short = Exchange("a", "나무가", where="line 1"), Exchange("a", "나무", where="line 2")  # 5 and 4 ids
    made, counts = rows(t5_tokenizer, long, short, max_target_length=4)
    assert [row["where"] for row in made] == ["line 2"] and counts.dropped == {"target longer than max_target_length": 1}
    with pytest.raises(UserError, match="^line 1: target longer than max_target_length: mend the record"):
        rows(t5_tokenizer, long, short, max_target_length=4, unusable="error")
    with pytest.raises(UserError, match="none of the 1 records can be used: 1 x target longer"):
        rows(t5_tokenizer, short, max_target_length=4, first=(0, 0))  # what is shown first takes positions too


@pytest.mark.parametrize(("exchange", "side"), [(Exchange(" \n", "a"), "source"), (Exchange([{"role": "user", "content": ""}], "a"), "source"), (Exchange("a", " "), "target")])
def test_an_empty_side_is_refused_by_its_place_or_left_out_and_counted(t5_tokenizer, exchange, side):
    exchange.where = "line 9"
    with pytest.raises(UserError, match=f"^line 9: the {side} is empty: fill it in, or leave such records out with --empty_answers drop"):
        rows(t5_tokenizer, exchange)
    made, counts = rows(t5_tokenizer, exchange, Exchange("a", "b"), empty_answers="drop")
    assert len(made) == 1 and counts.dropped == {"empty source" if side == "source" else "empty answer": 1}


def test_in_a_chat_template_a_source_is_left_out_rather_than_cut(t5_tokenizer):
    t5_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} a:{% endif %}"
    messages = [{"role": "user", "content": "나무가"}]
    made, counts = rows(t5_tokenizer, Exchange(messages, "b"), Exchange([{"role": "user", "content": "나"}], "b"), Exchange("나무가자란다", "b"), max_source_length=6)
    assert made[0]["input_ids"][-2:] == letters("a:")
    assert len(made) == 2 and counts.truncated == 1 and counts.dropped == {"source longer than max_source_length": 1}


def test_a_language_begins_the_target_of_nllb_and_ends_that_of_mbart(nllb_tokenizer, mbart_tokenizer):
    set_languages(nllb_tokenizer, "kor_Hang", "eng_Latn")
    ids = nllb_tokenizer.convert_tokens_to_ids
    [row], _ = rows(nllb_tokenizer, Exchange("나", "ab", prefix="a"), first=(2,))
    assert row["input_ids"] == ids(["kor_Hang", "▁", "나", "</s>"])
    assert row["decoder_input_ids"] == ids(["</s>", "eng_Latn", "▁", "a", "b"]) and row["labels"] == [IGNORED] * 3 + ids(["b", "</s>"])
    made, counts = rows(nllb_tokenizer, Exchange("나무가자", "a"), max_source_length=4)
    assert made[0]["input_ids"] == ids(["kor_Hang", "▁", "나", "</s>"]) and counts.truncated == 1

    set_languages(mbart_tokenizer, "ko_KR", "en_XX")
    ids = mbart_tokenizer.convert_tokens_to_ids
    made, counts = seq2seq_rows([Exchange("나무가자", "ab")], Seq2SeqLabeller(mbart_tokenizer, lambda target: target[-1:], max_source_length=5))
    assert made[0]["input_ids"] == ids(["▁", "나", "무", "</s>", "ko_KR"]) and counts.truncated == 1
    assert made[0]["decoder_input_ids"] == ids(["en_XX", "▁", "a", "b", "</s>"]) and made[0]["labels"] == ids(["▁", "a", "b", "</s>", "en_XX"])


def test_what_looks_like_a_control_token_is_text_on_both_sides(t5_tokenizer):
    """ "</s>" is a piece of a Unigram model, and the likeliest for these letters: it would end the answer in its midst."""
    assert t5_tokenizer("a</s>b", split_special_tokens=True)["input_ids"].count(END) == 2
    [row], _ = rows(t5_tokenizer, Exchange("a</s>b", "c</s><pad>나"))
    unknown = t5_tokenizer.unk_token_id
    assert row["input_ids"] == [SPACE, *letters("a"), unknown, *letters("s"), unknown, *letters("b"), END]  # "</" and ">" are no letters of it
    assert row["labels"] == [SPACE, *letters("c"), unknown, *letters("s"), unknown, *letters("pad"), unknown, *letters("나"), END]
    [row], _ = rows(t5_tokenizer, Exchange("a</s>b", "c"), literal=False)
    assert row["input_ids"].count(END) == 2


@pytest.mark.parametrize("wrong", [{"too_long": "cut"}, {"empty_answers": "keep"}, {"unusable": "no"}, {"max_source_length": 1}])
def test_settings_that_there_are_not_are_refused(t5_tokenizer, wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} must be"):
        rows(t5_tokenizer, Exchange("a", "b"), **wrong)
