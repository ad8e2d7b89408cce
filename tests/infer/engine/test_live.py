"""The live engine: requests from any thread at any time, cancelled, refused, failed, and an end that leaves nobody waiting and no thread."""

import gc
import logging
import threading
import time

import pytest

from seodang.data.errors import UserError
from seodang.infer import Committed, Finished, SamplingParams, generate, stream
from seodang.infer.engine.budget import size
from seodang.infer.engine.core import Engine
from seodang.infer.engine.live import LiveEngine, QueueFull
from seodang.infer.engine.loop import EngineClosed
from seodang.infer.requests.sequence import TokenSequence
from seodang.infer.runners.open import open_runner

PROMPT, OTHER = [5, 6, 7, 5, 6], [20, 21, 22]
SHORT = SamplingParams(max_new_tokens=8, ignore_eos=True)
LONG = SamplingParams(max_new_tokens=60, ignore_eos=True)
TIMEOUT = 20  # seconds: of a wait that ends at once where all is well


def lost(*given):
    raise KeyError("lost")


def filter_lost_at_the_third(logits, history):
    return lost() if history.shape[1] == len(PROMPT) + 2 else logits


class Gate:
    """Holds the engine's thread before its next step, so that a test decides what comes between two."""

    def __init__(self, monkeypatch):
        self._open, self.arrived = threading.Event(), threading.Semaphore(0)
        self._open.set()
        step = Engine.step

        def gated(engine) -> bool:
            self.arrived.release()
            assert self._open.wait(TIMEOUT)
            return step(engine)

        monkeypatch.setattr(Engine, "step", gated)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


@pytest.fixture(autouse=True)
def _no_thread_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert {thread for thread in set(threading.enumerate()) - before if thread.name == "seodang-engine"} == set()


@pytest.fixture
def engine(tiny_llama, tiny_tokenizer):
    with LiveEngine(tiny_llama, tiny_tokenizer, max_rows=8, max_waiting=4) as engine:
        yield engine
        engine.close()
    assert engine._loop.engine.runner.live == 0


def ids(results) -> list[list[int]]:
    return [result.ids for result in results]


def test_answers_are_those_of_generate_whatever_thread_asks_and_when(engine, tiny_llama, tiny_tokenizer):
    asked = [([3 + i, 9, 40 + i], SamplingParams(max_new_tokens=4 + i, **how)) for i, how in enumerate(
        [{}, {"temperature": 1.0, "seed": 3, "num_return_sequences": 2}, {"num_beams": 3}, {"penalty_alpha": 0.6, "top_k": 3},
         {"prompt_lookup_num_tokens": 3}, {"guidance_scale": 1.5}, {"dola_layers": "low"}, {}]
    )]  # fmt: skip
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: engine_results(engine, *asked[i])})) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    wanted = [generate(tiny_llama, tiny_tokenizer, [prompt], params) for prompt, params in asked]
    assert [ids(found[i]) for i in range(len(asked))] == [ids(each) for each in wanted]
    assert [[each.text for each in found[i]] for i in range(len(asked))] == [[each.text for each in those] for those in wanted]


def engine_results(engine, prompt, params):
    while True:
        try:
            return engine.submit(prompt, params).results(TIMEOUT)
        except QueueFull:  # four may wait here
            time.sleep(0.001)


def test_a_stream_yields_the_events_of_stream_and_counts_requests(engine, tiny_llama, tiny_tokenizer):
    wanted = list(stream(tiny_llama, tiny_tokenizer, "ab", SHORT))
    assert list(engine.stream("ab", SHORT)) == wanted
    second = list(engine.stream("ab", SHORT))
    assert {event.prompt_index for event in second} == {1}
    assert [event.text for event in second[:-1]] == [event.text for event in wanted[:-1]]


def test_a_short_request_sent_while_a_long_one_runs_ends_before_it(engine):
    order = []
    heard = lambda name: lambda event: order.append(name) if isinstance(event, Finished) else None
    running = threading.Event()
    long = engine.submit(PROMPT, LONG, on_event=lambda event: (running.set(), heard("long")(event)))
    assert running.wait(TIMEOUT)
    short = engine.submit(OTHER, SamplingParams(max_new_tokens=2), on_event=heard("short"))
    assert len(short.results(TIMEOUT)) == len(long.results(TIMEOUT)) == 1
    assert order == ["short", "long"]


