"""The noise by hand, by enumeration, and by what it must not depend on."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch

from seodang.data.packing import pack
from seodang.infer.runners.paradigm import Diffusion
from seodang.train.diffusion.canvas import Canvas
from seodang.train.diffusion.collator import DenoisingCollator, record_of_each_token
from seodang.train.diffusion.objective import DenoisingObjective
from seodang.train.diffusion.order import DRAWN

MASK = 99
OWN, SHIFTED = Diffusion(MASK), Diffusion(MASK, shift=1)
CANVAS = Canvas(filling=0, ends=(2, 0), multiple=4)
PLAIN = DenoisingObjective(max_weight=0, crop=False)


def collator(objective=PLAIN, diffusion=OWN, **settings):
    return DenoisingCollator(objective, diffusion, CANVAS, **settings)


def row(answer, prompt=2, place=0, epoch=0):
    ids = [*range(60, 60 + prompt), *answer]
    return {"input_ids": ids, "labels": [-100] * prompt + list(answer), DRAWN: (epoch, place)}


def questions(batch):
    """Each record of a batch laid end to end, as its lists."""
    lengths = batch["cu_seq_lens_q"].diff().tolist()
    parts = zip(*(batch[name][0].split(lengths) for name in ("input_ids", "labels", "targets", "weights")), strict=True)
    return [tuple(part.tolist() for part in each) for each in parts]


def masked(ids):
    return [id == MASK for id in ids]


def test_masks_stand_in_the_answer_alone_and_are_asked_for_where_they_stand():
    for place in range(20):
        [(ids, labels, targets, weights)] = questions(collator(strata=20)([row([5, 6, 7, 2], place=place)]))
        assert ids[:2] == [60, 61] and labels == [-100, -100, 5, 6, 7, 2]
        assert all(id in (MASK, label) for id, label in zip(ids[2:], labels[2:], strict=True))
        assert targets == [label if hidden else -100 for label, hidden in zip(labels, masked(ids), strict=True)]
        assert [weight > 0 for weight in weights] == masked(ids)


def test_shifted_they_are_asked_for_one_place_before():
    for place in range(5):
        [(ids, labels, targets, weights)], [(same, _, own, at_own)] = (
            questions(collator(diffusion=which, strata=5)([row([5, 6, 7, 2], place=place)])) for which in (SHIFTED, OWN)
        )
        assert ids == same
        assert targets == [*own[1:], -100] and weights == [*at_own[1:], 0.0]


def test_a_weight_is_one_over_the_share_of_masks_and_no_more_than_its_bound():
    times = []
    for place in range(8):
        [(ids, _, _, weights)] = questions(collator(strata=8)([row(range(10, 30), place=place)]))
        [(_, _, _, bounded)] = questions(collator(replace(PLAIN, max_weight=2.0), strata=8)([row(range(10, 30), place=place)]))
        if found := set(weights) - {0.0}:
            assert len(found) == 1 and set(bounded) - {0.0} == {min(*found, 2.0)}
            times.append(1 / found.pop())
    assert sorted(int(8 * time) for time in times) == list(range(8 - len(times), 8))  # one in each stratum, the lowest without a mask perhaps
    assert len(times) >= 7


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_complementary_masks_cover_each_token_once(schedule):
    made = collator(replace(PLAIN, complementary=True, schedule=schedule), strata=16)
    for place in range(16):
        (first, labels, _, weights), (second, same, _, others) = questions(made([row(range(10, 22), place=place)]))
        assert [a != b for a, b in zip(masked(first), masked(second), strict=True)] == [False] * 2 + [True] * 12
        assert labels == same
        if schedule == "linear" and any(masked(first)) and any(masked(second)):
            assert 1 / max(weights) + 1 / max(others) == pytest.approx(1)


def test_cart_weighs_by_the_context_that_is_left():
    made = collator(replace(PLAIN, weighting="cart", cart_p=0.5), strata=4)
    [(ids, _, _, weights)] = questions(made([row([5, 6], prompt=1, place=3)]))
    by_hand = {(MASK, MASK): [0, 0.25, 0.125], (5, MASK): [0, 0, 0.375], (MASK, 6): [0, 0.5, 0], (5, 6): [0, 0, 0]}
    assert weights == by_hand[tuple(ids[1:])]
    uniform = questions(collator(replace(PLAIN, weighting="uniform"), strata=4)([row([5, 6], prompt=1, place=3)]))[0]
    assert uniform[0] == ids and [weight == 1 for weight in uniform[3]] == masked(ids)


class Table:
    """A denoiser over three tokens of three values: a distribution for every partial mask, as a table of random numbers."""

    def __init__(self):
        draw = random.Random(0)
        self.probs = {}
        for context in itertools.product((5, 6, 7, MASK), repeat=3):
            for place in range(3):
                weights = [draw.random() + 0.1 for _ in range(3)]
                self.probs[context, place] = {id: weight / sum(weights) for id, weight in zip((5, 6, 7), weights, strict=True)}

    def loss(self, context, answer):
        """The cross entropies of the masked tokens."""
        return [-math.log(self.probs[tuple(context), place][id]) for place, id in enumerate(answer) if context[place] == MASK]

    def bound(self, answer):
        """The integral over t of 1/t t^k (1-t)^(n-k), which is (k-1)! (n-k)! / n!, times the loss, over all masks of k of n tokens."""
        total = 0.0
        for hidden in itertools.product((False, True), repeat=3):
            if k := sum(hidden):
                context = [MASK if each else id for each, id in zip(hidden, answer, strict=True)]
                total += math.factorial(k - 1) * math.factorial(3 - k) / 6 * sum(self.loss(context, answer))
        return total


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_weighted_loss_is_an_unbiased_estimate_of_the_bound_that_enumeration_gives(schedule, complementary):
    table, answer = Table(), [5, 7, 6]
    made, estimates = collator(replace(PLAIN, schedule=schedule, complementary=complementary), strata=8), []
    for start in range(0, 3200, 8):
        batch = made([row(answer, prompt=1, place=start + i) for i in range(8)])
        found = questions(batch)
        loss = sum(sum(w * ce for w, ce in zip(filter(None, weights), table.loss(ids[1:], answer), strict=True)) for ids, _, _, weights in found)
        estimates.append(loss / len(found))
    mean = sum(estimates) / len(estimates)
    error = math.sqrt(sum((each - mean) ** 2 for each in estimates)) / len(estimates)
    assert error < 0.05 * table.bound(answer)
    assert abs(mean - table.bound(answer)) < 3 * error


def test_the_noise_depends_on_when_a_row_was_drawn_and_on_nothing_else():
    rows = [row([10 + place, 20, 21, 22, 2], place=place) for place in range(8)]
    made = collator(strata=8, seed=3)
    whole = questions(made(rows))
    assert questions(made(rows[:3])) + questions(made(rows[3:])) == whole
    assert questions(made(rows[::-1])) == whole[::-1]
    assert questions(collator(strata=8, seed=4)(rows)) != whole
    assert questions(made([row(each["labels"][2:], place=place, epoch=1) for place, each in enumerate(rows)])) != whole


def test_records_of_a_packed_row_have_masks_of_their_own_and_stay_records():
    plain = [{name: values for name, values in row([10, 11, 12, 13, 2], prompt=prompt).items() if name != DRAWN} for prompt in (1, 2, 3)]
    [packed] = pack(plain, 64)
    batch = collator()([packed])
    assert batch["cu_seq_lens_q"].diff().tolist() == packed["lengths"] == [8, 7, 6]
    assert batch["causal_lengths"].tolist() == [0, 0, 0]
    assert collator(diffusion=Diffusion(MASK, attention="prompt_causal"))([packed])["causal_lengths"].tolist() == [3, 2, 1]
    assert record_of_each_token(batch)[0].tolist() == [0] * 8 + [1] * 7 + [2] * 6


def test_what_a_row_is_filled_up_with_is_cropped_to_any_length():
    filled = row([5, 6, 7, 2, 0, 0, 0, 0])
    lengths = [len(questions(collator(replace(PLAIN, crop=True), strata=4)([{**filled, DRAWN: (0, place)}]))[0][0]) for place in range(100)]
    assert sorted(set(lengths)) == [6, 7, 8, 9, 10]
    assert min(map(lengths.count, range(6, 11))) >= 10


def test_a_co_loss_asks_the_clean_record_from_left_to_right():
    made = collator(replace(PLAIN, co_loss=0.5), strata=2)
    batch = made([row([5, 6, 2], place=1)])
    noisy, clean = questions(batch)
    assert noisy == questions(collator(strata=2)([row([5, 6, 2], place=1)]))[0]
    assert clean == ([60, 61, 5, 6, 2], [-100] * 5, [-100, 5, 6, 2, -100], [0, 0.5, 0.5, 0.5, 0])
    assert batch["causal_lengths"].tolist() == [0, 5]
    twice = collator(replace(PLAIN, co_loss=0.5, complementary=True), strata=2)([row([5, 6, 2], place=1)])
    assert questions(twice)[2][3] == [0, 1, 1, 1, 0]  # as its tokens are counted twice


def test_held_out_rows_are_masked_alike_at_each_evaluation_and_each_at_several_times():
    made, other = (collator(replace(PLAIN, eval_draws=5, co_loss=2.0), seed=seed, strata=seed) for seed in (1, 2))
    rows = [row(range(10, 40), place=7), row(range(40, 58))]
    batch = questions(made.held_out(rows, [3, 4]))
    assert batch == questions(other.held_out(rows, [3, 4])) == questions(made.held_out(rows[:1], [3])) + questions(made.held_out(rows[1:], [4]))
    assert made.copies() == 6 and len(batch) == 12
    assert batch[5][0] == rows[0]["input_ids"] and max(batch[5][3]) == 1.0
    assert sorted(int(5 / max(weights)) for _, _, _, weights in batch[:5]) == [0, 1, 2, 3, 4]


def test_padded_rows_ask_the_same():
    rows = [row([5, 6, 7, 2], place=0), row([8, 2], place=1)]
    ended, padded = (collator(strata=2, end_to_end=end_to_end)(rows) for end_to_end in (True, False))
    assert padded["attention_mask"].tolist() == [[1] * 6, [1] * 4 + [0] * 2]
    for index, each in enumerate(questions(ended)):
        for name, values in zip(("input_ids", "labels", "targets", "weights"), each, strict=True):
            assert padded[name][index, : len(values)].tolist() == values
    assert padded["weights"][1, 4:].tolist() == [0, 0] and "causal_lengths" not in padded
    assert torch.equal(record_of_each_token(padded), torch.tensor([[0] * 6, [1] * 6]))
