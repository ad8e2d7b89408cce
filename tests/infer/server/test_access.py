"""Who may ask: keys, names of the server, and nothing that a web page could send for its reader."""

import logging
import time

import pytest
from fastapi.testclient import TestClient

from seodang.data.errors import UserError
from seodang.infer.engine.live import LiveEngine
from seodang.infer.server.app import build_app
from seodang.infer.server.guard.access import Access
from seodang.infer.server.served import Served
from seodang.recipes import serve

BODY = {"model": "tiny", "prompt": "abc", "max_tokens": 1, "temperature": 0}
KEYS = ("first-key-4711", "second-key-0815")
LOOPBACK = Access(hosts=())


@pytest.fixture
def ask(tiny_llama, tiny_tokenizer):
    """`ask(access)`: a client of a server to which those have access."""
    engines = []

    def client(access: Access) -> TestClient:
        engines.append(LiveEngine(tiny_llama, tiny_tokenizer, max_rows=2, max_waiting=2))
        return TestClient(build_app(Served(engines[-1], "tiny"), access))

    yield client
    for engine in engines:
        engine.close()


def post(client, **headers):
    return client.post("/v1/completions", json=BODY, headers=headers)


def test_every_route_but_health_and_the_page_asks_for_a_key(ask):
    client = ask(Access(KEYS))
    paths = client.get("/openapi.json", headers={"Authorization": f"Bearer {KEYS[0]}"}).json()["paths"]
    asked = [(method, path.replace("{name}", "tiny")) for path, methods in paths.items() for method in methods]
    asked += [("get", "/docs"), ("get", "/openapi.json"), ("get", "/no/such/path"), ("options", "/v1/completions"), ("get", "/health/"), ("get", "http://testserver//health"), ("get", "http://testserver//")]
    assert len(asked) > 12
    for method, path in asked:
        response = client.request(method.upper(), path)
        assert (response.status_code == 401) is (path not in ("/health", "/ready")), path
    assert client.get("/").status_code == 200
    error = response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_api_key")
    assert response.headers["www-authenticate"] == "Bearer" and response.headers["x-request-id"]


def test_each_of_several_keys_opens_and_anything_else_does_not(ask, caplog):
    caplog.set_level(logging.DEBUG)
    client = ask(Access(KEYS))
    for given in (f"Bearer {KEYS[0]}", f"bearer  {KEYS[1]} "):
        assert post(client, Authorization=given).status_code == 200
    wrong = ["", "Bearer", "Bearer ", KEYS[0], f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}x", f"Bearer {KEYS[0][:-1]}", f"Bearer {KEYS[0]} {KEYS[1]}", "Bearer \u00e9".encode("latin-1")]
    for given in wrong:
        response = post(client, Authorization=given)
        assert response.status_code == 401 and KEYS[0] not in response.text
    told = "\n".join(str(record.__dict__) for record in caplog.records if record.name.startswith("seodang"))
    assert "401" in told and not any(key in told for key in KEYS)
    assert KEYS[0] not in str(Access(KEYS))


@pytest.mark.parametrize("key", ["", "a b", "clé", "a\nb"])
def test_a_key_that_no_header_could_have_is_refused_and_not_told(key):
    with pytest.raises(UserError, match="must be printable ASCII without blanks") as raised:
        Access((key,))
    assert not key or key not in str(raised.value)


def test_keys_are_compared_in_full_whatever_is_sent(monkeypatch):
    compared = []
    monkeypatch.setattr("seodang.infer.server.guard.access.hmac.compare_digest", lambda given, key: compared.append(key) or given == key)
    assert Access(KEYS).has_key(f"Bearer {KEYS[0]}") and not Access(KEYS).has_key("Bearer x")
    assert compared == [key.encode() for key in KEYS] * 2


def test_a_page_of_another_site_gets_no_leave_to_ask(ask):
    """CORS is off: the preflight that a browser sends for JSON gets no header that allows anything, nor does the answer itself."""
    client = ask(Access())
    origin = {"Origin": "https://evil.example"}
    preflight = client.options("/v1/completions", headers={**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"})
    assert preflight.status_code == 405
    for response in (preflight, post(client, **origin), client.get("/v1/models", headers=origin)):
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_body_that_a_page_could_send_without_leave_is_a_415(ask):
    client = ask(Access())
    send = lambda kind: client.post("/v1/completions", content=b'{"prompt": "abc", "max_tokens": 1}', headers={} if kind is None else {"Content-Type": kind})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a", "", None, "text/plain; a=application/json", "application/jsonp"):
        response = send(kind)
        assert response.status_code == 415 and "send the header Content-Type: application/json" in response.json()["error"]["message"], kind
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"):
        assert send(kind).status_code == 200, kind
    assert client.post("/health", content=b"a").status_code == 405 and client.post("/nowhere", content=b"a").status_code == 404


def test_a_server_of_this_machine_alone_is_called_by_its_names_alone(ask):
    client = ask(LOOPBACK)
    status = lambda host: client.get("/v1/models", headers={"Host": host}).status_code
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:8000", "127.1.2.3:80", "[::1]", "[::1]:8000"):
        assert status(host) == 200, host
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "10.0.0.1", "", "[::2]:8000", "127.0.0.1@evil"):
        assert status(host) == 403, host
    error = client.get("/health", headers={"Host": "evil.example"}).json()["error"]
    assert error["code"] == "host_not_allowed" and "'evil.example'" in error["message"] and "--allowed_hosts" in error["message"]
    named = ask(Access(hosts=("models.lan",)))
    assert [named.get("/v1/models", headers={"Host": host}).status_code for host in ("Models.LAN:80", "localhost", "other.lan")] == [200, 200, 403]


def test_the_command_takes_keys_from_its_environment_too_and_warns_where_everybody_may_ask(monkeypatch, capsys):
    monkeypatch.delenv(serve.KEYS, raising=False)
    open_ = lambda alone, **given: serve.access_of(serve.Serve(**given), alone)
    assert open_(True) == Access((), ())
    assert open_(True, allowed_hosts=["a.lan"]) == Access((), ("a.lan",)) and not capsys.readouterr().err
    assert open_(False, host="0.0.0.0") == Access((), None)
    assert capsys.readouterr().err == "warning: whoever reaches 0.0.0.0 may ask this server: give --api_key, or serve at 127.0.0.1\n"
    monkeypatch.setenv(serve.KEYS, " b1,b2 b3\n")
    assert open_(False, api_key=["a"]) == Access(("a", "b1", "b2", "b3"), None) and not capsys.readouterr().err
    with pytest.raises(UserError, match="an api_key must be"):
        open_(True, api_key=[""])


def test_a_refusal_costs_no_reading(ask):
    """Of two mebibytes that come without a key nothing is read."""
    client, began = ask(Access(KEYS)), time.perf_counter()
    assert client.post("/v1/completions", content=b"[" * (2 << 20), headers={"Content-Type": "application/json"}).status_code == 401
    assert time.perf_counter() - began < 2
