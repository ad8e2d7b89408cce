"""The tasks of an answer's passes: which positions come and go in each, by the law of every way that a canvas can take."""

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest

from seodang.infer import SamplingParams
from seodang.infer.diffusion.canvas import Canvas
from seodang.infer.diffusion.plan import Plan

LENGTH, MASK, SEEDS = 3, 9, 4000


def planned(seed: int, **settings) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """What becomes certain and what a mask in each task; of a count the first open positions."""
    canvas = Canvas.blank(LENGTH, MASK)

    class Sequence:
        request = SimpleNamespace(params=SamplingParams(max_new_tokens=LENGTH, **settings), ends=frozenset())
        position = property(lambda self: (*canvas.open, True).index(True))

    found, sequence = [], Sequence()
    sequence.seed = seed
    for task in Plan(sequence, canvas, None).tasks():
        due = task.due if isinstance(task.due, list) else canvas.open_in(task.block)[: task.due]
        for position in due:
            canvas.put(position, 0, 0.0)
        for position in task.remask:
            canvas.reopen(position, MASK)
        found.append((tuple(due), tuple(sorted(task.remask))))
    assert not any(canvas.open)
    return tuple(found)


def ways(steps: int, cap: float, step: int = 0, certain: frozenset[int] = frozenset()):
    """Every way of D3PM's order with ReMDM-cap's remasking, with its probability; steps in which nothing comes or goes leave no trace."""
    if step == steps:
        yield 1.0, ()
        return
    t, s = 1 - step * 0.999 / steps, 0.0 if step == steps - 1 else 1 - (step + 1) * 0.999 / steps
    again = min(cap, s / (1 - t)) if step else 0.0
    move = (t - s + again * (1 - t)) / t
    published = next((at for at in range(LENGTH) if at not in certain), LENGTH)
    chances = [0.0 if at < published else again if at in certain else move for at in range(LENGTH)]
    for flips in itertools.product([True, False], repeat=LENGTH):
        p = math.prod(chance if flip else 1 - chance for flip, chance in zip(flips, chances))
        if not p:
            continue
        due = tuple(at for at in range(LENGTH) if flips[at] and at not in certain)
        gone = tuple(at for at in range(LENGTH) if flips[at] and at in certain)
        for chance, rest in ways(steps, cap, step + 1, certain - {*gone} | {*due}):
            yield p * chance, (((due, gone),) if due or gone else ()) + rest


@pytest.mark.parametrize("steps, cap", [(3, 1.0), (4, 0.3)])
def test_what_comes_and_goes_with_remasking_has_its_exact_law(steps, cap):
    law = Counter()
    for p, way in ways(steps, cap):
        law[way] += p
    assert sum(law.values()) == pytest.approx(1)
    found = Counter(planned(seed, alg="origin", steps=steps, remask=cap) for seed in range(SEEDS))
    assert found.keys() <= law.keys()
    common = [way for way, p in law.items() if p * SEEDS >= 5]
    terms = [(found[way] - SEEDS * law[way]) ** 2 / (SEEDS * law[way]) for way in common]
    assert len(common) > 5 and abs(sum(terms) - len(terms)) < 4 * math.sqrt(2 * len(terms))


def test_by_count_what_goes_comes_in_the_same_task_and_the_last_takes_nothing_back():
    found = [planned(seed, alg="entropy", remask=1.0) for seed in range(200)]
    for tasks in found:
        assert [len(due) - len(gone) for due, gone in tasks] == [1, 1, 1] and tasks[0][1] == tasks[-1][1] == ()
    assert Counter(tasks[1][1] for tasks in found) == {(): 200}  # the first open position is published at once
    assert planned(0, steps=2) == (((0, 1), ()), ((2,), ()))
