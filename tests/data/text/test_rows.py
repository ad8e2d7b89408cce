from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seodang.data.errors import UserError
from seodang.data.packing import collate
from seodang.data.text.around import Around, around, around_documents
from seodang.data.text.corruption import noise_of
from seodang.data.text.counts import TextCounts
from seodang.data.text.rows import CausalRows, MaskedRows, _pieces, causal_rows, held_out, masked_rows, shared_documents, span_rows
from seodang.data.text.span_corruption import SpanCorruption, SpanOptions, filled_in
from seodang.data.text.store import DIGEST, TokenStore
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer


def store_of(documents, starts=None):
    """A store that holds these documents' ids."""
    made = object.__new__(TokenStore)
    made.tokens = np.array([each for document in documents for each in document], dtype=np.uint16)
    made.word_starts = None if starts is None else np.array(starts)
    made.documents = np.array([[end, 2 * len(document), hash(tuple(document))] for end, document in zip(accumulate(map(len, documents)), documents)])
    made.highest, made.content, made.counts = int(made.tokens.max()), "content", TextCounts()
    return made


def records(rows):
    """The pieces of all rows, as lists of ids, and their labels where there are any."""
    found = []
    for row in rows:
        borders = [0, *accumulate(row["lengths"])]
        found += [(row["input_ids"][a:b], row.get("labels", [])[a:b]) for a, b in zip(borders, borders[1:])]
    return found


DOCUMENTS = [[10, 11, 12], [20, 21, 22, 23, 24, 25, 26], [30]]


def test_masked_pieces_stand_between_what_the_tokenizer_puts_around_a_text(text_tokenizer):
    tokenizer = text_tokenizer("wordpiece")
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows = masked_rows(store_of(DOCUMENTS), tokenizer, 6)
    expected = [[cls, 10, 11, 12, sep], [cls, 20, 21, 22, 23, sep], [cls, 24, 25, 26, sep], [cls, 30, sep]]
    assert sorted(ids for ids, _ in records(rows)) == sorted(expected)
    assert all(len(row["input_ids"]) <= 6 for row in rows) and [row["number"] for row in rows] == list(range(len(rows)))
    counts = rows.counts()
    assert (counts.documents, counts.pieces, counts.split, counts.split_pieces, counts.tokens) == (3, 4, 1, 2, 5 + 6 + 5 + 3)
    assert "split           1 documents are longer than a row, in 2 pieces" in counts.lines()


def test_causal_pieces_go_on_where_the_one_before_ended_so_that_each_token_is_learned_once(text_tokenizer):
    rows = CausalRows(made := store_of(DOCUMENTS), Around((1,), (2,)), 5, np.arange(3), _pieces(made, np.arange(3), 5, 1, 1, 1), every_piece=False)
    found = sorted(records(rows))
    assert found == [
        ([1, 10, 11, 12, 2], [-100, 10, 11, 12, 2]), ([1, 20, 21, 22, 23], [-100, 20, 21, 22, 23]), ([1, 30, 2], [-100, 30, 2]),
        ([23, 24, 25, 26, 2], [-100, 24, 25, 26, 2]),
    ]  # fmt: skip
    tokenizer = text_tokenizer("wordpiece")
    assert [ids for ids, _ in records(causal_rows(store_of([[9]]), tokenizer, 8))] == [[tokenizer.cls_token_id, 9, tokenizer.sep_token_id]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, 2), st.integers(0, 2), st.integers(0, 9))
def test_whatever_the_lengths_nothing_is_lost_or_learned_twice(lengths, before, after, more):
    ids = iter(range(100, 10_000))
    documents = [[next(ids) for _ in range(length)] for length in lengths]
    puts, room, every = Around((1,) * before, (2,) * after), before + after + 2 + more, np.arange(len(lengths))
    rows = CausalRows(made := store_of(documents), puts, room, every, _pieces(made, every, room, before, after, 1), every_piece=False)
    learned = [label for _, labels in records(rows) for label in labels if label >= 100]
    assert sorted(learned) == sorted(each for document in documents for each in document[0 if before else 1 :])
    assert all(len(row["input_ids"]) <= room == rows.longest and sum(row["lengths"]) == len(row["input_ids"]) for row in rows)
    masked = MaskedRows(made, puts, room, every, _pieces(made, every, room - before - after, 0, 0, 0), every_piece=True)
    assert sorted(each for piece, _ in records(masked) for each in piece if each >= 100) == list(made.tokens)
    assert all(piece[:before] == [1] * before and piece[len(piece) - after :] == [2] * after for piece, _ in records(masked))
    assert rows.token_count() == sum(len(row["input_ids"]) for row in rows)


