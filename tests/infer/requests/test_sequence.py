"""A hypothesis: what copies of it share, and what they do not."""

from seodang.infer.engine.params import SamplingParams
from seodang.infer.requests.generation import Generation
from seodang.infer.requests.request import Request
from seodang.infer.requests.sequence import TokenSequence


class Text:
    stopped = False

    def push(self, id: int, judged: bool = True) -> str:
        return chr(id)

    def fork(self) -> "Text":
        return self


class Slots:
    """A runner whose slots have all read a prompt of three, and which of them were copied from where to where."""

    def __init__(self):
        self.allocated, self.copied = 0, []

    def allocate(self, source_ids=()) -> int:
        self.allocated += 1
        return self.allocated - 1

    def length(self, slot: int) -> int:
        return 3

    def copy(self, source: int, target: int, first: int) -> None:
        self.copied.append((source, target, first))


class Counted:
    """A filter's state that counts its forks."""

    forks = 0

    def accept(self, id: int) -> None:
        pass

    def fork(self) -> "Counted":
        Counted.forks += 1
        return Counted()


def opened(count: int) -> list[TokenSequence]:
    runner, request = Slots(), Request(0, [65, 66, 67], SamplingParams(max_new_tokens=9), 0, frozenset(), Text)
    return [TokenSequence.open(Generation(request), runner) for _ in range(count)]


def test_a_sequence_takes_over_the_copy_that_it_adopts_and_copies_of_the_cache_what_they_do_not_share():
    row, other = opened(2)
    other.states["counted"] = Counted()
    row.commit(68, -1.0)
    other.commit(69, -2.0)
    Counted.forks = 0
    child = other.copy()
    child.commit(70, -3.0)
    row.adopt(child)
    assert (row.ids, row.logprobs, row.pieces) == ([65, 66, 67, 69, 70], [-2.0, -3.0], ["E", "F"])
    assert row.ids is child.ids and Counted.forks == 1  # copied once, for the candidate
    assert other.ids == [65, 66, 67, 69] and row.runner.copied == [(1, 0, 3)]


def test_histories_of_copies_go_their_own_ways():
    [row] = opened(1)
    row.commit(68, 0.0)
    assert row.history().tolist() == [65, 66, 67, 68]  # with room behind it
    left, right = row.copy(), row.copy()
    for each, id in ((left, 1), (row, 2), (right, 3)):
        each.commit(id, 0.0)
        each.history()
    late = left.copy()
    left.commit(4, 0.0)
    late.commit(5, 0.0)
    found = [each.history().tolist()[4:] for each in (row, left, right, late)]
    assert found == [[2], [1, 4], [3], [1, 5]]
    assert all(each.history().tolist()[:4] == [65, 66, 67, 68] for each in (row, left, right, late))
