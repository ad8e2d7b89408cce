"""The server by its own OpenAPI document: others find it valid, and thousands of requests that schemathesis makes of it are answered as it says."""

import json
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.request import urlopen

import pytest
from live_server import behind_a_socket
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client.parser import text_string_to_metric_families

from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served

HERE = Path(__file__).parent
ASKED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize", "/detokenize")  # by bodies
CHECKS = ["--checks", "all", "--exclude-checks", "positive_data_acceptance"]  # a schema does not say which settings contradict each other
SAME = ["--seed", "1", "--request-timeout", "120", "--generation-database", "none", "--continue-on-failure", "--no-color"]


@pytest.fixture
def engine(talker, tiny):
    """Of a model that may think and call tools, and has few positions, so that long answers are soon over."""
    tokenizer = talker[1]
    model = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=384, eos_token_id=tokenizer.eos_token_id)
    with LiveEngine(model, tokenizer, max_rows=8, max_waiting=64) as engine:
        yield engine


def served(engine, lenient: bool = False):
    """The engine behind a socket of this machine: a context that yields its address."""
    return behind_a_socket(build_app(Served(engine, "tiny", answer_tokens=8, lenient=lenient)), engine)


def tried(address: str, folder: Path, *options: str, few_fields: bool = False) -> None:
    """Have schemathesis make requests of the document that a server gives, and judge the answers."""
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{address}/openapi.json", *CHECKS, *SAME, *options]
    hooks = {"SCHEMATHESIS_HOOKS": "few_fields", "PYTHONPATH": str(HERE)} if few_fields else {}
    done = subprocess.run(command, cwd=folder, env={**os.environ, **hooks}, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def counted(address: str) -> Counter:
    """How many requests the server itself has counted, by path and status."""
    with urlopen(f"{address}/metrics") as answer:
        samples = [sample for family in text_string_to_metric_families(answer.read().decode()) for sample in family.samples]
    return Counter({(each.labels["path"], int(each.labels["status"])): int(each.value) for each in samples if each.name == "seodang_http_requests_total"})


def check(address: str, engine, caplog, least: int, each: int = 5) -> None:
    """Assert that a server answered so many requests, each path's in every way, none by an error of its own, and that it has nothing left in hand."""
    found = counted(address)
    with urlopen(f"{address}/health") as answer:
        health = json.load(answer)
    assert {status for _, status in found} <= {200, 400, 404, 405, 415}, found
    assert sum(found.values()) - found["/openapi.json", 200] >= least, found
    assert min(found[path, status] for path in ASKED for status in (200, 400)) >= each, found
    assert (health["status"], health["running"], health["waiting"], health["bytes_reserved"], engine.rows_in_use) == ("ok", 0, 0, 0, 0)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_some_requests_of_the_document_are_answered_as_it_says(engine, caplog, tmp_path):
    """On all paths what the document does not allow, and what it does, a few settings at a time."""
    with served(engine) as address:
        with urlopen(f"{address}/openapi.json") as answer:
            assert not list(OpenAPIV31SpecValidator(json.load(answer)).iter_errors())
        tried(address, tmp_path, "--phases", "fuzzing", "--mode", "negative", "--max-examples", "8")
        tried(address, tmp_path, "--phases", "fuzzing", "--mode", "positive", "--max-examples", "20", few_fields=True)
        check(address, engine, caplog, 150, 2)


@pytest.mark.full
def test_requests_of_the_document_are_answered_as_it_says(engine, caplog, tmp_path):
    """Some 2,000: each field of completions at its bounds and beyond, and on all paths what the document does not allow, and what it does."""
    with served(engine) as address:
        tried(address, tmp_path, "--phases", "coverage", "--include-path", "/v1/completions")
        tried(address, tmp_path, "--phases", "fuzzing", "--mode", "negative", "--max-examples", "25")
        tried(address, tmp_path, "--phases", "fuzzing", "--mode", "positive", "--max-examples", "60", few_fields=True)
        check(address, engine, caplog, 1400)


@pytest.mark.full
@pytest.mark.parametrize("lenient", [False, True])
def test_each_field_at_its_bounds_and_beyond(engine, caplog, tmp_path, lenient):
    """On all paths, some thousand requests; a lenient server takes fields that the document knows nothing of."""
    with served(engine, lenient) as address:
        tried(address, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "50")
        tried(address, tmp_path, "--phases", "fuzzing", "--mode", "positive", "--max-examples", "300", few_fields=True)
        check(address, engine, caplog, 4000)
