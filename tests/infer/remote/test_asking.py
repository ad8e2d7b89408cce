"""Many prompts asked of a server that misbehaves: what passes is asked again, what does not is told in its place, and nothing is asked for nothing."""

import threading
import time
from collections import Counter
from email.utils import formatdate

import pytest

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.remote import connection
from seodang.infer.remote.asking import SAME_WORDS, UNANSWERED, Asking, Question
from seodang.infer.remote.connection import GivenUp, Server, seconds_to_wait


def by_prompt(results) -> dict[int, tuple]:
    return {result.prompt_index: (result.text, result.error) for result in results}


def test_answers_are_those_of_their_prompts_and_what_they_cost_is_told(scripted_server, ask):
    server = scripted_server(lambda body: scripted_server.said(f"re {body['prompt']}"))
    results = [*ask(server, ["a", "b", "c"], SamplingParams(seed=5))]
    assert by_prompt(results) == {0: ("re a", None), 1: ("re b", None), 2: ("re c", None)}
    assert {(result.prompt_length, result.tokens, result.seed, result.finish_reason) for result in results} == {(3, 2, 5, "eos")}
    assert sorted(server.prompts) == ["a", "b", "c"]
    assert {headers["Authorization"] for *_, headers in server.asked} == {"Bearer secret-key"}


PASSING = {
    "429": (429, {"error": {"message": "slowly"}}), "500": (500, b"oops"), "502, a page": (502, b"<html>Bad Gateway</html>", {"Content-Type": "text/html"}),
    "503": (503, {}), "408": (408, {}), "hangs up": None, "nothing": (200, b""), "half an answer": (200, b'{"choices": [{"te'), "a page": (200, b"<html>hello</html>"),
    "cut": (200, {"choices": []}, {}, 5), "no JSON number": (200, b'{"choices": NaN}'), "not UTF-8": (200, b'"\xff"'), "too deep": (200, b'{"choices": ' + b"[" * 940 + b"]" * 940 + b"}"),
    "broken gzip": (200, b"abc", {"Content-Encoding": "gzip"}),
}  # fmt: skip


@pytest.mark.parametrize("trouble", PASSING.values(), ids=PASSING)
def test_what_passes_is_asked_again_until_it_is_answered(scripted_server, ask, trouble):
    times = Counter()

    def script(body):
        times[body["prompt"]] += 1
        return trouble if times[body["prompt"]] <= 2 else scripted_server.said("Yes.")

    asking = ask(scripted_server(script), ["a", "b"])
    assert by_prompt(asking) == {0: ("Yes.", None), 1: ("Yes.", None)}
    assert times == {"a": 3, "b": 3} and asking.retried == 4


@pytest.mark.parametrize("trouble", PASSING.values(), ids=PASSING)
def test_what_does_not_pass_is_given_up_after_the_retries_and_told_in_its_place(scripted_server, ask, trouble):
    times = Counter()

    def script(body):
        times[body["prompt"]] += 1
        return trouble if body["prompt"] == "b" else scripted_server.said("Yes.")

    found = by_prompt(ask(scripted_server(script), ["a", "b", "c"], concurrency=1))
    assert found[0] == found[2] == ("Yes.", None)
    assert found[1][0] == "" and found[1][1] and times == {"a": 1, "b": 3, "c": 1}


