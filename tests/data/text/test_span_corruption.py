"""Counts by hand and as published, sentinels by hand, texts that come back whole, and draws that hang on nothing but seed, epoch and row."""

from collections import Counter
from itertools import accumulate, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seodang.data.errors import UserError
from seodang.data.text.around import Around
from seodang.data.text.corruption import held_out_noise, noise_of
from seodang.data.text.span_corruption import (
    SpanCorruption,
    SpanOptions,
    filled_in,
    random_segments,
    random_spans,
    sentinel_ids,
    sentinels_of,
    spans_of,
)
from seodang.data.text.tokenizer_training import TokenizerSettings, train_tokenizer

END, START = 1, 0
SENTINELS = tuple(range(999, 899, -1))


def spans(density=0.15, mean=3.0):
    return SpanCorruption(SpanOptions(density, mean), SENTINELS, Around((), (END,)), START)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["some words to learn from"] * 3, TokenizerSettings(vocab_size=370, family="encoder-decoder"))


class Chosen:
    """Noise that cuts where it is told."""

    def __init__(self, *cuts):
        self.cuts = iter(cuts)

    def choice(self, items, count, replace):
        cuts = next(self.cuts)
        assert len(cuts) == count and all(0 <= cut < items for cut in cuts) and not replace
        return np.array(cuts, dtype=np.int64)


def test_sentinels_stand_where_a_hand_puts_them():
    # Raffel et al. 2020, figure 2: thank you [for inviting] me to your party [last week], of 10 words 4 in 2 spans
    words = "thank you for inviting me to your party last week".split()
    source, target = spans(0.4, 2.0).corrupt(np.arange(10) + 10, Chosen([1], [1]))  # 6 seen and 4 hidden tokens, each cut behind the second
    said = lambda ids: " ".join({999: "X", 998: "Y", 997: "Z", END: "E"}.get(id) or words[id - 10] for id in ids)
    assert said(source) == "thank you X me to your party Y E"
    assert said(target) == "X for inviting Y last week Z E"
    row = spans(0.4, 2.0)({"input_ids": [*range(10, 20), 7, 8], "lengths": [10, 2], "number": 0}, Chosen([1], [1], [], []))
    assert row == {
        "input_ids": [10, 11, 999, 14, 15, 16, 17, 998, END, 7, 999, END], "lengths": [9, 3],
        "decoder_input_ids": [START, 999, 12, 13, 998, 18, 19, 997, START, 999, 8, 998],
        "labels": [999, 12, 13, 998, 18, 19, 997, END, 999, 8, 998, END], "target_lengths": [8, 4],
    }  # fmt: skip


def test_what_the_docstring_says_of_ten_tokens():
    source, target = SpanCorruption(SpanOptions(0.3, 2.0), (99, 98, 97), Around((), (1,)), 0).corrupt(np.arange(11, 21), Chosen([1], [0]))
    assert source == [11, 12, 99, 14, 15, 16, 17, 18, 98, 1] and target == [99, 13, 98, 19, 20, 97, 1]


@pytest.mark.parametrize(
    ("length", "density", "mean", "hidden", "count"),
    [
        (100, 0.15, 3.0, 15, 5), (568, 0.15, 3.0, 85, 28), (10, 0.15, 3.0, 2, 1), (2, 0.15, 3.0, 1, 1), (3, 0.9, 1.0, 2, 1),
        (10, 0.25, 1.0, 2, 2), (14, 0.25, 1.0, 4, 4),  # halves go to the even number, 2.5 and 3.5
        (10, 0.999, 3.0, 9, 1), (10, 0.8, 1.0, 8, 2),  # one token is seen before each span
        (50, 0.15, 3.0, 8, 3), (7, 0.5, 3.0, 4, 1),
    ],
)  # fmt: skip
def test_counts_are_those_of_the_published_procedure(length, density, mean, hidden, count):
    options = SpanOptions(density, mean)
    assert [int(each) for each in options.counts(length)] == [hidden, count]
    assert [int(each) for each in options.sizes(length)] == [length - hidden + count, hidden + count + 1]
    seen, noise = random_spans(length, options, noise_of(0, 0, 0))
    assert len(seen) == len(noise) == count and seen.sum() == length - hidden and noise.sum() == hidden and min(*seen, *noise) >= 1


