"""Each limit of a request: what stands at it is answered, and one beyond it is refused by name."""

import json

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator

from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.app import build_app
from seodang.infer.server.guard import limits
from seodang.infer.server.served import Served

GREEDY = {"model": "tiny", "prompt": "abc", "max_tokens": 1, "temperature": 0}
CHAT = {"model": "talker", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "temperature": 0}


@pytest.fixture(scope="module")
def client(tiny_llama, byte_tokenizer):
    engine = LiveEngine(tiny_llama, byte_tokenizer(), max_rows=32, max_waiting=100)
    with engine, TestClient(build_app(Served(engine, "tiny"))) as client:
        yield client


@pytest.fixture(scope="module")
def chat_client(talker):
    with LiveEngine(*talker, max_rows=8) as engine, TestClient(build_app(Served(engine, "talker"))) as client:
        yield client


@pytest.fixture
def chat(chat_client):
    return lambda **changes: chat_client.post("/v1/chat/completions", json={**CHAT, **changes})


def refused(response, field: str, told: str) -> bool:
    error = response.json()["error"]
    return response.status_code == 400 and error["param"] == field and error["message"].startswith(told)


def nested(depth: int):
    """Lists in one another."""
    return json.loads("[" * depth + "]" * depth)


def sized(bytes: int) -> dict:
    """A schema of so many bytes as JSON."""
    empty = {"type": "string", "description": ""}
    return {**empty, "description": "x" * (bytes - len(json.dumps(empty, separators=(",", ":"))))}


def deep(levels: int) -> dict:
    """A schema of so many objects in one another."""
    schema = {"type": "object"}
    for _ in range(levels - 1):
        schema = {"additionalProperties": schema}
    return schema


def formatted(schema) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


ROOM = limits.SETTING - len(json.dumps(formatted({}), separators=(",", ":"))) + 2
AT_AND_BEYOND = [  # a field, what is answered, what is refused, and how the refusal begins
    ("n", 16, 17, "n must be at most 16, got 17"), ("num_return_sequences", 16, 17, "num_return_sequences must be at most 16, got 17"),
    ("logprobs", 20, 21, "logprobs must be at most 20, got 21"), ("prompt_logprobs", 20, 21, "prompt_logprobs must be at most 20, got 21"),
    ("prompt_lookup_num_tokens", 64, 65, "prompt_lookup_num_tokens must be at most 64, got 65"),
    ("num_assistant_tokens", 64, 10**4000, "num_assistant_tokens must be at most 64"),
    ("best_of", 16, 17, "best_of must be at most 16, got 17"), ("stop", ["x"] * 4, ["x"] * 5, "stop has 5 texts, more than the 4"),
    ("stop", "x" * 64, "x" * 65, "stop has 65 characters, more than the 64"), ("stop", ["x", "y" * 64], ["x", "y" * 65], "stop[1] has 65 characters, more than the 64"),
    ("prompt", ["a"] * 64, ["a"] * 65, "65 prompts are more than the 64"), ("prompt", [[5]] * 64, [[5]] * 65, "65 prompts are more than the 64"),
    ("logit_bias", {str(n % 100): 1 for n in range(100)}, {str(n): 1 for n in range(1025)}, "logit_bias has 1025 entries, more than the 1024"),
    ("bad_words", ["a"] * 1024, ["a"] * 1025, "bad_words has 1025 entries, more than the 1024"),
    ("bad_words_ids", [[5]] * 1024, [[5] * 1025], "bad_words_ids has 1025 entries, more than the 1024"),
    ("sequence_bias", [[[5, 6], 1.0]] * 1024, [[[5, 6], 1.0]] * 1025, "sequence_bias has 1025 entries, more than the 1024"),
    ("stop_token_ids", [5] * 1024, [5] * 1025, "stop_token_ids has 1025 entries, more than the 1024"),
    ("suppress_tokens", [5] * 1024, [5] * 1025, "suppress_tokens has 1025 entries, more than the 1024"),
    ("hide", ["a"] * 16, ["a"] * 17, "hide has 17 entries, more than the 16"),
    ("filter_order", ["temperature"], ["temperature"] * 1025, "filter_order has 1025 entries, more than the 1024"),
    ("forced_text", {}, {str(n): "a" for n in range(1025)}, "forced_text has 1025 entries, more than the 1024"),
    ("allowed_token_ids", [5] * 128, [5] * 129, "allowed_token_ids has 129 entries, more than the 128"),
    ("dry_sequence_breakers", ["a"] * 64, ["a"] * 65, "dry_sequence_breakers has 65 entries, more than the 64"),
    ("response_format", formatted(sized(ROOM)), formatted(sized(ROOM + 1)), "response_format has 65537 bytes as JSON, more than the 65536"),
    ("response_format", formatted(deep(62)), formatted(deep(63)), "response_format has more than 64 objects and lists in one another"),
    ("json_schema", sized(65536), sized(65537), "json_schema has 65537 bytes as JSON, more than the 65536"),
    ("json_schema", json.dumps(deep(64)), json.dumps(deep(65)), "json_schema has more than 64 objects and lists in one another"),
    ("guided_json", deep(64), deep(65), "guided_json has more than 64 objects and lists in one another"),
    ("structured_outputs", {"json": deep(63)}, {"json": deep(64)}, "structured_outputs has more than 64 objects and lists in one another"),
    ("choice", ["a"] * 4000, ["a"] * 20000, "choice has 80001 bytes as JSON, more than the 65536"),
    ("trie", ["a"] * 4000, ["a"] * 20000, "trie has 80001 bytes as JSON, more than the 65536"),
    ("regex", "a" * 9000, "a" * 65537, "regex has 65537 bytes, more than the 65536"), ("grammar", 'start: "a"', "a" * 65537, "grammar has 65537 bytes, more than the 65536"),
    ("stop_regex", "x" * 256, "x" * 257, "stop_regex has 257 characters, more than the 256"), ("prefix", None, "x" * 65537, "prefix has 65537 bytes, more than the 65536"),
    ("metadata", {"a": "x"}, {"a": nested(65)}, "metadata has more than 64 objects and lists in one another"),
]  # fmt: skip
BESIDE = {  # what a field needs to be answered
    "n": {"temperature": 1}, "num_return_sequences": {"temperature": 1}, "best_of": {"temperature": 1}, "num_assistant_tokens": {"assistant_early_exit": 1},
    "dry_sequence_breakers": {"dry_multiplier": 1}, "filter_order": {"temperature": 1.0}, "hide": {"prompt": "bac"},
}  # fmt: skip