def test_borders_and_positions_of_a_batch_are_those_of_the_pieces(text_tokenizer):
    rows = masked_rows(store_of([[10, 11], [20]]), text_tokenizer("wordpiece"), 16)
    [row] = rows
    batch = collate([{**row, "labels": row["input_ids"]}])
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 7] and batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2]]


def test_a_piece_that_begins_within_a_word_begins_one_itself(text_tokenizer):
    rows = masked_rows(store_of([[10, 11, 12, 13]], [True, False, False, True]), text_tokenizer("wordpiece"), 4)
    assert {tuple(row["input_ids"][1:-1]): row["word_starts"] for row in rows} == {(10, 11): [True, True, False, True], (12, 13): [True, True, True, True]}


def test_held_out_documents_are_others_and_the_same_for_the_same_seed():
    documents = store_of([[i] for i in range(40)] + [[0]] * 10)
    train, held = held_out(documents, 0.2, seed=3)
    assert len(np.unique(documents.documents[held, DIGEST])) == 8 and sorted([*train, *held]) == list(range(50))
    assert not np.isin(documents.documents[train, DIGEST], documents.documents[held, DIGEST]).any()  # nor the same words
    assert np.array_equal(held, held_out(documents, 0.2, seed=3)[1]) and not np.array_equal(held, held_out(documents, 0.2, seed=4)[1])
    with pytest.raises(UserError, match="leaves nothing of 1 documents"):
        held_out(store_of([[1]]), 0.1, seed=0)


def test_documents_that_are_in_two_sets_of_rows_are_counted(text_tokenizer):
    tokenizer = text_tokenizer("wordpiece")
    made, other = store_of([[1], [2], [3]]), store_of([[3], [4], [1], [1]])
    assert shared_documents(masked_rows(other, tokenizer, 9), masked_rows(made, tokenizer, 9)) == 3
    assert shared_documents(masked_rows(other, tokenizer, 9, np.array([1])), masked_rows(made, tokenizer, 9)) == 0


def test_what_stands_around_a_text_is_asked_of_the_tokenizer(text_tokenizer, tokenizer):
    bert = text_tokenizer("bytes")
    assert around(bert) == around_documents(bert) == Around((bert.cls_token_id,), (bert.sep_token_id,))
    assert around(tokenizer) == Around((), ()) and around_documents(tokenizer) == Around((), (tokenizer.eos_token_id,))
    with pytest.raises(UserError, match="max_length 2 has no room for text, .* puts 2 tokens around it: set 3 or more"):
        masked_rows(store_of(DOCUMENTS), bert, 2)


def test_rows_tell_by_their_content_what_they_are_made_of(text_tokenizer):
    tokenizer, made = text_tokenizer("wordpiece"), store_of(DOCUMENTS)
    contents = {masked_rows(made, tokenizer, 6).content, masked_rows(made, tokenizer, 7).content, masked_rows(made, tokenizer, 6, np.array([0, 1])).content}
    assert len(contents | {masked_rows(made, tokenizer, 6, np.array([1, 2])).content}) == 4


def test_masked_rows_of_which_the_tokenizer_knows_nothing_are_refused(text_tokenizer):
    tokenizer = text_tokenizer("wordpiece")
    made = store_of([[tokenizer.unk_token_id] * 3, [20, tokenizer.unk_token_id], [tokenizer.unk_token_id]])
    assert len(masked_rows(made, tokenizer, 8)) and len(masked_rows(made, tokenizer, 8, np.array([1])))
    for documents, told in ((np.array([0, 2]), "the tokens of 2 documents"), (np.array([2]), "the document's tokens")):
        with pytest.raises(UserError, match=rf"all {told} are unknown to the tokenizer \(\[UNK\]\), and nothing of them can be learned"):
            masked_rows(made, tokenizer, 8, documents)


@pytest.fixture(scope="module")
def with_sentinels():
    return train_tokenizer(["some words to learn from"] * 3, TokenizerSettings(vocab_size=370, family="encoder-decoder"))