FOR_GOOD = {
    "400": ((400, {"error": {"message": "too long"}}), "HTTP 400: too long"), "422": ((422, {"detail": [{"msg": "no"}]}), 'HTTP 422: [{"msg": "no"}]'),
    "413, a page": ((413, b"<html>Too large</html>", {"Content-Type": "text/html"}), "HTTP 413: Request Entity Too Large"),
    "409": ((409, {"error": "busy"}), "HTTP 409: busy"), "403": ((403, {"message": "flagged"}), "HTTP 403: flagged"),
    "a 408 of its own time": ((408, {"error": {"message": "over"}}, {"x-should-retry": "false"}), "HTTP 408: over"),
    "no choices": ({"object": "list"}, "the server's answer has no choices"), "empty choices": ({"choices": []}, "the server's answer has no choices"),
    "an error with 200": ({"error": {"message": "out of memory"}}, "the server's answer has no choices: out of memory"), "a list": ((200, [1]), "the server's answer has no choices"),
    "no text": ({"choices": [{"index": 0}]}, "the server's answer has a choice without a text"),
    "two for one": ({"choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]}, "the server gave 2 of the 1 answers that n=1 asks for"),
    "half a character": ((200, b'{"choices": [{"index": 0, "text": "so \\ud800"}]}'), "the answer: choices[0].text has the lone surrogate U+D800 as character 4"),
    "control characters": ((400, {"error": {"message": "a\x1b[2Jb\nc"}}), "HTTP 400: a [2Jb c"),
    "the key": ((400, {"error": {"message": "the key secret-key is bad"}}), "HTTP 400: the key (the key) is bad"),
    "the key, with 200": ({"error": {"message": "a\x1b[2J\nsecret-key " + "x" * 600}}, "the server's answer has no choices: a [2J (the key) xxx"),
    "the key where the words are cut": ((400, b" " * 1995 + b"secret-key"), "HTTP 400: (the"),
    "an error too deep in itself": ((400, b'{"detail": ' + b"[" * 940 + b"]" * 940 + b"}"), 'HTTP 400: {"detail": [[['),
    "half an answer that says so": ({"choices": [{"index": 0, "text": "so", "finish_reason": "error", "error": {"message": "lost"}}]}, "the server's answer broke off: lost"),
    "a request that was dropped": ({"choices": [{"index": 0, "text": "so", "finish_reason": "abort"}]}, "the server's answer broke off: abort"),
}  # fmt: skip


@pytest.mark.parametrize("answer, told", FOR_GOOD.values(), ids=FOR_GOOD)
def test_what_a_second_time_would_not_change_is_asked_once_and_told_in_its_place(scripted_server, ask, answer, told):
    server = scripted_server(lambda body: answer if body["prompt"] == "b" else scripted_server.said("Yes."))
    found = by_prompt(ask(server, ["a", "b", "c"]))
    assert found[0] == found[2] == ("Yes.", None)
    assert found[1][0] == "" and found[1][1].startswith(told) and len(found[1][1]) < 520 and "secr" not in found[1][1], found[1]
    assert Counter(server.prompts)["b"] == 1


def test_a_failed_prompt_has_its_error_in_each_of_its_answers(scripted_server, ask):
    results = [*ask(scripted_server(lambda body: (400, {})), ["a"], SamplingParams(num_return_sequences=2, temperature=1.0, seed=4))]
    assert [(result.choice, result.finish_reason, result.error, result.seed) for result in results] == [(n, "error", "HTTP 400: {}", 4) for n in range(2)]


HOPELESS = {
    "401": ((401, {"error": {"message": "Incorrect API key provided: secret-key"}}), r"HTTP 401: Incorrect API key provided: \(the key\) \(the key is not taken\)"),
    "404": ((404, {"error": {"message": "no model pupil"}}), "HTTP 404: no model pupil"), "402": ((402, {}), "HTTP 402"),
    "elsewhere": ((307, b"", {"Location": "http://other/v1/completions"}), r"HTTP 307: Temporary Redirect \(it points to http://other/v1/completions: give that address"),
    "no money": ((429, {"error": {"message": "quota", "code": "insufficient_quota"}}), "HTTP 429: quota"),
    "another model": ({"model": "teacher", "choices": [{"text": "No."}]}, "the model 'teacher' answers where 'pupil' was asked: ask for that one, or say by --answered_by"),
    "in a week": ((429, {}, {"Retry-After": "604800"}), r"HTTP 429: \{\} \(it asks to be left alone for 604800 s\)"),
}  # fmt: skip


@pytest.mark.parametrize("answer, told", HOPELESS.values(), ids=HOPELESS)
def test_what_every_prompt_would_meet_ends_the_run_and_what_came_before_is_kept(scripted_server, ask, answer, told):
    server = scripted_server(lambda body: answer if body["prompt"] == "b" else scripted_server.said("Yes."))
    results = []
    with pytest.raises(GivenUp, match=told):
        results.extend(ask(server, ["a", "b", *"cdefghij"], concurrency=1))
    assert server.prompts == ["a", "b"]


def test_an_answer_by_the_models_other_name_is_taken_and_by_a_third_is_not(scripted_server):
    server, params = scripted_server(lambda body: {"model": body["prompt"], **scripted_server.said("Yes.")}), SamplingParams()
    asking = Asking(
        Server(server.base_url, answered_by="teacher"), lambda index: Question(index, "/completions", {"model": "alias", "prompt": ["teacher", "alias"][index]}, params), range(2), 1
    )  # fmt: skip
    assert next(asking).text == "Yes."
    with pytest.raises(GivenUp, match="the model 'alias' answers where 'teacher' was asked"):
        next(asking)
    asking.close()


def test_a_server_that_refuses_all_in_the_same_words_is_asked_no_more(scripted_server, ask):
    server, results = scripted_server(lambda body: (400, {"error": {"message": "unknown field top_k"}})), []
    with pytest.raises(GivenUp, match="it refuses every prompt: HTTP 400: unknown field top_k"):
        for result in ask(server, ["a"] * 50):
            results.append(result)
    assert len(results) >= SAME_WORDS and len(server.asked) <= SAME_WORDS + 4


def test_a_server_that_refuses_each_for_its_own_reason_is_asked_on(scripted_server, ask):
    server = scripted_server(lambda body: (400, {"error": {"message": f"{body['prompt']} is too long"}}))
    assert len(by_prompt(ask(server, [str(n) for n in range(20)]))) == 20


def test_a_server_that_dies_is_asked_no_more_and_what_came_is_kept(scripted_server, ask):
    answered, lock = [], threading.Lock()

    def script(body):
        with lock:
            if len(answered) == 6:
                return None
            answered.append(body["prompt"])
        return scripted_server.said("Yes.")

    server, results = scripted_server(script), []
    with pytest.raises(GivenUp, match="it answers no more: RemoteProtocolError: Server disconnected"):
        for result in ask(server, [str(n) for n in range(100)], concurrency=1):
            results.append(result)
    assert [result.text for result in results] == ["Yes."] * 6 + [""] * UNANSWERED and len(server.asked) == 6 + 3 * UNANSWERED


def test_a_server_that_comes_back_in_time_loses_nothing(scripted_server, ask):
    began = time.monotonic()
    server = scripted_server(lambda body: scripted_server.said("Yes.") if time.monotonic() > began + 0.2 else (503, {}, {"retry-after-ms": "50"}))
    assert set(by_prompt(ask(server, ["a"] * 20, retries=30)).values()) == {("Yes.", None)}


@pytest.mark.parametrize("headers, seconds", [
    ({"retry-after": "2"}, 2.0), ({"retry-after": " 0.5 "}, 0.5), ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5), ({"retry-after": "soon"}, None), ({}, None),
    ({"retry-after": "0"}, None), ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, None), ({"retry-after-ms": "nan"}, None), ({"retry-after-ms": "-5"}, None), ({"retry-after": "-5"}, None),
])  # fmt: skip
def test_how_long_a_server_wants_to_be_left_alone_and_no_time_is_none(headers, seconds):
    assert seconds_to_wait(headers) == seconds