@pytest.mark.parametrize("field, at, beyond, told", AT_AND_BEYOND, ids=[f"{field}-{n}" for n, (field, *_) in enumerate(AT_AND_BEYOND)])
def test_a_setting_at_its_limit_is_answered_and_one_beyond_is_refused_by_name(client, field, at, beyond, told):
    post = lambda value: client.post("/v1/completions", json={**GREEDY, **BESIDE.get(field, {}), field: value})
    assert (response := post(at)).status_code == 200, response.text[:200]
    assert refused(response := post(beyond), field, told), response.text[:200]


def test_a_chats_likeliest_tokens_and_tools_at_their_limits(chat):
    tool = lambda n, parameters=None: {"type": "function", "function": {"name": f"f{n}", "parameters": parameters or {"type": "object"}}}
    objects = {**sized(65536), "type": "object"}
    assert chat(logprobs=True, top_logprobs=20).status_code == 200
    assert refused(chat(logprobs=True, top_logprobs=21), "top_logprobs", "top_logprobs must be at most 20, got 21")
    assert "functions" not in chat(tools=[tool(n) for n in range(128)]).json()["error"]["message"]  # too long for the model alone
    assert refused(chat(tools=[tool(n) for n in range(129)]), "tools", "tools has 129 functions, more than the 128")
    assert "positions" in chat(tools=[tool(0, objects)]).json()["error"]["message"]
    assert refused(chat(tools=[tool(0), tool(1, {**sized(65537), "type": "object"})]), "tools", "tools[1].function.parameters has 65537 bytes")
    assert "positions" in chat(tools=[tool(0, deep(64))]).json()["error"]["message"]
    assert refused(chat(tools=[tool(0, deep(65))]), "tools", "tools[0].function.parameters has more than 64 objects and lists")


def test_calls_of_a_message_at_their_limit(chat):
    """A template may leave them out, so that the model's positions do not bound them."""
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    at, beyond = ([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call] * n}] for n in (limits.CALLS, limits.CALLS + 1))
    assert chat(messages=beyond).json()["error"]["message"] == "messages[1].tool_calls has 129 calls, more than the 128 that a message may have: leave some out"
    assert "calls" not in chat(messages=at).json().get("error", {}).get("message", "")


@pytest.mark.parametrize("how", [{"prompt": "a "}, {"prompt": "a ", "add_special_tokens": False}, {"messages": "a "}], ids=["text", "plain", "messages"])
def test_a_text_far_beyond_what_is_counted_is_refused_soon(chat_client, monkeypatch, how):
    """To tokenize two megabytes takes a minute of a core, whoever else asks."""
    monkeypatch.setattr("seodang.infer.server.tokens.TOKENIZED", 1 << 11)
    name, said = next(iter(how.items()))
    for times, status in ((500, 200), (100_000, 400)):
        given = said * times if name == "prompt" else [{"role": "user", "content": said * times}]
        answer = chat_client.post("/tokenize", json={**how, name: given})
        assert answer.status_code == status
    assert answer.json()["error"]["message"] == f"{name} has more than 2048 tokens, which are not counted here: send less at a time"