def test_rows_of_spans_are_filled_by_what_is_left_of_their_pieces(with_sentinels):
    # of 20 tokens 3 are hidden in 1 span: 17 + 1 + the end are read, 3 + 2 + the end written; of 10 tokens 2 in 1: 10 and 5
    documents = [list(range(10, 30)), list(range(40, 50)), [7], list(range(60, 97))]
    rows = span_rows(made := store_of(documents), with_sentinels, 19)
    assert sorted((row["input_ids"], row["lengths"]) for row in rows) == [
        (list(range(10, 30)), [20]), (list(range(40, 50)), [10]), (list(range(60, 80)), [20]), (list(range(80, 97)), [17]),
    ]  # fmt: skip
    assert rows.short == 1 and rows.size == (19, 6, 369, 369)  # the highest id is the first sentinel's
    assert rows.target_count() == 6 + 5 + 6 + 6 and rows.counts().tokens == 19 + 10 + 19 + 16 and rows.counts().split == 1
    corruption = SpanCorruption.of(with_sentinels, SpanOptions(), 0)
    for row in rows:
        corrupted = corruption(row, noise_of(0, 0, row["number"]))
        assert len(corrupted["input_ids"]) <= 19 and filled_in(corrupted["input_ids"], corrupted["labels"][:-1], corruption.sentinels) == [*row["input_ids"], 1]
    wide = span_rows(made, with_sentinels, 48)
    assert sorted(row["lengths"] for row in wide) == [[20], [37, 10]]  # 34 and 10 are read of 48 there may be; 34 and 19 would be more
    assert span_rows(made, with_sentinels, 19, options=SpanOptions(0.3)).content != rows.content == span_rows(made, with_sentinels, 19).content


@given(st.lists(st.lists(st.integers(3, 200), min_size=1, max_size=60), min_size=1, max_size=8), st.integers(8, 40), st.floats(0.05, 0.6), st.floats(1, 4))
@settings(max_examples=60, deadline=None)
def test_no_corrupted_row_is_longer_than_it_may_be_and_no_token_is_lost_but_single_ones(with_sentinels, documents, room, density, mean):
    if all(len(document) < 2 for document in documents):
        return
    options = SpanOptions(density, mean)
    rows = span_rows(store_of(documents), with_sentinels, room, options=options)
    corruption = SpanCorruption.of(with_sentinels, options, 0)
    longest = highest = 0
    for row in rows:
        made = corruption(row, noise_of(0, 0, row["number"]))
        assert sum(made["lengths"]) == len(made["input_ids"]) <= room and len(made["lengths"]) == len(row["lengths"])
        longest, highest = max(longest, *made["lengths"]), max(highest, *made["target_lengths"])
    assert (longest, highest) == rows.size[:2]
    assert sum(len(row["input_ids"]) for row in rows) + rows.short == sum(map(len, documents))
    assert sum(len(row["lengths"]) for row in rows) == len(rows.pieces.first)


def test_texts_of_which_no_span_can_be_hidden_are_refused(with_sentinels, text_tokenizer):
    for documents, room, options, message in (
        ([[5, 6, 7]], 2, {}, "max_length 2 has no room for text: a token, a sentinel and the 1 that the tokenizer puts around a text take 3"),
        ([[5], [6]], 20, {}, "none of 2 documents has 2 tokens or more, of which one could be hidden"),
        ([list(range(5, 300)) * 2], 600, {"noise_density": 0.5, "mean_noise_span_length": 1.0},
         "a piece of 590 tokens has 295 hidden spans, which with the one that closes the target take 296 sentinels, and the tokenizer has 100: lower --max_length or --noise_density"),
        ([[2, 2, 2]], 20, {}, r"the document's tokens are unknown to the tokenizer \(<unk>\)"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            span_rows(store_of(documents), with_sentinels, room, options=SpanOptions(**options))
    with pytest.raises(UserError, match="the tokenizer has no sentinels"):
        span_rows(store_of(DOCUMENTS), text_tokenizer("wordpiece"), 20)


def test_spans_of_held_out_documents_are_in_no_row_to_train_on_and_pieces_of_documents_stay_apart(with_sentinels):
    documents = [[5 * i + j for j in range(5)] for i in range(1, 60)]  # no token is in two of them
    made = store_of(documents)
    train, held = held_out(made, 0.2, seed=3)
    rows = [span_rows(made, with_sentinels, 30, numbers) for numbers in (train, held)]
    told = [{id for row in each for id in row["input_ids"]} for each in rows]
    assert not told[0] & told[1] and told[1] == {id for i in held for id in documents[i]} and len(told[0] | told[1]) == 5 * 59
    corruption = SpanCorruption.of(with_sentinels, SpanOptions(), 0)
    for row in rows[0]:
        made = corruption(row, noise_of(0, 0, row["number"]))
        ends = [*accumulate(made["lengths"])]
        for begin, end in zip([0, *ends], ends):
            assert len({id // 5 for id in made["input_ids"][begin:end] if 1 < id < 300}) == 1  # of one document
