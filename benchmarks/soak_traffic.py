"""What clients of `serve_soak.py` ask and do: every path, settings of all kinds, mistakes, and clients that go away; and what answers must be like."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PERSON = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
}  # fmt: skip
SETTINGS: list[dict[str, Any]] = [  # of all paths that answer
    {}, {}, {"temperature": 0}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1}, {"min_p": 0.05, "frequency_penalty": 0.4}, {"stop": ["."]},
    {"num_beams": 3}, {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, {"penalty_alpha": 0.6, "top_k": 4}, {"prompt_lookup_num_tokens": 4, "temperature": 0},
    {"guidance_scale": 1.5, "negative_prompt": "A story."}, {"guided_regex": "[a-z ]{3,40}"}, {"guided_choice": ["red", "green", "blue and yellow"]},
]  # fmt: skip
OF_CHATS: list[dict[str, Any]] = [{"n": 3}, {"logprobs": True, "top_logprobs": 5}, {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}}]
OF_COMPLETIONS: list[dict[str, Any]] = [{"n": 3}, {"logprobs": 5}, {"echo": True, "logprobs": 2}, {"guided_json": PERSON}, {"best_of": 2, "n": 2}]
OF_RESPONSES: list[dict[str, Any]] = [{"text": {"format": {"type": "json_schema", "name": "p", "schema": PERSON}}}, {"instructions": "Be brief."}]
MISTAKES: list[dict[str, Any]] = [
    {"temperature": -1}, {"top_p": 7}, {"temprature": 1}, {"n": 1000}, {"model": "no such model"}, {"max_tokens": 10**9}, {"prompt": ""}, {"prompt": None}, {"prompt": [10**9]},
    {"guided_regex": "("}, {"guided_json": {"type": "nothing"}}, {"prompt": "a " * 20_000}, {"stop": ["x"] * 1000}, {"logit_bias": {"x": 1}},
]  # fmt: skip
HOW = {"whole": 30, "stream": 34, "slow": 4, "leaves": 10, "leaves while it streams": 10, "cut": 4, "mistake": 8}  # what clients do, by weight


class Wrong(Exception):
    """An answer that the protocol does not allow."""


@dataclass
class Ask:
    """A request of a client, what the client does with its answer, and what the answer must be like."""

    path: str
    content: bytes
    how: str
    method: str = "POST"
    choices: int = 1
    schema: bool = False  # a choice that ends by itself is JSON

    @property
    def head(self) -> bytes:
        """The request but for its body."""
        return f"{self.method} {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(self.content)}\r\n\r\n".encode()


class Traffic:
    """Requests by chance, of models by their names and words of a text."""

    def __init__(self, models: Sequence[str], text: str, seed: int):
        self._models, self._words, self._draw = models, text.split(), random.Random(seed)

    def next(self, how: str | None = None) -> Ask:
        """Return a request; with `how`, one of that kind."""
        draw = self._draw
        how = how or draw.choices(list(HOW), list(HOW.values()))[0]
        if how == "mistake":
            return self._mistake()
        make: Callable[[], tuple[str, dict[str, Any]]] = draw.choices([self._chat, self._completion, self._response, self._embedding], [3, 4, 3, 1])[0]
        path, body = make()
        streams = how in ("stream", "slow", "leaves while it streams") or how == "cut" and draw.random() < 0.5
        if path == "/v1/embeddings":
            how = {"stream": "whole", "slow": "whole", "leaves while it streams": "leaves"}.get(how, how)
        else:
            body |= {"stream": streams} | ({"cache_salt": draw.choice("abc")} if draw.random() < 0.3 else {})
        prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
        schema = any(name in body for name in ("response_format", "guided_json", "text"))
        content = json.dumps({"model": draw.choice(self._models), **body}).encode()
        return Ask(path, content, how, choices=prompts * body.get("n", 1), schema=schema)

    def _text(self) -> str:
        """From a few words to a hundred and more; every third begins as others do."""
        draw = self._draw
        count = draw.choice([4, 8, 8, 16, 16, 30, 30, 120])
        begin = draw.randrange(4) * 100 if draw.random() < 0.3 else draw.randrange(len(self._words) - count)
        return " ".join(self._words[begin : begin + count])

    def _length(self) -> int:
        return self._draw.choice([1, 4, 8, 16, 16, 32, 32, 64])

    def _chat(self) -> tuple[str, dict[str, Any]]:
        messages = [{"role": "system", "content": "You answer briefly."}, {"role": "user", "content": self._text()}]
        return "/v1/chat/completions", {"messages": messages, "max_tokens": self._length(), **self._draw.choice(SETTINGS + OF_CHATS)}

    def _completion(self) -> tuple[str, dict[str, Any]]:
        prompt = self._text() if self._draw.random() < 0.8 else [self._text(), self._text()]
        return "/v1/completions", {"prompt": prompt, "max_tokens": self._length(), **self._draw.choice(SETTINGS + OF_COMPLETIONS)}

    def _response(self) -> tuple[str, dict[str, Any]]:
        return "/v1/responses", {"input": self._text(), "max_output_tokens": self._length(), **self._draw.choice(SETTINGS + OF_RESPONSES)}

    def _embedding(self) -> tuple[str, dict[str, Any]]:
        return "/v1/embeddings", {"input": [self._text() for _ in range(self._draw.choice([1, 1, 3]))], "encoding_format": self._draw.choice(["float", "base64"])}

    def _mistake(self) -> Ask:
        draw = self._draw
        if draw.random() < 0.6:
            body = {"prompt": "abc", "max_tokens": 4, "stream": draw.random() < 0.3, **draw.choice(MISTAKES)}
            return Ask("/v1/completions", json.dumps(body).encode(), "mistake")
        return draw.choice([
            Ask("/v1/completions", b"{", "mistake"), Ask("/v1/chat/completions", b"[]", "mistake"), Ask("/v1/responses", b'{"input": [{}]}', "mistake"),
            Ask("/v1/embeddings", b'{"input": "\\ud800"}', "mistake"), Ask("/no/such/path", b"{}", "mistake"), Ask("/v1/completions", b"", "mistake", "GET"),
            Ask("/v1/completions", b'{"prompt": "' + b"a" * (3 << 20) + b'"}', "mistake"),
        ])  # fmt: skip


def check_whole(ask: Ask, content: bytes) -> None:
    """Raise Wrong for a whole answer that is not whole."""
    said = json.loads(content)
    if ask.path == "/v1/embeddings":
        found = [bool(each["embedding"]) for each in said["data"]]
        ended = found and all(found)
    elif ask.path == "/v1/responses":
        ended = said["status"] in ("completed", "incomplete") and said["output"]
        if ask.schema and said["status"] == "completed":
            json.loads(said["output"][-1]["content"][0]["text"])
    else:
        ended = [each["index"] for each in said["choices"]] == list(range(ask.choices)) and all(each["finish_reason"] for each in said["choices"])
        for each in said["choices"] if ask.schema else ():
            if each["finish_reason"] == "stop":
                json.loads(each["message"]["content"] if "message" in each else each["text"])
    if not ended:
        raise Wrong(f"{ask.path} answered {content[:300]!r} to {ask.content[:300]!r}")


def check_stream(ask: Ask, content: bytes) -> str | None:
    """Return the error that a stream tells, if it does; raises Wrong for one that does not end as its path says."""
    events = [line[6:] for line in content.split(b"\n") if line.startswith(b"data: ")]
    done = bool(events) and events[-1] == b"[DONE]"
    told = [json.loads(event) for event in (events[:-1] if done else events)]
    if not told:
        raise Wrong(f"{ask.path} streamed nothing: {content[:300]!r}")
    if ask.path == "/v1/responses":
        last = told[-1]
        if last["type"] == "error":
            return last["message"]
        if done or last["type"] not in ("response.completed", "response.incomplete"):
            raise Wrong(f"{ask.path} ended a stream by {content[-300:]!r}")
        return None
    if not done:
        raise Wrong(f"{ask.path} ended a stream by {content[-300:]!r}")
    if "error" in told[-1]:
        return told[-1]["error"]["message"]
    reasons: dict[int, list[str]] = {}
    for choice in (choice for event in told for choice in event["choices"]):
        reasons.setdefault(choice["index"], []).extend([choice["finish_reason"]] if choice["finish_reason"] else [])
    if sorted(reasons) != list(range(ask.choices)) or any(len(each) != 1 for each in reasons.values()):
        raise Wrong(f"{ask.path} streamed finish reasons {reasons} of {ask.choices} choices to {ask.content[:300]!r}")
    return None
