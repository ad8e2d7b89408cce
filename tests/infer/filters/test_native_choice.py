"""Filters and choice in one native call: what the chain of filters leaves and torch chooses of it, row by row."""

import math
import random

import pytest
import torch

from seodang.data.errors import UserError
from seodang.infer.engine.params import SamplingParams
from seodang.infer.filters.pipeline import Filters
from seodang.infer.requests import rng
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.requests.sequence import TokenSequence
from seodang.infer.runners.native import scores as native
from seodang.infer.strategies.sampling import chosen, keys_of

SETTINGS = {
    "temperature": [0.3, 0.8, 1.0, 1.7], "top_k": [1, 2, 7, 50, 255], "top_p": [0.05, 0.5, 0.9, 1.0], "min_p": [0.0, 0.1, 1.0],
    "repetition_penalty": [0.7, 1.3], "frequency_penalty": [-0.4, 0.3], "presence_penalty": [-0.5, 0.9],
}  # fmt: skip
PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")


class Only:
    """A constraint that allows some ids alone, and says so in as few bytes as it takes."""

    name, must_end = "only", False

    def __init__(self, ids, error: UserError | None = None):
        self.ids, self.error = sorted(ids), error

    def bits(self, vocab: int) -> bytes:
        if self.error is not None:
            raise self.error
        number = sum(1 << id for id in self.ids if id < vocab)
        return number.to_bytes(-(-number.bit_length() // 8), "little")

    def mask(self, sequence, scores):
        if self.error is not None:
            raise self.error
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.ids] = scores[:, self.ids]
        return kept

    def accept(self, id: int) -> None: ...


def row(prompt, answer=(), seed=0, known_ids=None, constraint=None, **settings) -> TokenSequence:
    request = Request(0, list(prompt), SamplingParams(**settings), seed, frozenset([0]), lambda: None, known_ids=known_ids)
    sequence = TokenSequence(Generation(request), None, 0, [*prompt, *answer], None)
    sequence.constraints = [] if constraint is None else [constraint]
    return sequence


def some_row(draw: random.Random, vocab: int, **more) -> TokenSequence:
    names = draw.sample(PENALTIES, draw.randint(0, 3)) + draw.choice([[], ["temperature"], ["top_k"], ["temperature", "top_k"], ["top_k", "top_p", "min_p"], [*SETTINGS][:4]])
    ids = draw.choices(range(vocab), k=3) * 2 + draw.choices(range(vocab), k=draw.randint(0, 20))
    draw.shuffle(ids)
    cut = draw.randint(1, len(ids))
    settings = {name: draw.choice(SETTINGS[name]) for name in names}
    constraint = Only(draw.sample(range(vocab), max(vocab // 3, 1))) if draw.random() < 0.3 else None
    return row(ids[:cut], ids[cut:], seed=draw.randrange(1000), constraint=constraint, **settings, **more)


def some_logits(rows: int, vocab: int, kind: str, seed: int) -> torch.Tensor:
    scores = 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    if kind == "level":  # as a model of bfloat16 has them
        return scores.bfloat16().float()
    if kind == "dropped":
        scores[torch.rand(scores.shape, generator=torch.Generator().manual_seed(seed + 1)) < 0.5] = -torch.inf
        scores[:, -1] = 1.0
    return scores


def by_torch(sequences: list[TokenSequence], scores: torch.Tensor, monkeypatch) -> tuple[list[int], torch.Tensor]:
    """What the chain of filters and torch's choice make of it; asserts that no filter fails."""
    with monkeypatch.context() as without:
        without.setattr(native, "OFF", True)
        filters = Filters(sequences)
        assert filters.chosen(scores) is None
        kept, errors = filters.each(scores)
        assert not errors
        ids, logprobs = rng.choose(kept, keys_of(sequences), filters.few)
    return ids.tolist(), logprobs


@pytest.mark.parametrize("kind", ["", "level", "dropped"])
@pytest.mark.parametrize("vocab", [7, 32, 300, 4099])
def test_the_choice_is_that_of_the_filters_one_by_one(vocab, kind, monkeypatch):
    draw, native_rows, rows, drawn = random.Random(f"{vocab} {kind}"), 0, 0, set()
    for turn in range(40):
        sequences = [some_row(draw, vocab) for _ in range(draw.randint(1, 4))]
        scores = some_logits(len(sequences), vocab, kind, turn)
        if kind == "dropped":
            for each in sequences:
                each.constraints = []  # which could leave nothing
        before = scores.clone()
        ids, logprobs = Filters(sequences).chosen(scores)
        wanted, expected = by_torch(sequences, scores, monkeypatch)
        done = [i for i, id in enumerate(ids) if id >= 0]  # of others too many scores are level
        assert [ids[i] for i in done] == [wanted[i] for i in done], turn
        assert [logprobs[i] for i in done] == pytest.approx(expected[done].tolist(), rel=1e-5, abs=2e-6), turn
        assert torch.equal(scores, before)
        native_rows, rows, drawn = native_rows + len(done), rows + len(ids), drawn | set(ids)
    assert native_rows > 0.9 * rows > 60 and len(drawn) > min(vocab // 2, 25)


@pytest.mark.parametrize("march, needs", [("haswell", "avx2"), ("x86-64", "sse4_1")])
def test_the_same_in_a_library_for_other_vectors(march, needs, other_build, monkeypatch):
    draw = random.Random(march)
    sequences = [some_row(draw, 1001) for _ in range(24)]
    scores = some_logits(24, 1001, "level", 5)
    here = Filters(sequences).chosen(scores)
    other_build(march, needs)
    there = Filters(sequences).chosen(scores)
    assert here[0] == there[0] == by_torch(sequences, scores, monkeypatch)[0]
    assert there[1] == pytest.approx(here[1], rel=1e-5, abs=2e-6)


def test_a_row_is_the_same_to_the_bit_whatever_stands_beside_it():
    draw = random.Random(1)
    sequences, scores = [some_row(draw, 777) for _ in range(12)], some_logits(12, 777, "level", 3)
    ids, logprobs = Filters(sequences).chosen(scores)
    for i, each in enumerate(sequences):
        assert Filters([each]).chosen(scores[i : i + 1]) == ([ids[i]], [logprobs[i]])


def test_hand_made_rows():
    scores = torch.tensor([[1.0, 2.0, 2.0, -4.0, 0.0]])
    assert Filters([row([0])]).chosen(scores) == ([1], [pytest.approx(2 - math.log(math.e + 2 * math.e**2 + math.e**-4 + 1))])  # the first of the likeliest
    # 1 is halved and 3 doubled; then 2 is alone at the top, and of top_k=2 with 0 it has e / (1 + e)
    ids, logprobs = Filters([row([1, 3, 1], repetition_penalty=2.0, temperature=1.0, top_k=1, seed=4)]).chosen(scores)
    assert ids == [2] and logprobs == [0.0]
    # of the answer 2, 2, 1 the prompt's 1 does not count: 2 - 2 * 0.5 - 0.25, and 2 - 0.5 - 0.25
    ids, logprobs = Filters([row([1, 1], [2, 2, 1], frequency_penalty=0.5, presence_penalty=0.25)]).chosen(scores)
    assert ids == [1] and logprobs == [pytest.approx(1.25 - math.log(math.e + math.e**1.25 + math.e**0.75 + math.e**-4 + 1))]
    assert Filters([row([0], constraint=Only([3]))]).chosen(scores) == ([3], [0.0])


def test_ids_that_the_tokenizer_does_not_have_are_never_chosen(monkeypatch):
    scores = some_logits(2, 100, "", 0)
    scores[:, 90:] = 50.0
    sequences = [row([1], known_ids=90), row([1], known_ids=90, temperature=1.0, top_k=5)]
    ids, logprobs = Filters(sequences).chosen(scores)
    wanted, expected = by_torch(sequences, scores, monkeypatch)
    assert ids == wanted and max(ids) < 90 and logprobs == pytest.approx(expected.tolist(), rel=1e-5)


def test_what_it_does_not_know_is_left_to_the_filters_and_the_others_stay_what_they_are(monkeypatch):
    unknown = [dict(temperature=0.9, typical_p=0.5), dict(temperature=0.8, top_p=0.7), dict(no_repeat_ngram_size=1), dict(temperature=0.5, top_k=9, filter_order=("top_k", "temperature"))]
    sequences = [row([1, 2], seed=3, temperature=0.7, top_k=20), *(row([1, 2], seed=3, **each) for each in unknown), row([4])]
    scores = some_logits(len(sequences), 200, "", 9)
    filters = Filters(sequences)
    ids, logprobs = filters.chosen(scores)
    assert [id >= 0 for id in ids] == [True, *[False] * len(unknown), True]
    merged, values = chosen(filters, scores)
    assert merged == by_torch(sequences, scores, monkeypatch)[0]
    assert (merged[0], merged[-1], values[0], values[-1]) == (ids[0], ids[-1], logprobs[0], logprobs[-1])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_no_distribution_is_left_to_torch(bad):
    scores = some_logits(3, 65, "", 2)
    alone = Filters([row([1])]).chosen(scores[:1])
    scores[1, 64 if bad > 0 or math.isnan(bad) else slice(None)] = bad
    ids, logprobs = Filters([row([1]), row([1], temperature=1.0, top_k=3), row([1], repetition_penalty=1.1)]).chosen(scores)
    assert ids[1] == -1 and ids[2] >= 0 and (ids[0], logprobs[0]) == (alone[0][0], alone[1][0])


def test_more_level_scores_than_a_shortlist_holds_are_left_to_torch_and_as_many_as_it_holds_are_not(monkeypatch):
    scores = torch.zeros(1, 1000)
    scores[0, 300:] = -1.0
    sequences = [row([1], seed=seed, top_k=5, temperature=0.5) for seed in range(20)]
    assert Filters(sequences[:1]).chosen(scores)[0] == [-1]
    scores[0, 256:] = -1.0
    every = scores.expand(20, -1).contiguous()
    ids, logprobs = Filters(sequences).chosen(every)
    assert ids == by_torch(sequences, every, monkeypatch)[0] and len(set(ids)) > 10
    assert logprobs == pytest.approx([-math.log(256)] * 20)


def test_a_constraint_that_fails_or_leaves_nothing_fails_its_request_alone():
    scores = some_logits(3, 50, "", 4)
    sequences = [row([1], constraint=Only([3], UserError("only: gave up"))), row([1], constraint=Only([])), row([1], constraint=Only([7, 9]))]
    filters = Filters(sequences)
    assert [id >= 0 for id in filters.chosen(scores)[0]] == [False, False, True]
    ids, _ = chosen(filters, scores)
    assert [each.generation.error is None for each in sequences] == [False, False, True]
    assert str(sequences[0].generation.error) == "only: gave up" and "left no token" in str(sequences[1].generation.error)
    assert ids[2] == (7 if scores[2, 7] > scores[2, 9] else 9)


@pytest.mark.parametrize("vocab", [31, 4096, 5000])
@pytest.mark.parametrize("sharp", [0.1, 3.0, 30.0])
def test_a_draw_without_filters_is_that_of_torch(vocab, sharp, monkeypatch):
    scores = sharp * torch.randn(150, vocab, generator=torch.Generator().manual_seed(vocab))
    scores[::9, 3:] = -torch.inf
    keys = [None if i % 10 == 4 else rng.key(7, i) for i in range(150)]
    ids, logprobs = rng.choose(scores, keys)
    monkeypatch.setattr(native, "OFF", True)
    wanted, expected = rng.choose(scores, keys)
    assert torch.equal(ids, wanted)
    torch.testing.assert_close(logprobs, expected, rtol=1e-5, atol=2e-6)


def test_a_library_that_computes_something_else_is_not_used(monkeypatch):
    scores = some_logits(1, 40, "", 0)
    assert Filters([row([1])]).chosen(scores) is not None

    class Wrong:
        @staticmethod
        def seodang_choose(asked, count, vocab, room, ids, logprobs):
            ids[:] = [0] * count

    monkeypatch.setattr(native, "loaded", Wrong)
    assert Filters([row([1])]).chosen(scores) is None
    monkeypatch.setattr(native, "loaded", lambda: "no C compiler is there")
    assert Filters([row([1])]).chosen(scores) is None