def test_a_chat_far_beyond_the_model_is_refused_in_its_own_words(chat):
    user, long = CHAT["messages"][0], {"role": "assistant", "content": "a" * 1_000_000}
    told = "messages has 2049 messages of at least a token each, more than the 2048 positions of the model: leave some out"
    assert refused(chat(messages=[user] * 2049), "messages", told)
    assert "messages" not in chat(messages=[{**user, "content": ""}] * 2048).json()["error"]["message"]  # by their tokens
    told = "the prompt has more than 2048 tokens, which with max_tokens=1 is more than the 2048 positions of the model"
    assert refused(chat(messages=[{**user, "content": "a" * 1_000_000}]), "max_tokens", told)
    told = "messages[1].content has more than 2048 tokens, more than the 2048 positions of the model: shorten it"
    assert refused(chat(messages=[user, long], continue_final_message=True, add_generation_prompt=False), "messages", told)


def test_inputs_of_embeddings_at_their_limit_which_is_what_may_wait_where_that_is_less(client, tiny_llama, byte_tokenizer):
    with LiveEngine(tiny_llama, byte_tokenizer(), max_rows=32, max_waiting=2000) as engine, TestClient(build_app(Served(engine, "tiny"))) as roomy:
        answer = roomy.post("/v1/embeddings", json={"input": [chr(97 + n % 26) for n in range(1024)]}).json()
        assert [each["index"] for each in answer["data"]] == list(range(1024)) and answer["usage"]["prompt_tokens"] == 1024
        assert answer["data"][1023]["embedding"] == pytest.approx(answer["data"][1023 % 26]["embedding"], abs=1e-6)
        assert refused(roomy.post("/v1/embeddings", json={"input": ["a"] * 1025}), "input", "1025 inputs are more than the 1024")
    assert client.post("/v1/embeddings", json={"input": ["a"] * 100}).status_code == 200
    assert refused(client.post("/v1/embeddings", json={"input": ["a"] * 101}), "input", "101 inputs are more than the 100")


def test_a_body_of_two_mebibytes_is_read_and_one_byte_more_is_a_413(client):
    body = json.dumps({**GREEDY, "user": ""}).encode()
    padded = lambda size: body[:-1] + b" " * (size - len(body)) + b"}"
    send = lambda size: client.post("/v1/completions", content=padded(size), headers={"Content-Type": "application/json"})
    assert send(2 << 20).status_code == 200
    response = send((2 << 20) + 1)
    assert response.status_code == 413 and "2097153 bytes, more than the 2097152" in response.json()["error"]["message"]


def test_a_body_too_deep_is_refused_before_anything_recurses_into_it(client):
    told = "the body has more than 100 objects and lists in one another"
    post = lambda depth: client.post("/v1/completions", content='{"prompt": ' + "[" * depth + "]" * depth + "}", headers={"Content-Type": "application/json"})
    assert post(99).json()["error"]["param"] == "prompt"
    assert refused(post(100), None, told) and refused(post(900), None, told)
    assert refused(post(100_000), None, "the body is not JSON: lists or objects lie too deep")


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/tokenize"])
def test_names_of_fields_are_bounded_in_number_and_length(client, path):
    """Each is looked for in what a mistake is told by: a hundred thousand, or one of a megabyte, would hold all others for half a minute."""
    asked = {"prompt" if path != "/v1/embeddings" else "input": "abc"}
    for told, body in {
        "the body has 513 fields, more than the 512": {**asked, **{f"k{n}": 1 for n in range(limits.FIELDS + 1 - len(asked))}},
        "the body has a field whose name has 129 characters": {**asked, "k" * (limits.FIELD_LENGTH + 1): 1},
        "": {**asked, **{f"k{n}": 1 for n in range(limits.FIELDS - 2)}, "k" * limits.FIELD_LENGTH: 1},
    }.items():
        error = client.post(path, json=body).json()["error"]
        assert error["message"].startswith(told) and (told or "unknown" in error["message"])


def test_the_document_tells_the_limits(client):
    schema = client.get("/openapi.json").json()["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fits = lambda **fields: Draft202012Validator(schema).is_valid({**GREEDY, **fields})
    untold = {"bad_words_ids", "prompt", "response_format", "json_schema", "guided_json", "structured_outputs", "choice", "trie", "metadata", "allowed_token_ids"}
    for field, at, beyond, _ in AT_AND_BEYOND:
        assert fits(**{field: at}) and (field in untold or not fits(**{field: beyond})), field
