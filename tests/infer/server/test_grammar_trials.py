"""Grammars that take too long to compile are refused, by a process that is lost for it; all others are answered."""

import asyncio
import json
import os
import signal
import time

import pytest
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.engine.live import QueueFull
from seodang.infer.server.app import build_app
from seodang.infer.server.calls import while_there
from seodang.infer.server.guard.grammar_trials import GrammarTrials
from seodang.infer.server.served import Served

ENDLESS = {"allOf": [{"type": "string", "pattern": f"a.*{n}.*"} for n in range(1000)]}  # compiles for more than ten minutes
GOOD = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
ASK = {"prompt": "abc", "temperature": 0, "max_tokens": 40}


@pytest.fixture
def hold(wordy_tokenizer):
    """`hold(*settings)`: what each comes to, one after the other: None, or the error's words and the seconds."""

    def held(*settings):
        async def each():
            trials, told = GrammarTrials(wordy_tokenizer), []
            try:
                for own in settings:
                    began = time.perf_counter()
                    try:
                        await (own(trials) if callable(own) else trials.hold(SamplingParams(**own)))
                        told.append(None)
                    except UserError as error:
                        told.append((str(error), time.perf_counter() - began))
            finally:
                await trials.close()
            return told

        return asyncio.run(each())

    return held


def test_a_grammar_that_compiles_without_end_is_refused_and_remembered(hold):
    first, again, good, regex, wrong = hold({"json_schema": ENDLESS}, {"json_schema": ENDLESS}, {"json_schema": GOOD}, {"regex": "(a{1000}){1000}"}, {"regex": "(a"})
    assert "json_schema takes more than 0.5 s to compile" in first[0] and first[1] < 15  # by the clock, of a machine that others use
    assert first[0] == again[0] and again[1] < 1
    assert good is None and "regex takes more than 0.5 s" in regex[0]
    assert "regex cannot be used" in wrong[0]  # in the words of who compiles it


def test_a_process_that_was_lost_is_there_again(hold):
    async def lose(trials):
        trials._process.send_signal(signal.SIGKILL)
        await trials._process.wait()

    assert hold({"json_schema": GOOD}, lose, {"regex": "a+"}, {"choice": ["a", "b"]}) == [None] * 4


def test_it_ends_with_who_started_it(hold):
    found = []

    async def note(trials):
        found.append(trials._process.pid)

    assert hold({"json_schema": GOOD}, note) == [None] * 2
    with pytest.raises(ProcessLookupError):
        os.kill(found[0], 0)


def test_so_many_new_grammars_wait_and_further_ones_are_told_to_come_again(wordy_tokenizer, monkeypatch):
    """Any number of requests for a grammar that waits already, or is known, are no more than one."""
    monkeypatch.setattr("seodang.infer.server.guard.grammar_trials.WAITING", 2)

    async def ask():
        trials, free = GrammarTrials(wordy_tokenizer), asyncio.Event()
        monkeypatch.setattr(trials, "_tried", lambda written: free.wait())
        waiting = [asyncio.create_task(trials.hold(SamplingParams(regex=regex))) for regex in ("a+", "b+", "a+", "a+")]
        while trials._waiting.total() < 4:
            await asyncio.sleep(0.001)
        with pytest.raises(QueueFull, match="2 new grammars wait"):
            await trials.hold(SamplingParams(regex="c+"))
        waiting[1].cancel()  # whose client has gone
        await asyncio.wait([waiting[1]])
        last = asyncio.create_task(trials.hold(SamplingParams(regex="c+")))
        while trials._waiting.total() < 4:
            await asyncio.sleep(0.001)
        free.set()
        await asyncio.gather(last, *waiting[:1], *waiting[2:])
        return trials._waiting

    assert not asyncio.run(ask())


def test_what_a_client_waits_for_is_broken_off_when_it_goes():
    class Client:
        def __init__(self, goes: bool):
            self.goes = goes

        async def receive(self) -> dict:
            await asyncio.sleep(0 if self.goes else 10)
            return {"type": "http.disconnect"}

    broken = []

    async def work() -> str:
        try:
            await asyncio.sleep(0.05)
            return "done"
        except asyncio.CancelledError:
            broken.append(True)
            raise

    assert asyncio.run(while_there(Client(False), work())) == "done" and not broken
    with pytest.raises(ClientDisconnect):
        asyncio.run(while_there(Client(True), work()))
    assert broken


def test_others_are_answered_while_a_grammar_is_tried(tiny, wordy_tokenizer):
    from seodang.infer.engine.live import LiveEngine

    model = tiny("llama", vocab_size=len(wordy_tokenizer), eos_token_id=wordy_tokenizer.eos_token_id)
    with TestClient(build_app(Served(LiveEngine(model, wordy_tokenizer), "tiny"))) as client:
        good = client.post("/v1/completions", json={**ASK, "json_schema": GOOD}).json()["choices"][0]["text"]
        assert json.loads(good)["a"] in (1, 2)
        refused = client.post("/v1/completions", json={**ASK, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "response_format"
        assert "response_format takes more than 0.5 s to compile" in refused.json()["error"]["message"]
        assert client.post("/v1/completions", json={**ASK, "json_schema": GOOD}).json()["choices"][0]["text"] == good
        assert client.get("/health").json()["running"] == 0
