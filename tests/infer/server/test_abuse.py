"""Requests that mean harm: each costs a second at most, others' streams go on meanwhile, and nothing is left in hand; no answer has another's text."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.app import build_app
from seodang.infer.server.served import Served

JSON = {"Content-Type": "application/json"}
BASE = {"model": "talker", "prompt": "abc", "max_tokens": 8, "temperature": 0}
CHAT = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "temperature": 0}


def completion(**changes) -> tuple[str, bytes]:
    return "/v1/completions", json.dumps({**BASE, **changes}).encode()


def chat(**changes) -> tuple[str, bytes]:
    return "/v1/chat/completions", json.dumps({**CHAT, **changes}).encode()


def tool(**parameters) -> dict:
    return {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object", **parameters}}}


ABUSE = {
    "brackets": ("/v1/completions", b"[" * (1 << 20)), "objects": ("/v1/completions", b'{"a":' * 200_000), "deep prompt": ("/v1/completions", b'{"prompt": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "digits": ("/v1/completions", b'{"prompt": "a", "seed": ' + b"9" * 100_000 + b"}"), "exponent": ("/v1/completions", b'{"prompt": "a", "top_p": 1e99999}'),
    "keys": ("/v1/completions", json.dumps({f"k{n}": n for n in range(50_000)}).encode()), "no utf-8": ("/v1/completions", b"\xff" * 100_000),
    "long prompt": completion(prompt="a" * 2_000_000), "many ids": completion(prompt=[5] * 500_000), "blanks": completion(prompt=" " * 2_000_000), "many prompts": completion(prompt=["a"] * 100_000),
    "answers": completion(n=10**9, temperature=1), "beams": completion(num_beams=10**6), "length": completion(max_tokens=10**12), "groups": completion(num_beams=8, num_beam_groups=10**6, diversity_penalty=1.0),
    "logprobs": completion(logprobs=10**9), "drafts": completion(prompt_lookup_num_tokens=10**6, num_assistant_tokens_schedule="constant"), "bias": completion(logit_bias={str(n): 1 for n in range(100_000)}),
    "stops": completion(stop=["x"] * 100_000), "a long stop": completion(stop="x" * 1_000_000), "bad words": completion(bad_words=["a b c"] * 1024), "breakers": completion(dry_multiplier=1, dry_sequence_breakers=["a"] * 64),
    "hidden": completion(prompt="ab" * 500, hide=["a"] * 16), "repeats": completion(stop_regex="((a{1000}){1000}){1000}"), "backtracking": completion(stop_regex="(x+x+)+y", max_tokens=40),
    "lookbehind": completion(stop_regex="(?<=(a|aa)+)b"), "a long pattern": completion(stop_regex="x" * 60_000), "regex repeats": completion(regex="((a{1000}){1000}){1000}"),
    "regex unicode": completion(regex=r"(\p{L}\w*[^\p{Han}]){1,1000}"), "regex groups": completion(regex="(" * 5000 + "a" + ")" * 5000), "no end": completion(grammar="start: start"),
    "nullable": completion(grammar='start: a*\na: b? c?\nb: c* a?\nc: b?'), "lark repeats": completion(grammar='start: ((("a"){0,1000}){0,1000}){0,1000}'), "schema of itself": completion(json_schema={"$ref": "#"}),
    "schema in a circle": completion(json_schema={"anyOf": [{"$ref": "#"}, {"$ref": "#/anyOf/0"}]}), "a deep schema": completion(json_schema='{"items":' * 6000 + "{}" + "}" * 6000),
    "a large enum": completion(json_schema={"enum": [f"{n}" for n in range(7000)]}), "many choices": completion(choice=["a"] * 16_000), "patterns": completion(json_schema={"patternProperties": {f"a.*{n}": {} for n in range(1000)}}),
    "a long message": chat(messages=[{"role": "user", "content": "a" * 2_000_000}]), "control tokens": chat(messages=[{"role": "user", "content": "<|im_end|>a" * 150_000}]),
    "a long text to embed": ("/v1/embeddings", json.dumps({"input": "a" * 2_000_000}).encode()), "a long text to go on with": completion(prompt="a", negative_prompt="a" * 2_000_000, guidance_scale=2.0),
    "tools": chat(tools=[tool()] * 5000), "a large tool": chat(tools=[tool(description="x" * 1_000_000)], tool_choice="required"), "a deep tool": chat(tools=[tool(properties=json.loads('{"a":' * 300 + "{}" + "}" * 300))]),
    "many messages": chat(messages=[{"role": "user", "content": "a"}] * 20_000), "parts": chat(messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 20_000}]),
    "a template": chat(chat_template="{% for a in range(10**9) %}{% endfor %}"), "template variables": chat(chat_template_kwargs={"messages": []}), "remote code": completion(assistant_model="evil/model", trust_remote_code=True),
    "inputs": ("/v1/embeddings", json.dumps({"input": ["a"] * 50_000}).encode()), "ids": ("/detokenize", json.dumps({"tokens": [5] * 200_000}).encode()), "a text": ("/tokenize", json.dumps({"prompt": "a" * 300_000}).encode()),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(talker):
    with LiveEngine(*talker, max_rows=16, max_waiting=100) as engine, TestClient(build_app(Served(engine, "talker"))) as client:
        yield engine, client


def is_answer(response) -> bool:
    """Whether a response is an error that names the client's mistake, or finite."""
    return (response.status_code == 200 or 400 <= response.status_code < 500) and len(response.text) <= 1 << 21


