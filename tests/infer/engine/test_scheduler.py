"""Who comes in and when, counted by hand: no model runs."""

import pytest

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.engine.scheduler import Scheduler
from seodang.infer.requests.generation import Generation, Stage
from seodang.infer.requests.request import Request
from seodang.infer.runners.architecture import Capabilities

OTHER = object()  # the runner of a further model


class Runner:
    """Gives slots back, and does nothing else."""

    def __init__(self):
        self.released = []
        self.capabilities = Capabilities()

    def release(self, slots):
        self.released += slots


@pytest.fixture
def runner():
    return Runner()


def generation(index: int = 0, prompt: int = 3) -> Generation:
    """A request with a prompt of so many tokens."""
    return Generation(Request(index, [5] * prompt, SamplingParams(), 0, frozenset(), lambda: None))


def queued(runner, widths: list[int], max_slots: int, prompt: int = 3) -> tuple[Scheduler, list[Generation]]:
    """A scheduler with a waiting request for each width."""
    scheduler, waiting = Scheduler(runner, max_slots), [generation(i, prompt) for i in range(len(widths))]
    for each, width in zip(waiting, widths):
        scheduler.submit(each, width)
    return scheduler, waiting


def admitted(scheduler: Scheduler, positions: int = 10_000) -> list[int]:
    """The indices of all that come in now, where a pass takes so many positions of prompts."""
    return [each.request.index for each in iter(lambda: scheduler.admit(positions=positions), None)]


def hold(runner, each: Generation, *slots: int) -> None:
    for slot in slots:
        each.hold_slot(runner, slot)


def step(scheduler: Scheduler, *ran: Generation) -> None:
    """The end of a step whose pass has run these requests."""
    scheduler.prompts_were_run(ran)
    scheduler.end_step()


def test_requests_come_in_in_order_while_their_slots_fit(runner):
    scheduler, (a, b, c, d) = queued(runner, [3, 4, 2, 1], max_slots=8)
    assert admitted(scheduler) == [0, 1]  # 3 + 4; two more would make 9, and the last one waits its turn
    assert [each.stage for each in (a, b, c, d)] == [Stage.PREFILLING] * 2 + [Stage.WAITING] * 2
    assert a.started is not None and c.started is None
    assert list(scheduler.waiting) == [c, d]


def test_slots_are_reserved_until_the_step_of_the_prompt_is_over(runner):
    scheduler, (a, b) = queued(runner, [4, 5], max_slots=8)
    assert admitted(scheduler) == [0]
    hold(runner, a, 0)  # its prompt alone
    assert scheduler.slots_taken(a) == 4 and admitted(scheduler) == []
    scheduler.prompts_were_run([a])
    assert a.stage is Stage.RUNNING and admitted(scheduler) == []  # it may still fork in this step
    hold(runner, a, 1, 2)
    scheduler.end_step()
    assert scheduler.slots_taken(a) == 3 and admitted(scheduler) == [1]  # 3 + 5


def test_slots_that_a_request_gives_back_are_there_for_the_next(runner):
    scheduler, (a, b) = queued(runner, [3, 2], max_slots=4)
    admitted(scheduler)
    hold(runner, a, 0, 1, 2)
    step(scheduler, a)
    assert admitted(scheduler) == []  # 3 + 2
    a.release_slot(runner, 1)
    assert runner.released == [1] and admitted(scheduler) == [1]


def test_more_slots_than_were_reserved_count_too_and_those_of_other_models_do_not(runner):
    scheduler, (a, b) = queued(runner, [1, 1], max_slots=3)
    admitted(scheduler)
    hold(runner, a, 0, 1)
    hold(OTHER, a, 0, 1, 2, 3)
    assert scheduler.slots_taken(a) == 2 and scheduler.slots_taken(b) == 1


def test_a_request_wider_than_the_room_comes_in_alone(runner):
    scheduler, (a, b, c) = queued(runner, [1, 9, 1], max_slots=4)
    assert admitted(scheduler) == [0]
    hold(runner, a, 0)
    step(scheduler, a)
    assert admitted(scheduler) == []
    a.stage = Stage.DONE
    a.release_all_slots()
    step(scheduler)
    assert admitted(scheduler) == [1]  # and the third waits: 9 are taken
    assert scheduler.slots_taken(b) == 9


@pytest.mark.parametrize("prompt, expected", [(25, [0, 1]), (26, [0]), (60, [0])])
def test_prompts_join_a_pass_up_to_so_many_positions(runner, prompt, expected):
    runner.capabilities = Capabilities(parts=False)
    scheduler, waiting = queued(runner, [1] * 3, 64, prompt)  # 2 * 25 fit, 2 * 26 do not, and one of 60 that cannot be parted comes in alone
    assert admitted(scheduler, 50) == expected
    scheduler.prompts_were_run(waiting[: len(expected)])  # they cost one position a step from now on
    assert admitted(scheduler, 50) == [at + len(expected) for at in expected if at + len(expected) < 3]


def test_a_prompt_that_goes_by_parts_waits_for_no_other_and_keeps_none_waiting(runner):
    scheduler, (a, b, c) = queued(runner, [1] * 3, 64, prompt=60)
    for each in (a, b, c):
        assert scheduler.admit(positions=50) is each
        each.by_parts = True
    scheduler.submit(last := generation(3, prompt=50), 1)
    assert scheduler.admit(positions=50) is last