def tried_one_by_one(room, density, mean):
    """The most tokens of which an input with its sentinels and its end has room, the input's length, and the target's without the closing sentinel."""
    for tokens in range(2, 4 * room):
        hidden = round(tokens * density)
        spans = round(hidden / mean)
        if tokens - hidden + spans + 1 <= room:
            found = tokens, tokens - hidden + spans + 1, hidden + spans + 1
    return found


@pytest.mark.parametrize("room", [32, 64, 128, 256, 512, 1024])
@pytest.mark.parametrize(("density", "mean"), [(0.15, 3.0), (0.3, 2.0), (0.5, 4.0)])
def test_a_piece_is_as_long_as_its_input_has_room_and_its_target_has_the_closing_sentinel_more(room, density, mean):
    tokens, inputs, targets = tried_one_by_one(room, density, mean)
    options = SpanOptions(density, mean)
    assert options.longest_piece(room - 1) == tokens
    source, target = spans(density, mean).corrupt(np.arange(2, 2 + tokens) % 800 + 2, noise_of(0, 0, 1)) if room < 512 else ([0] * inputs, [0] * (targets + 1))
    assert (len(source), len(target)) == (inputs, targets + 1)
    if (room, density, mean) == (512, 0.15, 3.0):
        assert (tokens, inputs, targets) == (568, 512, 114)  # T5's own