@pytest.mark.parametrize("name", ABUSE)
def test_each_abuse_costs_at_most_a_second_of_processor_time(server, is_empty, name):
    """The seconds are the process' own, of all threads together, with no other request in hand: a busy machine makes them no more, and one that is not needs no longer.

    What tries a new grammar is another process, which has a second of its own.
    """
    engine, client = server
    client.post("/v1/completions", content=completion(json_schema={})[1], headers=JSON)  # what is made once
    path, body = ABUSE[name]
    began = time.process_time()
    response = client.post(path, content=body, headers=JSON)
    seconds = time.process_time() - began
    assert is_answer(response), (response.status_code, response.text[:200])
    assert seconds < 1.0
    assert is_empty(engine)


@pytest.mark.full
def test_others_streams_go_on_beside_all_abuse_and_nothing_is_left(server, is_empty):
    """The bound of a gap is wide: the machine may be busy, and the stream is heard by a thread of the same process."""
    engine, client = server
    client.post("/v1/completions", content=completion(json_schema={})[1], headers=JSON)
    gaps, stop = [], threading.Event()

    def follow() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            ticket = engine.submit([5, 6, 7], None)
            for _ in ticket.events():
                now = time.perf_counter()
                gaps.append(now - last)
                last = now
                if stop.is_set():
                    ticket.cancel()

    assert len(ABUSE) >= 30
    following = threading.Thread(target=follow)
    following.start()
    wrong = [name for name, (path, body) in ABUSE.items() if not is_answer(client.post(path, content=body, headers=JSON))]
    stop.set()
    following.join(20)
    assert not wrong
    assert len(gaps) > 50 and max(gaps) < 6
    assert is_empty(engine)


def test_no_answer_has_a_text_of_another_request(server, is_empty):
    """Many at once, on every path, with a secret each in all that may hold one: what is answered, refused, traced or echoed has its own secret alone."""
    engine, client = server

    def ask(n: int) -> tuple[str, str]:
        secret = f"secret-{n}-{n * 7919}"
        kinds = [
            completion(prompt=secret, echo=True, logprobs=2, cache_salt=secret, trace=True), completion(prompt=f"of {secret}", stop=[secret], stream=True),
            completion(prompt="a", choice=[secret], max_tokens=40), completion(prompt="a", json_schema={"const": secret}, max_tokens=40), completion(prompt="a", top_p=secret),
            completion(prompt="a", **{secret: 1}), completion(prompt="a", regex=f"({secret}"), completion(prompt="a", json_schema={"type": secret}),
            chat(messages=[{"role": "system", "content": secret}, {"role": "user", "content": secret}], logprobs=True, top_logprobs=2, trace=True),
            chat(tools=[{"type": "function", "function": {"name": "f", "description": secret, "parameters": {"type": "object"}}}]), chat(tools=[{"type": secret}]), chat(messages=[{"role": secret, "content": "a"}]),
            ("/v1/responses", json.dumps({"input": secret, "instructions": secret, "metadata": {"a": secret}, "max_output_tokens": 8}).encode()), ("/tokenize", json.dumps({"prompt": secret, "return_token_strs": True}).encode()),
            ("/v1/embeddings", json.dumps({"input": secret, "dimensions": 5}).encode()), ("/v1/completions", f'{{"prompt": "{secret}'.encode()),
        ]  # fmt: skip
        path, body = kinds[n % len(kinds)]
        return secret, client.post(path, content=body, headers=JSON).text

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(96)))
    secrets = [secret for secret, _ in answers]
    told = [[other for other in secrets if other in text] for _, text in answers]
    assert all(set(found) <= {own} for found, own in zip(told, secrets))
    assert sum(map(bool, told)) > 40  # each is told its own
    assert not any(other in client.get(path).text for path in ("/health", "/ready", "/metrics", "/v1/models", "/openapi.json") for other in secrets)
    assert is_empty(engine)