def test_a_body_that_is_no_json_is_shown_without_a_part_of_the_key(scripted_server, ask):
    server = scripted_server(lambda body: (200, b"x" * 195 + b"secret-key"))
    [(_, error)] = by_prompt(ask(server, ["a"], retries=0)).values()
    assert error == "the answer is not JSON: " + "x" * 195 + "(the"


@pytest.mark.parametrize("header", ["1", "a date"])
def test_a_server_that_asks_to_be_left_alone_is_by_all(scripted_server, ask, header):
    """Nobody asks until then, not those either who were not told."""
    told = threading.Event()

    def script(body):
        if not told.is_set():
            told.set()
            return 429, {}, {"Retry-After": header if header == "1" else formatdate(time.time() + 2, usegmt=True)}
        times.append(time.monotonic())
        return scripted_server.said("Yes.")

    times, began = [], time.monotonic()
    assert set(by_prompt(ask(scripted_server(script), ["a"] * 3, concurrency=1)).values()) == {("Yes.", None)}
    assert len(times) == 3 and times[0] - began > 0.9


def test_a_crowded_server_is_asked_until_it_has_let_all_in(scripted_server, ask):
    """So many tries has nobody who waits while others come in: one at a time here, of eight who ask."""
    inside = threading.Semaphore(1)

    def script(body):
        if not inside.acquire(blocking=False):
            return 429, {}, {"retry-after-ms": "5"}
        time.sleep(0.01)
        inside.release()
        return scripted_server.said("Yes.")

    asking = ask(scripted_server(script), ["a"] * 24, concurrency=8, retries=4)
    assert [*by_prompt(asking).values()] == [("Yes.", None)] * 24 and asking.retried > 24


