"""/openapi.json, held against what the server accepts and refuses, and /docs, which shows it and loads nothing."""

import json
import re
import time

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from seodang.data.errors import UserError
from seodang.infer.engine.live import LiveEngine
from seodang.infer.engine.prompts import new_requests
from seodang.infer.server.app import build_app
from seodang.infer.server.completions import Completion, CompletionBody
from seodang.infer.server.guard.errors import ApiError
from seodang.infer.server.protocol import checked
from seodang.infer.server.served import Served

PATHS = {"/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"}
VALUES = [None, True, -1, 0, 1, 0.5, 1.5, "a", ["a"], [5], [[[5], 1.0]], {"5": 1.0}, {"a": 1.0}, {"type": "text"}]


@pytest.fixture
def served(tiny_llama, tiny_tokenizer):
    with LiveEngine(tiny_llama, tiny_tokenizer, max_rows=8) as engine:
        yield Served(engine, "tiny & <b>small</b>")


@pytest.fixture
def client(served):
    with TestClient(build_app(served)) as client:
        yield client


@pytest.fixture
def bodies(client):
    """What each path's body is said to be, with its example, by path."""
    paths = client.get("/openapi.json").json()["paths"]
    posts = {path: methods["post"] for path, methods in paths.items() if "post" in methods}
    assert all(each["requestBody"]["required"] for each in posts.values())  # none takes a body that it does not tell of
    return {path: each["requestBody"]["content"]["application/json"] for path, each in posts.items()}


def test_every_path_tells_what_it_takes_by_an_example_that_is_answered(client, bodies):
    assert PATHS <= set(bodies)
    for path, body in bodies.items():
        Draft202012Validator.check_schema(body["schema"])
        Draft202012Validator(body["schema"]).validate(body["example"])
        assert all(field.get("description") for field in body["schema"]["properties"].values()), path
        assert "$ref" not in json.dumps(body)
        response = client.post(path, json=body["example"])
        assert response.status_code == 200, (path, response.text)


def reason(served, body) -> str | None:
    """Why a completion's body is refused, None where it is taken."""
    try:
        asked = Completion(checked(body, served, CompletionBody), served)
        new_requests(served.engine.model, served.tokenizer, asked.prompts, asked.params, served.engine._loop.engine)
    except (ApiError, UserError) as error:
        return str(error)
    return None


def test_a_field_takes_what_it_is_said_to_take_and_nothing_else(served, bodies):
    """Each with values of all types: one not said to fit is refused (but for nothings, which ask for nothing), and none breaks the server."""
    schema = bodies["/v1/completions"]["schema"]
    validator, too_narrow, too_wide = Draft202012Validator(schema), [], []
    for name in schema["properties"]:
        for value in VALUES:
            body = {"prompt": "abc", name: value}
            fits, why = validator.is_valid(body), reason(served, body)
            if not fits and why is None and value:
                too_narrow.append((name, value))
            if fits and why is not None and re.search(rf"\b{name}\b\S* must be ", why):
                too_wide.append((name, value, why))
    assert not too_narrow
    assert not too_wide


def test_an_unknown_field_is_told_from_a_known_one(served, bodies):
    schema = bodies["/v1/completions"]["schema"]
    assert schema["additionalProperties"] is False and "unknown" in reason(served, {"prompt": "a", "temprature": 1})
    assert {"messages", "tools", "filters", "reward"}.isdisjoint(schema["properties"])
    defaults = {name: field["default"] for name, field in schema["properties"].items() if "default" in field}
    assert defaults.items() >= {"temperature": 1, "max_new_tokens": 1024, "n": 1, "stream": False, "mirostat_eta": 0.1}.items()


def test_the_page_shows_every_path_and_field_and_loads_nothing(client, bodies):
    page = client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script|<link|<img|<iframe|src=|@import|url\(", page.text)
    assert {url.split("/")[2] for url in re.findall(r"https?://[^\s'\"<]*", page.text)} == {"testserver"}  # the examples' own
    assert "tiny &amp; &lt;b&gt;small&lt;/b&gt;" in page.text and "<b>" not in page.text
    for path, body in bodies.items():
        [section] = re.findall(rf'<section id="POST{path}">.*?</section>', page.text, re.DOTALL)
        assert re.findall(r'<th scope="row"><code>(\w+)</code>', section) == list(body["schema"]["properties"])
        assert f"curl http://testserver{path} -H" in section
    row = next(line for line in page.text.splitlines() if "<code>top_p</code>" in line)
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells == ["number", "above 0 to 1", "", "Draw from the likeliest tokens that together reach this probability."]
    began = time.perf_counter()
    client.get("/openapi.json")
    assert time.perf_counter() - began < 1  # on the event loop
