"""Shards given to workers: each is taken once, whoever is lost; what is lost again and again is told, and nothing waits for ever."""

import random
from collections import Counter

import pytest
from many_pools import InProcess

from seodang.data.errors import UserError
from seodang.recipes.many.dispatch import TRIES, Dispatcher, Heard


class Squares:
    said = "opened"

    def square(self, number: int) -> int:
        if number == 13:
            raise UserError("no thirteen")
        return number * number


def run(pool: InProcess, tasks: list[int], workers: int = 3) -> tuple[dict, Counter, dict]:
    """What was taken, how often, and what was lost."""
    found, times, said = {}, Counter(), []

    def taken(task: int, value: int) -> None:
        found[task] = value
        times[task] += 1

    lost = Dispatcher(pool, workers, said.append).run("square", tasks, lambda task: (task,), taken)
    assert said in ([], ["opened"])  # of the first alone
    return found, times, lost


@pytest.mark.parametrize("seed", range(20))
def test_every_task_is_taken_once_whoever_is_lost(seed):
    draw = random.Random(seed)
    losses = Counter()

    def dies(call: str, given: tuple) -> str | None:
        if draw.random() < 0.4 and losses[call, given] < TRIES - 1:
            losses[call, given] += 1
            return "killed"
        return None

    found, times, lost = run(InProcess(Squares, 3, dies, seed), [*range(10)])
    assert found == {number: number * number for number in range(10)} and set(times.values()) == {1} and not lost


def test_a_task_that_kills_its_workers_is_given_up_after_three_and_the_others_are_done():
    pool = InProcess(Squares, 2, lambda call, given: "segmentation fault" if given == (4,) else None)
    found, times, lost = run(pool, [*range(8)], workers=2)
    assert sorted(found) == [0, 1, 2, 3, 5, 6, 7] and lost == {4: "segmentation fault"}
    assert [given for _, call, given in pool.calls if call == "square"].count((4,)) == TRIES
    assert [call for _, call, _ in pool.calls].count("open") <= 2 + TRIES  # a place is filled again where there is something to do


def test_workers_that_cannot_begin_are_an_error_after_three_tries_of_each_place():
    pool = InProcess(Squares, 2, lambda call, given: "no memory" if call == "open" else None)
    with pytest.raises(UserError, match="no worker can begin: no memory"):
        run(pool, [*range(8)], workers=2)
    assert len(pool.calls) == 2 * TRIES


def test_one_place_that_cannot_be_filled_leaves_the_work_to_the_others():
    def dies(call: str, given: tuple) -> str | None:
        return "broken machine" if call == "open" and pool.calls[-1][0] == 1 else None

    pool = InProcess(Squares, 2, dies)
    found, _, lost = run(pool, [*range(8)], workers=2)
    assert len(found) == 8 and not lost
    assert [worker for worker, call, _ in pool.calls if call == "open"].count(1) <= TRIES


def test_a_worker_without_a_machine_is_not_tried_again():
    class Full(InProcess):
        def wait(self) -> list[Heard]:
            return [Heard(worker, lost="no room", placeless=True) for worker, (call, _) in [*self._asked.items()] if self._asked.pop(worker) and call == "open"]

    with pytest.raises(UserError, match="no room"):
        run(Full(Squares, 2), [1, 2])


def test_a_worker_lost_while_it_has_nothing_to_do_is_replaced():
    class Stopped(InProcess):
        stopped: list[int] = []

        def wait(self) -> list[Heard]:
            heard = super().wait()
            for worker in self.stopped:
                del self._there[worker]
            gone, self.stopped = [Heard(worker, lost="stopped") for worker in self.stopped], []
            return heard + gone

    pool, found = Stopped(Squares, 2), {}
    dispatcher = Dispatcher(pool, 2)
    dispatcher.run("square", [2, 3], lambda task: (task,), found.__setitem__)
    pool.stopped = [dispatcher._idle[0]]  # which is not asked by a run of one task
    assert not dispatcher.run("square", [4], lambda task: (task,), found.__setitem__)
    assert not dispatcher.run("square", [5, 6], lambda task: (task,), found.__setitem__)
    assert found == {number: number * number for number in (2, 3, 4, 5, 6)}
    assert [call for call, _ in [*(each[1:] for each in pool.calls), *pool._asked.values()]].count("open") == 3


def test_what_a_worker_refuses_ends_the_run():
    with pytest.raises(UserError, match="no thirteen"):
        run(InProcess(Squares, 2), [1, 13, 2])


def test_no_more_workers_are_opened_than_there_is_work_for():
    pool = InProcess(Squares, 5)
    run(pool, [1, 2], workers=5)
    assert [call for _, call, _ in pool.calls].count("open") == 2