@given(st.integers(2, 300), st.floats(0.01, 0.95), st.floats(1, 8), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_inputs_and_targets_merged_give_the_text_back(length, density, mean, seed):
    ids, options = np.arange(length) + 1000, SpanOptions(density, mean)
    corruption = SpanCorruption(options, tuple(range(999, 500, -1)), Around((), (END,)), START)
    source, target = corruption.corrupt(ids, noise_of(seed, 0, 0))
    assert filled_in(source, target[:-1], corruption.sentinels) == [*ids.tolist(), END]
    hidden, count = (int(each) for each in options.counts(length))
    assert [id for id in source if id < 1000] == [*corruption.sentinels[:count], END]
    assert [id for id in target if id < 1000] == [*corruption.sentinels[: count + 1], END]
    assert len(target) == hidden + count + 2 and source[0] == 1000 and source[-2] in corruption.sentinels  # first seen, last hidden


def test_each_way_to_part_tokens_is_equally_likely():
    noise, drawn = noise_of(0, 0, 0), Counter()
    for _ in range(6000):
        drawn[tuple(random_segments(5, 3, noise).tolist())] += 1
    ways = [(a + 1, b - a, 4 - b) for a, b in combinations(range(4), 2)]  # 6 of them
    assert set(drawn) == set(ways)
    assert sum((drawn[way] - 1000) ** 2 / 1000 for way in ways) < 5 + 5 * 10**0.5  # chi square, five standard errors


def test_the_share_hidden_and_the_mean_span_are_those_that_are_asked_for():
    options = SpanOptions(0.2, 4.0)
    hidden = lengths = 0
    for row in range(200):
        _, noise = random_spans(200, options, noise_of(2, 0, row))
        hidden, lengths = hidden + noise.sum(), lengths + len(noise)
    assert hidden / (200 * 200) == 0.2 and hidden / lengths == 4.0
    first = np.array([random_spans(200, options, noise_of(2, 1, row))[1][0] for row in range(2000)])
    assert abs(first.mean() - 4.0) < 4 * first.std() / 2000**0.5  # of 40 tokens in 10 spans


def test_draws_hang_on_seed_epoch_and_row_alone():
    row = {"input_ids": list(range(100, 180)), "lengths": [50, 30]}
    draw = lambda *key: str(spans()(row, noise_of(*key)))
    assert draw(3, 1, 7) == draw(3, 1, 7)
    assert len({draw(*key) for key in ((3, 1, 7), (4, 1, 7), (3, 2, 7), (3, 1, 8))}) == 4
    held = lambda number: str(spans()(row, held_out_noise(number)))
    assert held(1) == held(1) != held(2)


def test_lengths_of_a_row_do_not_hang_on_what_is_drawn():
    row = {"input_ids": list(range(100, 180)), "lengths": [50, 30]}
    made = [spans()(row, noise_of(0, 0, number)) for number in range(20)]
    assert {(tuple(each["lengths"]), tuple(each["target_lengths"])) for each in made} == {((50 - 8 + 3 + 1, 30 - 4 + 1 + 1), (8 + 3 + 2, 4 + 1 + 2))}
    for each in made:
        targets = [0, *accumulate(each["target_lengths"])]
        for begin, end in zip(targets, targets[1:]):
            assert each["decoder_input_ids"][begin:end] == [START, *each["labels"][begin : end - 1]] and each["labels"][end - 1] == END


def test_a_model_that_says_less_or_more_than_it_was_asked_fills_in_what_it_said():
    sentinels = (99, 98, 97)
    assert filled_in([5, 99, 6, 98, 1], [99, 7, 8], sentinels) == [5, 7, 8, 6, 1]  # nothing of the second span
    assert filled_in([5, 99, 6, 98, 1], [3, 98, 7, 97, 4, 98, 9], sentinels) == [5, 6, 7, 1]  # one out of turn, and again
    assert spans_of([], sentinels) == {} and spans_of([99, 99, 5], sentinels) == {99: []}


def test_sentinels_are_the_tokenizers_own_the_first_spans_first(tokenizer):
    found = sentinel_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(found) == [f"<extra_id_{number}>" for number in range(100)] and found[0] == len(tokenizer) - 1 and found[99] == len(tokenizer) - 100
    made = SpanCorruption.of(tokenizer, SpanOptions(), tokenizer.pad_token_id)
    assert made.puts == Around((), (tokenizer.eos_token_id,)) and made.sentinels == tuple(found)


class Named:
    mask_token_id = eos_token_id = None

    def __init__(self, *names):
        self.names = names

    def get_vocab(self):
        return {name: number for number, name in enumerate(self.names)}

    def convert_ids_to_tokens(self, id):
        return self.names[id]


def test_sentinels_count_up_to_the_first_that_is_missing_with_or_without_sentencepieces_space():
    assert sentinel_ids(Named("a", "<extra_id_1>", "<extra_id_0>", "<extra_id_3>", "x<extra_id_2>")) == [2, 1]
    assert sentinel_ids(Named("▁<extra_id_1>", "▁<extra_id_0>")) == [1, 0]  # as in mT5's vocabulary
    assert sentinel_ids(Named("a")) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((0.0, 3.0), "noise_density must be between 0 and 1, got 0.0"), ((1.0, 3.0), "noise_density must be between 0 and 1, got 1.0"),
        ((-0.1, 3.0), "got -0.1"), ((float("nan"), 3.0), "got nan"), ((0.15, 0.9), "mean_noise_span_length must be at least 1, got 0.9"),
        ((0.15, float("nan")), "got nan"), ((0.15, float("inf")), "got inf"),
    ],
)  # fmt: skip
def test_shares_and_lengths_out_of_range_are_refused(options, says):
    with pytest.raises(UserError, match=says):
        SpanOptions(*options)


def test_tokenizers_without_sentinels_are_refused_with_the_remedy(tokenizer, text_tokenizer):
    with pytest.raises(UserError, match=r"no sentinels \(<extra_id_0>, ...\) to stand for hidden spans \(BART's kind .* `seodang tokenizer --family encoder-decoder`"):
        sentinels_of(text_tokenizer("wordpiece"))  # with a mask token
    with pytest.raises(UserError, match=r"no sentinels \(<extra_id_0>, ...\) to stand for hidden spans: use T5's"):
        SpanCorruption.of(Named("a"), SpanOptions(), 0)
    with pytest.raises(UserError, match=r"no end of text \(eos_token\), with which inputs and targets end"):
        SpanCorruption.of(Named("a", "<extra_id_0>"), SpanOptions(), 0)
    with pytest.raises(UserError, match=r"the sentinel <extra_id_0> \(369\) is beyond the model's vocabulary of 369"):
        SpanCorruption.of(tokenizer, SpanOptions(), 0, vocab_size=369)
