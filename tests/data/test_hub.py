"""Names on the hub: refused or let through before anything waits for it."""

import socket
import time

import pytest
from huggingface_hub import constants

from seodang.data import hub
from seodang.data.errors import UserError


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A hub with an empty cache that may be asked; `answers` says what comes of it, and the list is what was asked of it."""
    calls = []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "_silent", set())
    monkeypatch.delenv("HF_DATASETS_CACHE", raising=False)
    monkeypatch.setattr(hub, "answers", lambda endpoint: calls.append(endpoint))
    return calls


@pytest.mark.parametrize("name", ["a/b/c", "two words", "/nowhere", "./nowhere", "../x", "~/x", "", "-x", "owner/", "/name", "a//b", "a:b", "네이버/x"])
def test_what_cannot_be_a_name_is_refused_without_asking(name, asked):
    with pytest.raises(UserError, match="is not a folder, nor a name on the hub"):
        hub.check_hub_name(name)
    assert not asked


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "owner/name_2", "_x/y"])
def test_a_name_is_let_through_where_the_hub_answers(name, asked, monkeypatch):
    monkeypatch.setattr(hub, "answers", lambda endpoint: True)
    hub.check_hub_name(name)
    assert not constants.is_offline_mode()


def test_a_name_that_nobody_has_is_refused_where_the_hub_does_not_answer(asked, monkeypatch):
    with pytest.raises(UserError, match=f"model 'owner/name' is not a folder, nor in the hub's cache, and {constants.ENDPOINT} does not answer"):
        hub.check_hub_name("owner/name")
    with pytest.raises(UserError, match="dataset 'owner/name' is no file or folder, nor in the hub's cache"):
        hub.check_hub_name("owner/name", "dataset")
    assert asked == [constants.ENDPOINT] * 2 and not constants.is_offline_mode()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids"):
        hub.check_hub_name("owner/name")
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ("model", "hub/models--owner--name/snapshots/1"),
        ("dataset", "hub/datasets--owner--name/snapshots/1"),
        ("dataset", "datasets/owner___name/x"),
    ],
)
def test_what_the_cache_has_is_used_and_the_hub_left_alone_where_it_does_not_answer(kind, place, asked, tmp_path, caplog):
    (tmp_path / place).mkdir(parents=True)
    with pytest.raises(UserError):
        hub.check_hub_name("owner/name", {"model": "dataset", "dataset": "model"}[kind])
    hub.check_hub_name("owner/name", kind)
    assert constants.is_offline_mode() and "owner/name is read from the hub's cache" in caplog.text
    hub.check_hub_name("owner/name", kind)
    with pytest.raises(UserError, match="does not answer: check the name, or the connection"):  # nobody has set HF_HUB_OFFLINE
        hub.check_hub_name("owner/other", kind)
    assert len(asked) == 2  # once offline, it is asked no more


@pytest.fixture
def listening():
    """The address of one who takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "127.0.0.1:%d" % server.getsockname()[1]


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


NOBODY = "http://127.0.0.1:9"


def test_a_hub_that_takes_connections_answers_however_slow_it_is(listening, no_proxies):
    assert hub.answers.__wrapped__(f"http://{listening}")
    assert not hub.answers.__wrapped__(NOBODY)
    assert not hub.answers.__wrapped__("http://nowhere.invalid")


def test_the_way_may_lead_through_a_proxy(listening, no_proxies, monkeypatch):
    monkeypatch.setenv("http_proxy", listening)
    assert hub.answers.__wrapped__(NOBODY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not hub.answers.__wrapped__(NOBODY)
    monkeypatch.delenv("http_proxy")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("all_proxy", f"socks5://{listening}")
    assert hub.answers.__wrapped__(NOBODY)


def test_a_look_up_that_hangs_is_not_waited_for(no_proxies, monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1) or [])
    begun = time.monotonic()
    assert not hub.answers.__wrapped__("https://example.invalid") and time.monotonic() - begun < 0.9