def test_what_is_wrong_is_refused_where_it_is_handed_in_and_disturbs_nobody(engine):
    good = engine.submit(PROMPT, LONG)
    for prompt, params, message in (
        ([], SHORT, "prompt 1 is empty"), ([999], SHORT, "999"), (PROMPT, SamplingParams(max_new_tokens=10_000), "positions of the model"),
        (PROMPT, SamplingParams(max_new_tokens=8, filters=[lost]), "the filter lost raised KeyError"), (PROMPT, {"top_p": 1}, "params must be SamplingParams"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            engine.submit(prompt, params)
        with pytest.raises(UserError, match=message):
            engine.stream(prompt, params)  # at once, not at its first event
    assert good.results(TIMEOUT)[0].finish_reason == "length"
    with pytest.raises(UserError, match="the events of this request go to its on_event"):
        engine.submit(OTHER, SHORT, on_event=print).events()


def test_a_cancelled_request_ends_with_what_was_said_and_the_others_go_on(engine, gate):
    long, other = engine.submit(PROMPT, LONG), engine.submit(OTHER, LONG)
    told = long.events()
    first = [next(told) for _ in range(3)]
    long.cancel()
    rest = list(told)
    assert rest[-1] == Finished(0, "cancelled", 0) and all(isinstance(event, Committed) for event in [*first, *rest[:-1]])
    [result] = long.results(TIMEOUT)
    assert result.finish_reason == "cancelled" and result.ids == [event.id for event in [*first, *rest[:-1]]] and len(result.ids) < 60
    assert other.results(TIMEOUT)[0].finish_reason == "length"
    long.cancel()  # again, after its end
    assert engine.submit(OTHER, SHORT).results(TIMEOUT) and long.results() == [result]


def test_a_request_cancelled_before_its_first_pass_says_nothing_and_is_cancelled_once(engine, gate):
    gate.close()
    running = engine.submit(OTHER, SHORT)
    assert gate.arrived.acquire(timeout=TIMEOUT)
    waits = engine.submit(PROMPT, SHORT)
    waits.cancel()
    waits.cancel()
    gate.open()
    assert list(waits.events()) == [Finished(1, "cancelled", 0)]
    assert running.results(TIMEOUT)[0].finish_reason == "length"


def test_who_stops_listening_to_a_stream_cancels_it(engine):
    events = engine.stream(PROMPT, LONG)
    next(events)
    [ticket] = engine._loop.tickets()
    events.close()
    assert ticket.results(TIMEOUT)[0].finish_reason == "cancelled"


def test_a_request_beyond_the_whole_budget_is_refused_with_the_numbers(tiny_llama, tiny_tokenizer):
    runner = open_runner(tiny_llama)
    fits = runner.bytes_for(len(PROMPT) + 8)
    with LiveEngine(tiny_llama, tiny_tokenizer, cache_bytes=fits) as engine:
        longer = SamplingParams(max_new_tokens=200)
        for params, numbers in ((longer, r"\(5 \+ 200\) positions"), (SamplingParams(max_new_tokens=8, num_beams=3), r"3 x \(5 \+ 8\) positions")):
            with pytest.raises(UserError, match=f"needs .*{numbers} .*more than the budget of {size(fits)}"):
                engine.submit(PROMPT, params)
        assert [len(engine.submit(PROMPT, SHORT).results(TIMEOUT)[0].ids) for _ in range(2)] == [8, 8]
        assert engine.health().bytes_limit == fits and f"KV cache up to {size(fits)}" in engine.describe()


def test_a_request_that_is_wider_than_all_rows_is_refused_with_the_numbers(engine):
    wide = {"temperature": 1.0, "num_return_sequences": 5, "guidance_scale": 1.5, "max_new_tokens": 8}
    with pytest.raises(UserError, match="needs 10 rows for its answers, beams and guidance, and there are 8"):
        engine.submit(PROMPT, SamplingParams(**wide))
    assert len(engine.submit(PROMPT, SamplingParams(**{**wide, "num_return_sequences": 4})).results(TIMEOUT)) == 4


def test_a_defect_of_ours_ends_its_requests_and_the_engine_goes_on(engine, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(TokenSequence, "commit", lost)
        [result] = engine.submit(PROMPT, SHORT).results(TIMEOUT)
    assert (result.finish_reason, result.error) == ("error", "internal error: KeyError: 'lost'")
    assert engine.submit(PROMPT, SHORT).results(TIMEOUT)[0].finish_reason == "length" and engine.health().ok
    assert [(record.levelno, record.exc_info[0]) for record in caplog.records] == [(logging.ERROR, KeyError)]


def test_every_answer_of_a_request_is_cancelled(engine):
    ticket = engine.submit(PROMPT, SamplingParams(max_new_tokens=60, temperature=1.0, num_return_sequences=3, ignore_eos=True))
    events = ticket.events()
    next(events)
    ticket.cancel()
    assert [event.choice for event in events if isinstance(event, Finished)] == [0, 1, 2]
    assert [(each.choice, each.finish_reason) for each in ticket.results(TIMEOUT)] == [(i, "cancelled") for i in range(3)]
    assert list(ticket.events()) == []  # each event came once


def test_a_full_queue_is_refused_with_its_number_and_nothing_is_lost(engine, gate):
    gate.close()
    running = engine.submit(OTHER, SHORT)
    assert gate.arrived.acquire(timeout=TIMEOUT)
    waiting = [running] + [engine.submit(PROMPT, SHORT) for _ in range(3)]
    with pytest.raises(QueueFull, match="4 requests wait already, and at most 4 may"):
        engine.submit(PROMPT, SHORT)
    assert (engine.health().running, engine.health().waiting) == (0, 4)
    gate.open()
    assert [len(ticket.results(TIMEOUT)) for ticket in waiting] == [1] * 4
    assert (engine.health().running, engine.health().waiting) == (0, 0)
    assert engine.submit(PROMPT, SHORT).results(TIMEOUT)


def test_an_error_in_a_callers_filter_ends_its_request_alone(engine):
    faulty = engine.submit(PROMPT, SamplingParams(max_new_tokens=8, filters=[filter_lost_at_the_third]))
    other = engine.submit(OTHER, SHORT)
    *_, last = faulty.events()
    assert (last.reason, last.error) == ("error", "the filter filter_lost_at_the_third raised KeyError: 'lost'")
    assert faulty.results(TIMEOUT)[0].ids and other.results(TIMEOUT)[0].finish_reason == "length"


def test_an_error_of_a_listener_cancels_its_request_and_is_told(engine, caplog):
    heard = []
    ticket = engine.submit(PROMPT, LONG, on_event=lambda event: heard.append(event) or lost())
    other = engine.submit(OTHER, SHORT)
    assert ticket.results(TIMEOUT)[0].finish_reason == "cancelled" and len(heard) == 1
    assert other.results(TIMEOUT)[0].finish_reason == "length" and engine.health().ok
    assert [(record.message, record.exc_info[0]) for record in caplog.records] == [("on_event of request 0 raised: the request is cancelled", KeyError)]


def test_a_loop_that_dies_tells_everybody_who_waits(engine, gate, monkeypatch, caplog):
    gate.close()
    running = engine.submit(OTHER, SamplingParams(max_new_tokens=8, temperature=1.0, num_return_sequences=2))
    assert gate.arrived.acquire(timeout=TIMEOUT)
    waiting = engine.submit(PROMPT, SHORT)
    monkeypatch.setattr(Engine, "_admit", lambda *given, **how: (_ for _ in ()).throw(SystemError("no more")))
    gate.open()
    why = "the engine's loop died of SystemError: the log says more"
    assert list(waiting.events()) == [Finished(1, "error", 0, why)]
    assert [(each.finish_reason, each.error) for each in running.results(TIMEOUT)] == [("error", why)] * 2
    with pytest.raises(EngineClosed, match=why):
        engine.submit(PROMPT, SHORT)
    health = engine.health()
    assert (health.ok, health.reason, health.running, health.waiting) == (False, why, 0, 0)
    assert [record.levelno for record in caplog.records] == [logging.CRITICAL]
    engine._thread.join(TIMEOUT)
    assert not engine._thread.is_alive()


def test_a_step_that_lasts_too_long_is_no_good_health(tiny_llama, tiny_tokenizer, gate):
    with LiveEngine(tiny_llama, tiny_tokenizer, stuck_after=0.05) as engine:
        assert engine.health().ok
        gate.close()
        ticket = engine.submit(PROMPT, SHORT)
        assert gate.arrived.acquire(timeout=TIMEOUT)
        time.sleep(0.06)
        health = engine.health()
        assert not health.ok and "more than 0.05 s" in health.reason and health.waiting == 1
        gate.open()
        ticket.results(TIMEOUT)
        assert engine.submit(PROMPT, SHORT).results(TIMEOUT) and engine.health().ok


def test_closing_cancels_what_is_left_or_lets_it_end_and_takes_nothing_more(tiny_llama, tiny_tokenizer):
    for timeout, reason in ((0.0, "cancelled"), (TIMEOUT, "length"), (None, "length")):
        engine = LiveEngine(tiny_llama, tiny_tokenizer, max_rows=1)
        tickets = [engine.submit(PROMPT, LONG), engine.submit(OTHER, LONG)]
        next(tickets[0].events())
        engine.close(timeout)
        engine.close()
        assert [ticket.results(0)[0].finish_reason for ticket in tickets] == [reason] * 2
        with pytest.raises(EngineClosed, match="the engine is closed"):
            engine.submit(PROMPT, SHORT)
        assert not engine.health().ok and not engine._thread.is_alive()
        assert engine._loop.engine.runner.live == 0


def test_closing_leaves_nobody_waiting_for_a_step_that_is_stuck(tiny_llama, tiny_tokenizer, gate):
    engine = LiveEngine(tiny_llama, tiny_tokenizer, stuck_after=0.05)
    gate.close()
    ticket = engine.submit(PROMPT, SHORT)
    assert gate.arrived.acquire(timeout=TIMEOUT)
    engine.close()
    assert list(ticket.events()) == [Finished(0, "cancelled", 0)] and engine._thread.is_alive()
    gate.open()
    engine._thread.join(TIMEOUT)
    assert not engine._thread.is_alive() and engine._loop.engine.runner.live == 0
    assert list(ticket.events()) == [] and ticket.results(0)[0].finish_reason == "cancelled"


def test_an_engine_that_is_dropped_ends_its_thread_and_its_requests(tiny_llama, tiny_tokenizer):
    engine = LiveEngine(tiny_llama, tiny_tokenizer)
    thread, ticket = engine._thread, engine.submit(PROMPT, LONG)
    del engine
    gc.collect()
    thread.join(TIMEOUT)
    assert not thread.is_alive() and ticket.results(0)[0].finish_reason == "cancelled"


def test_results_can_be_waited_for_so_long_and_carry_what_was_traced(engine, gate):
    gate.close()
    ticket = engine.submit(PROMPT, SHORT, trace=True)
    with pytest.raises(TimeoutError, match="request 0 is not answered after 0.01 s"):
        ticket.results(0.01)
    gate.open()
    [result] = ticket.results(TIMEOUT)
    assert result.trace == list(ticket.events()) and len(result.trace) > 9


def test_a_model_whose_past_cannot_be_shared_is_served_without_a_cache(tiny, tiny_tokenizer):
    with LiveEngine(tiny("t5"), tiny_tokenizer) as engine:
        assert engine.prefix_cache is None
        assert ids(engine.submit(PROMPT, SHORT).results(TIMEOUT)) == ids(generate(tiny("t5"), tiny_tokenizer, [PROMPT], SHORT))


def test_numbers_out_of_range_are_refused(tiny_llama, tiny_tokenizer):
    for name in ("max_rows", "max_waiting", "stuck_after"):
        with pytest.raises(UserError, match=f"{name} must be above 0, got 0"):
            LiveEngine(tiny_llama, tiny_tokenizer, **{name: 0})
