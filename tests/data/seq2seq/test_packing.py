import random

import pytest
import torch

from seodang.data.seq2seq.packing import best_fit_of_two, collate_padded_pairs, collate_pairs, pack_alike, pack_seq2seq, pairs_of

SHORT = {"input_ids": [5, 6], "decoder_input_ids": [0, 7, 9], "labels": [-100, 9, 1]}
LONG = {"input_ids": [8, 8, 8], "decoder_input_ids": [0], "labels": [1]}


def test_the_fullest_bin_by_both_sides_takes_the_next_pair():
    # by their greater share: (2, 8), (7, 2), which fits beside it, then (3, 3) and (3, 1), for which there is no room
    assert best_fit_of_two([(3, 1), (7, 2), (2, 8), (3, 3)], (10, 10)) == [[2, 1], [3, 0]]
    assert best_fit_of_two([(6, 6), (5, 5), (4, 4)], (10, 10)) == [[0, 2], [1]]  # both have room for the last, the first less
    assert best_fit_of_two([(4, 1), (4, 1), (4, 1)], (10, 100)) == [[0, 1], [2]]  # sources fill the row
    assert best_fit_of_two([(1, 4), (1, 4), (1, 4)], (100, 10)) == [[0, 1], [2]]  # targets do
    assert best_fit_of_two([], (1, 1)) == []


def test_no_bin_overflows_every_pair_has_a_place_and_few_rows_are_wasted():
    generator = random.Random(0)
    sizes = [(generator.randrange(1, 60), generator.randrange(1, 40)) for _ in range(500)]
    bins = best_fit_of_two(sizes, (64, 48))
    assert sorted(index for chosen in bins for index in chosen) == list(range(500))
    for chosen in bins:
        assert sum(sizes[i][0] for i in chosen) <= 64 and sum(sizes[i][1] for i in chosen) <= 48
    least = max(sum(s for s, _ in sizes) / 64, sum(t for _, t in sizes) / 48)
    assert len(bins) <= 1.15 * least


@pytest.mark.parametrize("size", [(11, 1), (1, 21)])
def test_a_pair_that_fits_no_row_is_refused(size):
    with pytest.raises(ValueError, match=f"a pair of {size[0]} source and {size[1]} target tokens does not fit into rows of 10 and 20"):
        best_fit_of_two([(1, 1), size], (10, 20))


def test_pairs_of_like_lengths_share_a_row_by_their_targets_first():
    pairs = [made(source, target) for source, target in ((4, 2), (1, 3), (2, 2), (3, 1), (9, 1))]
    packed = pack_alike(pairs, 2)
    assert [(row["lengths"], row["target_lengths"]) for row in packed] == [([3, 9], [1, 1]), ([2, 4], [2, 2]), ([1], [3])]
    apart = [pair for row in packed for pair in pairs_of(row)]
    assert apart == [pairs[place] for place in (3, 4, 2, 0, 1)]
    with pytest.raises(ValueError, match="at least one pair, got 0"):
        pack_alike(pairs, 0)


def made(source, target):
    """A pair of these lengths, whose ids tell it from the others."""
    return {"input_ids": [10 * source + target] * source, "decoder_input_ids": [*range(target)], "labels": [source] * target}


def test_packed_rows_keep_their_borders_and_come_apart_again():
    [packed] = pack_seq2seq([SHORT, LONG], 5, 4)
    assert packed == {
        "input_ids": [5, 6, 8, 8, 8], "decoder_input_ids": [0, 7, 9, 0], "labels": [-100, 9, 1, 1], "lengths": [2, 3], "target_lengths": [3, 1],
    }  # fmt: skip
    assert list(pairs_of(packed)) == [SHORT, LONG]
    assert list(pairs_of(SHORT)) == [SHORT]
    assert len(pack_seq2seq([SHORT, LONG], 4, 4)) == 2


def test_end_to_end_there_is_nothing_between():
    batch = collate_pairs([*pack_seq2seq([SHORT, LONG], 9, 9), SHORT])
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 8, 8, 8, 5, 6]],
        "decoder_input_ids": [[0, 7, 9, 0, 0, 7, 9]],
        "labels": [[-100, 9, 1, 1, -100, 9, 1]],
        "source_lengths": [2, 3, 2],
        "target_lengths": [3, 1, 3],
    }
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_padding_is_known_by_length_though_the_pad_token_begins_each_target():
    batch = collate_padded_pairs(pack_seq2seq([SHORT, LONG], 9, 9), pad_token_id=0)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 0], [8, 8, 8]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "decoder_input_ids": [[0, 7, 9], [0, 0, 0]],
        "labels": [[-100, 9, 1], [1, -100, -100]],
    }