def test_a_server_of_ours_that_has_ended_is_not_waited_for(scripted_server, monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT", 60.0)
    server = Server(scripted_server(lambda body: None).base_url, alive=lambda: False)
    asking = Asking(server, lambda index: Question(index, "/completions", {}, SamplingParams()), range(3), 1)
    with pytest.raises(GivenUp, match=r"it has ended \(RemoteProtocolError"):
        next(asking)


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(scripted_server, ask):
    slow, over = Counter(), threading.Event()

    def script(body):
        slow[body["prompt"]] += 1
        if body["prompt"] == "b" or slow[body["prompt"]] == 1:
            over.wait(20)
        return scripted_server.said("Yes.")

    found = by_prompt(ask(scripted_server(script), ["a", "b"], seconds=0.5, retries=1))
    over.set()
    assert found == {0: ("Yes.", None), 1: ("", "no answer within 0.5 s")} and slow == {"a": 2, "b": 2}


def test_an_answer_without_an_end_is_not_read_to_it(scripted_server, ask, monkeypatch):
    monkeypatch.setattr(connection, "LARGEST", 1000)
    [result] = ask(scripted_server(lambda body: scripted_server.said("x" * 2000)), ["a"])
    assert result.error == "the server's answer has more than 1000 bytes"


def test_so_many_are_asked_at_a_time_and_no_more(scripted_server, ask):
    together, running, most, lock = threading.Barrier(6, timeout=20), 0, 0, threading.Lock()

    def script(body):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()  # six are here, or it is broken
        time.sleep(0.01)
        with lock:
            running -= 1
        return scripted_server.said("Yes.")

    assert [*by_prompt(ask(scripted_server(script), ["a"] * 24, concurrency=6, seconds=30.0)).values()] == [("Yes.", None)] * 24
    assert most == 6


def test_none_is_asked_that_is_too_far_ahead_of_the_first_without_an_answer(scripted_server, ask):
    first = threading.Event()

    def script(body):
        if body["prompt"] == "0":
            first.wait(5)
        return scripted_server.said("Yes.")

    server = scripted_server(script)
    asking = ask(server, [str(n) for n in range(20)], concurrency=3, ahead=6)
    early = [next(asking).prompt_index for _ in range(5)]
    time.sleep(0.05)
    assert sorted(early) == [1, 2, 3, 4, 5] and sorted(map(int, server.prompts)) == [0, 1, 2, 3, 4, 5]
    first.set()
    assert sorted(result.prompt_index for result in asking) == [0, *range(6, 20)]


def test_what_nobody_takes_is_not_asked_without_end(scripted_server, ask):
    server = scripted_server()
    asking = ask(server, ["a"] * 40, concurrency=4)
    next(asking)
    until = time.monotonic() + 10
    while len(server.asked) < 8 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(server.asked) == 8  # twice as many as are asked at a time
    assert len([*asking]) == 39


def test_whoever_stops_finds_what_had_come_and_what_was_asked_is_broken_off(scripted_server, ask):
    hanging = threading.Event()

    def script(body):
        if int(body["prompt"]) >= 5:
            hanging.wait(5)
        return scripted_server.said("Yes.")

    server = scripted_server(script)
    asking = ask(server, [str(n) for n in range(40)], concurrency=4)
    taken = [next(asking).prompt_index for _ in range(3)]
    until = time.monotonic() + 5
    while len(asking.rest) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    began = time.monotonic()
    asking.close()
    assert time.monotonic() - began < 4  # what hangs would take five seconds, and then hang again
    left = [result.prompt_index for result in asking.rest]
    assert left[0] == taken[-1] and sorted({*taken, *left}) == [0, 1, 2, 3, 4]
    hanging.set()


def test_the_length_is_called_as_the_server_wants_it(scripted_server, ask):
    def script(body):
        if "max_tokens" in body:
            return 400, {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."}}
        return scripted_server.said(str(body["max_completion_tokens"]))

    server = scripted_server(script)
    assert set(by_prompt(ask(server, ["a"] * 5, concurrency=1, max_tokens=7)).values()) == {("7", None)}
    assert len(server.asked) == 6  # it was told once


@pytest.mark.parametrize("url, message", [
    ("localhost:8000/v1", "must be an address as http://"), ("ftp://a/v1", "must be an address"), ("http://", "must be an address"),
    ("http://user:pass@host/v1", "holds a name or a password"), ("http://host:port/v1", "is no address"), ("http://host/v1?key=pass@", "holds a name or"),
    ("http://user:pass@host:999999/v1", "holds a name or a password"), ("user:pass@host/v1", "holds a name or a password"), ("http://user:pass@[::1/v1", "holds a name or"),
    ("https://host/v1?key=hush", "must end before its [?] or #"), ("host?key=hush", "must end before its [?] or #"), ("http://[::1/v1#hush", "must end before its [?] or #"),
    ("http://host/v1/chat/completions", "must end before /chat/completions"), ("http://host/v1/models/", "must end before /models"),
])  # fmt: skip
def test_an_address_that_is_none_is_refused_without_what_it_hides(url, message):
    with pytest.raises(UserError, match=message) as refused:
        Server(url)
    assert "pass@" not in str(refused.value) and "hush" not in str(refused.value)


def test_a_key_is_shown_nowhere():
    assert "hush" not in repr(Server("http://host/v1", "hush"))
    with pytest.raises(UserError, match="api_key has a character that no key has") as refused:
        Server("http://host/v1", "hush\n")
    assert "hush" not in str(refused.value)
