"""Tickets and the loop under stress: every ticket ends, events come in order and none behind the end, and nobody waits for himself."""

import gc
import os
import random
import threading
import time

import pytest

from seodang.data.errors import UserError
from seodang.infer import Committed, Finished, SamplingParams
from seodang.infer.engine.live import LiveEngine, QueueFull
from seodang.infer.engine.loop import EngineClosed

TIMEOUT = 20  # seconds: of a wait that ends at once where all is well
PROMPT, SHORT, LONG = [5, 6, 7], SamplingParams(max_new_tokens=3, ignore_eos=True), SamplingParams(max_new_tokens=200, ignore_eos=True)
KINDS = [{}, {"temperature": 1.0, "num_return_sequences": 2}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}, {"temperature": 1.0, "best_of": 2}]


@pytest.fixture
def engine(tiny_llama, tiny_tokenizer):
    with LiveEngine(tiny_llama, tiny_tokenizer, max_rows=8, max_waiting=16) as engine:
        yield engine
    assert not engine._thread.is_alive() and engine._loop.engine.runner.live == 0


def test_whatever_threads_do_every_ticket_ends_once_and_nothing_is_left(engine):
    asked, ends = [], {}

    def ask(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(25):
            params = SamplingParams(max_new_tokens=chance.randrange(1, 6), **chance.choice(KINDS))
            heard = [] if chance.random() < 0.5 else None
            try:
                ticket = engine.submit([chance.randrange(3, 100) for _ in range(4)], params, on_event=heard if heard is None else heard.append)
            except QueueFull:
                time.sleep(0.005)
                continue
            except EngineClosed:
                return
            asked.append((ticket, heard))
            if chance.random() < 0.5:
                ticket.cancel()
            if heard is None and chance.random() < 0.3:
                ends[ticket] = list(ticket.events())
        if seed == 0:
            engine.close()

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    engine.close()
    assert len(asked) > 20 and engine._loop.tickets() == []
    for ticket, heard in asked:
        events = heard if heard is not None else ends.get(ticket) or list(ticket.events())
        finished = [event.choice for event in events if isinstance(event, Finished)]
        assert sorted(finished) == list(range(len(ticket.results(0)))) and isinstance(events[-1], Finished)


def test_what_two_threads_tell_is_heard_in_order_and_nothing_behind_the_end(engine):
    """As where a step is stuck: its end is told by who closes the engine, and what the step still says comes too late."""
    heard, told, go = [], threading.Event(), threading.Event()
    ticket = engine.submit(PROMPT, LONG, on_event=lambda event: (heard.append(event), told.set(), go.wait(TIMEOUT)))
    assert told.wait(TIMEOUT)
    ticket._hear(Finished(0, "cancelled"))  # waits neither for the listener nor for the engine
    assert ticket.done and len(heard) == 1
    go.set()
    ticket.generation.cancel()
    ticket._hear(Finished(0, "length"))
    engine.submit(PROMPT, SHORT).results(TIMEOUT)
    assert [type(event) for event in heard] == [Committed, Finished] and heard[1].reason == "cancelled"


def test_a_stream_that_nobody_begins_is_cancelled(engine):
    events = engine.stream(PROMPT, LONG)
    [ticket] = engine._loop.tickets()
    del events
    gc.collect()
    assert ticket.results(TIMEOUT)[0].finish_reason == "cancelled"


def test_two_threads_share_the_events_of_a_ticket(engine):
    ticket, heard = engine.submit(PROMPT, LONG), []
    threads = [threading.Thread(target=lambda: heard.extend(ticket.events())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(event.position for event in heard if isinstance(event, Committed)) == list(range(200)) and len(heard) == 201


def test_an_on_event_may_submit_cancel_and_close_but_not_wait(engine):
    found, errors = [], []

    def hear(event):
        if isinstance(event, Finished):
            found.append(engine.submit(PROMPT, LONG))
            found.append(engine.submit(PROMPT, LONG))
            found[0].cancel()
            for wait in (found[0].results, lambda: next(found[0].events())):
                with pytest.raises(UserError) as raised:
                    wait()
                errors.append(str(raised.value))
            engine.close(None)

    [result] = engine.submit(PROMPT, SHORT, on_event=hear).results(TIMEOUT)
    engine._thread.join(TIMEOUT)
    assert result.finish_reason == "length" and not engine._thread.is_alive()
    assert [ticket.results(0)[0].finish_reason for ticket in found] == ["cancelled"] * 2
    assert errors == ["an on_event cannot wait for an answer: the thread that it is called in is the one that makes it"] * 2


def test_a_listener_that_blocks_where_a_cancel_is_told_is_no_good_health(tiny_llama, tiny_tokenizer, monkeypatch):
    with LiveEngine(tiny_llama, tiny_tokenizer, stuck_after=0.05) as engine:
        blocked, go, begun = threading.Event(), threading.Event(), threading.Event()
        hear = lambda event: (blocked.set(), go.wait(TIMEOUT)) if isinstance(event, Finished) else begun.set()
        ticket = engine.submit(PROMPT, LONG, on_event=hear)
        assert begun.wait(TIMEOUT)
        ticket.cancel()
        assert blocked.wait(TIMEOUT)
        time.sleep(0.06)
        assert "has lasted" in engine.health().reason
        go.set()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_told_that_the_engine_is_not_there(engine):
    engine.submit(PROMPT, SHORT).results(TIMEOUT)
    if (child := os.fork()) == 0:
        try:
            engine.submit(PROMPT, SHORT)
        except EngineClosed as error:
            os._exit(0 if "forked" in str(error) and not engine.health().ok else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.submit(PROMPT, SHORT).results(TIMEOUT)