def test_what_is_reserved_for_a_request_that_is_done_or_failed_is_free_at_once(runner):
    scheduler, (a, b) = queued(runner, [4, 4], max_slots=4)
    admitted(scheduler)
    hold(runner, a, 0)
    a.stage = Stage.DONE
    assert scheduler.slots_taken(a) == 1  # what it still holds
    a.release_all_slots()
    assert admitted(scheduler) == [1]
    scheduler.end_step()
    assert scheduler.admitted == [b]


def test_a_request_that_runs_already_is_counted_by_what_it_holds(runner):
    scheduler, (a,) = queued(runner, [2], max_slots=3)
    callers = generation(7)
    hold(runner, callers, 0, 1)
    scheduler.track(callers)
    scheduler.track(callers)
    assert scheduler.admitted == [callers] and callers.stage is Stage.RUNNING
    assert admitted(scheduler) == []  # 2 + 2
    callers.release_slot(runner, 0)
    assert admitted(scheduler) == [0]


def test_close_gives_all_slots_back_and_drops_what_waits(runner):
    scheduler, (a, b) = queued(runner, [2, 2], max_slots=2)
    admitted(scheduler)
    hold(runner, a, 4, 5)
    scheduler.close()
    assert sorted(runner.released) == [4, 5] and not scheduler.waiting and not scheduler.admitted


def test_an_idle_engine_lets_the_next_in_whatever_is_held(runner):
    scheduler, waiting = queued(runner, [1, 1], 1)
    assert admitted(scheduler) == [0]
    hold(runner, waiting[0], 0)
    scheduler.prompts_were_run([waiting[0]])
    scheduler.end_step()
    assert scheduler.admit() is None and scheduler.admit(idle=True) is waiting[1]


class Bytes:
    """A budget that a request needs its prompt's length of."""

    def __init__(self, limit: int):
        self.limit = limit

    def check(self, request, host) -> int:
        if (needs := len(request.prompt_ids)) > self.limit:
            raise UserError(f"needs {needs} of {host}")
        return needs


class Prefixes:
    """A prefix cache that keeps so many bytes, in pieces of 10."""

    def __init__(self, bytes: int):
        self.bytes, self.asked = bytes, []

    def known(self, *prompt) -> int:
        return 0

    def make_room(self, missing: int) -> None:
        self.asked.append(missing)
        self.bytes = max(self.bytes - -(-missing // 10) * 10, 0)


def budgeted(runner, needs: list[int], limit: int, prefixes: Prefixes | None = None) -> tuple[Scheduler, list[Generation]]:
    """A scheduler with a waiting request for each number of bytes, which takes one slot."""
    scheduler, waiting = Scheduler(runner, 64, Bytes(limit), prefixes), [generation(i, need) for i, need in enumerate(needs)]
    for each in waiting:
        scheduler.submit(each, 1, "a host")
    return scheduler, waiting


def test_requests_come_in_in_order_while_the_budget_holds_what_they_may_come_to(runner):
    scheduler, (a, b, c, d) = budgeted(runner, [40, 60, 50, 1], limit=100)
    assert admitted(scheduler) == [0, 1] and scheduler.reserved == 100  # and the small one does not overtake the third
    assert (scheduler.running, len(scheduler.waiting)) == (2, 2)
    for each, slot in ((a, 0), (b, 1)):
        hold(runner, each, slot)
    step(scheduler, a, b)
    assert scheduler.reserved == 100 and admitted(scheduler) == []  # the bytes are a request's to its end
    a.stage = Stage.DONE
    assert scheduler.reserved == 100 and scheduler.running == 1  # done, but it holds its slot
    a.release_all_slots()
    assert scheduler.reserved == 60 and admitted(scheduler) == []  # 60 + 50
    b.stage = Stage.DONE
    b.release_all_slots()
    assert admitted(scheduler) == [2, 3] and scheduler.reserved == 51


def test_a_request_that_the_budget_can_never_hold_is_refused_and_not_queued(runner):
    scheduler, _ = budgeted(runner, [100], limit=100)
    with pytest.raises(UserError, match="needs 101 of a host"):
        scheduler.submit(generation(1, 101), 1, "a host")
    assert len(scheduler.waiting) == 1


def test_kept_pasts_give_way_to_a_request_that_fits_without_them(runner):
    scheduler, (a, b, c) = budgeted(runner, [30, 55, 100], 100, prefixes := Prefixes(60))
    assert admitted(scheduler) == [0, 1] and prefixes.asked == [45] and prefixes.bytes == 10  # 30 + 55 + 60 are 45 too many, and 50 went
    assert prefixes.asked == [45]  # for the third nothing goes: it waits for the others in any case
    for each in (a, b):
        each.stage = Stage.DONE
    assert admitted(scheduler) == [2] and prefixes.bytes == 0


def test_what_cannot_be_evicted_holds_the_next_request_back(runner):
    prefixes = Prefixes(60)
    prefixes.make_room = lambda missing: None
    scheduler, (a,) = budgeted(runner, [50], 100, prefixes)
    assert admitted(scheduler) == []
    assert scheduler.admit(idle=True) is a  # nothing would come free by waiting


def test_a_waiting_request_can_be_taken_out_of_the_queue_once(runner):
    scheduler, (a, b, c) = budgeted(runner, [90, 20, 10], limit=100)
    assert admitted(scheduler) == [0]
    assert scheduler.remove(b) and not scheduler.remove(b) and not scheduler.remove(a)
    assert admitted(scheduler) == [2]
