"""What asks a server, quick to ask again."""

import pytest

from seodang.infer import SamplingParams
from seodang.infer.remote import connection
from seodang.infer.remote.asking import Asking, Question
from seodang.infer.remote.connection import Server


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits are a thousandth as long."""
    monkeypatch.setattr(connection, "FIRST_WAIT", 0.001)


@pytest.fixture
def ask():
    """`ask(server, prompts, ...)`: what asks a server these prompts as texts, an iterator of results; closed at the end of the test."""
    opened = []

    def start(server, prompts, params=None, *, concurrency=4, ahead=None, token_ids=False, seconds=5.0, retries=2, **fields):
        params = params or SamplingParams()

        def question(index):
            return Question(index, "/completions", {"model": "pupil", "prompt": prompts[index], **fields}, params, token_ids)

        asking = Asking(Server(server.base_url, "secret-key", seconds, retries), question, range(len(prompts)), concurrency, ahead)
        opened.append(asking)
        return asking

    yield start
    for asking in opened:
        asking.close()
