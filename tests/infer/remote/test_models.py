"""Which model a server has, found before anything is asked of it."""

import socket
import sys

import pytest

from seodang.data.errors import UserError
from seodang.infer.remote.connection import LEADING, Server
from seodang.infer.remote.models import Found, model_at

TWO = [{"id": "pupil"}, {"id": "teacher"}]
ADAPTED = [{"id": "pupil", "owned_by": "seodang", "parent": None, "defaults": {"temperature": 0.6}}, {"id": "fine", "owned_by": "seodang", "parent": "pupil"}]


@pytest.mark.parametrize("models, name, found", [
    (TWO[:1], "default", Found("pupil")), (TWO, "teacher", Found("teacher")), (ADAPTED, "default", Found("pupil", True, {"temperature": 0.6})),
    (ADAPTED, "fine", Found("fine", True)), ([{"id": "default"}, *TWO], "default", Found("default")),
])  # fmt: skip
def test_a_model_is_found_by_its_name_or_as_the_only_one(scripted_server, models, name, found):
    server = scripted_server()
    server.models = models
    assert model_at(Server(server.base_url, "secret-key"), name) == found
    assert [(path, headers["Authorization"]) for path, _, headers in server.asked] == [("/v1/models", "Bearer secret-key")]


@pytest.mark.parametrize("models, name, message", [
    (TWO, "default", "name one of its models: it has pupil, teacher"), (TWO, "parent", "it has no model 'parent': it has pupil, teacher"),
    ([], "default", "lists no models: give as MODEL what it calls"), ((500, {}), "default", "HTTP 500"), ([{"id": f"m{n}"} for n in range(30)], "x", "m0, .*, m19 and 10 more"), ([{"id": "a\x1b[2J"}], "x", r"it has a \[2J"),
    ((200, {"models": []}), "x", "does not list models as OpenAI's protocol has it"), ((200, {"data": [1]}), "x", "does not list models"), ((200, b"<html>"), "x", "the answer is not JSON: <html>"),
    ((401, {"error": {"message": "bad key secret-key"}}), "x", r"HTTP 401: bad key \(the key\) \(the key is not taken\)"), ((404, {}), "default", "HTTP 404"),
])  # fmt: skip
def test_a_server_without_the_model_is_refused_with_what_it_has(scripted_server, models, name, message):
    server = scripted_server()
    server.models = models
    with pytest.raises(UserError, match=message) as refused:
        model_at(Server(server.base_url, "secret-key", retries=0), name)
    assert server.base_url in str(refused.value)


@pytest.mark.parametrize("status", [404, 405, 500, 501])
def test_a_server_that_lists_no_models_is_believed_to_have_the_one_that_is_named(scripted_server, status):
    """Nor is it asked again for a list that it fails to make, as transformers' does where there is no cache of the hub."""
    server = scripted_server()
    server.models = (status, {})
    assert model_at(Server(server.base_url), "pupil") == Found("pupil") and len(server.asked) == 1
    server.models = []
    assert model_at(Server(server.base_url), "pupil") == Found("pupil")  # as transformers' does with a folder
    server.models = (status, {})
    with pytest.raises(UserError, match=f"HTTP {status}.*with its /v1?"):
        model_at(Server(server.base_url.removesuffix("/v1"), retries=0), "pupil")


def test_a_server_that_is_not_there_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for host in (f"127.0.0.1:{port}", "no.such.host.invalid", "a" * 70):
        with pytest.raises(UserError, match=r"http://.*/v1/models: .*: is this the address of a server that runs"):
            model_at(Server(f"http://{host}/v1"), "pupil")


@pytest.mark.parametrize("name, value, told", [
    ("ALL_PROXY", "socks5://user:pass@127.0.0.1:9", "in ALL_PROXY [(]a SOCKS proxy needs the package socksio[)]: mend it, or unset it"),
    ("http_proxy", "ftp://user:pass@127.0.0.1:9", "in http_proxy [(]ValueError[)]"), ("HTTPS_PROXY", "http://user:pa/ss@127.0.0.1", "in HTTPS_PROXY [(]InvalidURL[)]"),
    ("SSL_CERT_FILE", "no such file", "in SSL_CERT_FILE [(]No such file or directory[)]"),
])  # fmt: skip
def test_an_environment_that_leads_nowhere_is_told_without_what_it_hides(monkeypatch, name, value, told):
    for each in (each for given in LEADING for each in (given, given.lower())):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(UserError, match=told) as refused:
        model_at(Server("https://no.such.host.invalid/v1"), "pupil")
    assert not any(hidden in str(refused.value) for hidden in ("user", "pass", "pa/ss"))


def test_one_that_is_busy_is_asked_again(scripted_server):
    server = scripted_server()
    server.models = lambda: (503, {}, {"retry-after-ms": "1"}) if len(server.asked) < 3 else TWO
    assert model_at(Server(server.base_url), "pupil") == Found("pupil") and len(server.asked) == 3
