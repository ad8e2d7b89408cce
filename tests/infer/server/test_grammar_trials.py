"""Grammars that take too long to compile are refused, by a process that is lost for it; all others are answered."""

import asyncio
import json
import os
import signal
import time

import pytest
from fastapi.testclient import TestClient

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.server.app import build_app
from seodang.infer.server.grammar_trials import GrammarTrials
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
    assert "json_schema takes more than 1 s to compile" in first[0] and first[1] < 15  # by the clock, of a machine that others use
    assert first[0] == again[0] and again[1] < 1
    assert good is None and "regex takes more than 1 s" in regex[0]
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


def test_others_are_answered_while_a_grammar_is_tried(tiny, wordy_tokenizer):
    from seodang.infer.engine.live import LiveEngine

    model = tiny("llama", vocab_size=len(wordy_tokenizer), eos_token_id=wordy_tokenizer.eos_token_id)
    with TestClient(build_app(Served(LiveEngine(model, wordy_tokenizer), "tiny"))) as client:
        good = client.post("/v1/completions", json={**ASK, "json_schema": GOOD}).json()["choices"][0]["text"]
        assert json.loads(good)["a"] in (1, 2)
        refused = client.post("/v1/completions", json={**ASK, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "response_format"
        assert "response_format takes more than 1 s to compile" in refused.json()["error"]["message"]
        assert client.post("/v1/completions", json={**ASK, "json_schema": GOOD}).json()["choices"][0]["text"] == good
        assert client.get("/health").json()["running"] == 0
