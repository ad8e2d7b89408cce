"""Prompt lookup: what is copied from where, and how long a copy is worth its price."""

from seodang.infer.strategies.lookup import BREAK, FIRST, FURTHER, NgramIndex, Trust


def index(longest: int, *ids: int) -> NgramIndex:
    made = NgramIndex(longest)
    made.extend(ids)
    return made


def test_the_longest_run_is_followed_not_the_latest_place_of_a_shorter_one():
    assert index(2, 1, 2, 3, 9, 2, 4, 1, 2).copied(3) == (2, [3, 9, 2])
    assert index(1, 1, 2, 3, 9, 2, 4, 1, 2).copied(3) == (1, [4, 1, 2])


def test_the_latest_of_several_places_is_followed():
    assert index(2, 1, 2, 3, 1, 2, 4, 1, 2).copied(1) == (2, [4])


def test_a_copy_that_reaches_the_end_goes_round():
    assert index(3, 7, 1, 2, 1, 2).copied(5) == (2, [1, 2, 1, 2, 1])
    assert index(2, 5, 5).copied(4) == (1, [5, 5, 5, 5])


def test_nothing_is_copied_where_nothing_was_said_twice():
    assert index(3, 1, 2, 3).copied(4) == (0, [])
    assert index(3).copied(4) == (0, [])


def test_no_copy_runs_from_a_source_into_its_answer():
    assert index(2, 4, 5, 6, BREAK, 0, 4, 5).copied(9) == (2, [6])


def test_growing_by_one_gives_what_a_scan_of_all_ids_gives():
    ids = [(i * i) % 7 for i in range(60)]
    grown = NgramIndex(3)
    for n, id in enumerate(ids, 1):
        grown.extend([id])
        said = ids[:n]
        expected = (0, [])
        for size in (3, 2, 1):
            places = [end for end in range(size, n) if said[end - size : end] == said[n - size :]]
            if size < n and places:
                whole = said + []
                for _ in range(4):
                    whole.append(whole[len(whole) - n + places[-1]])
                expected = (size, whole[places[-1] : places[-1] + 4])
                break
        assert grown.copied(4) == expected


def test_a_copy_is_as_long_as_brings_the_most_tokens_in_the_time():
    trust = Trust()
    trust._rates = {1: 0.9, 2: 0.5, 3: 0.1}

    def speed(rate: float, guessed: int) -> float:
        return sum(rate**i for i in range(guessed + 1)) / (1 + FIRST + FURTHER * (guessed - 1)) if guessed else 1.0

    for n, rate in trust._rates.items():
        assert trust.length(n, 10) == max(range(11), key=lambda guessed: speed(rate, guessed))
    assert trust.length(3, 10) == 0  # text that repeats nothing costs nothing


def test_trust_moves_a_quarter_of_the_way_with_every_token_judged():
    trust = Trust()
    trust._rates = {2: 0.4}
    trust.learn(2, [5, 6, 7, 8], [5, 6, 9, 8])  # right, right, wrong, and what follows says nothing
    assert abs(trust._rates[2] - (((0.4 * 0.75 + 0.25) * 0.75 + 0.25) * 0.75)) < 1e-12
