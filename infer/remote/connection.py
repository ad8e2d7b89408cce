"""A server that speaks OpenAI's protocol: one request after another, asked again where that may help, and told apart from where it cannot."""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ...data.errors import UserError
from .answers import Refused, error_in, one_line, read_json

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a request is asked again, doubled each time
LONGEST_TOLD = 600.0  # that a server may tell us to wait
CONNECT_SECONDS = 20.0
LARGEST = 64 << 20  # bytes of an answer
PASSING = {408, 425, 429}  # statuses below 500 that pass by themselves
THE_KEY = "(the key)"  # what stands for it where a server repeats it
HOPELESS = {401: "the key is not taken", 402: "it wants to be paid", 404: "there is no such model or path", 405: "there is no such path"}
LEADING = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")  # what the library reads of the environment
LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class Trouble(Exception):
    """The server cannot answer now; `wait` is how many seconds it asks to be left alone, `again` whether to ask again at all, `crowded` that many ask."""

    def __init__(self, message: str, wait: float | None = None, again: bool = True, crowded: bool = False):
        super().__init__(message)
        self.wait, self.again, self.crowded = wait, again, crowded


class GivenUp(Exception):
    """Nothing more is asked of the server, for a reason that is every prompt's."""


@dataclass(frozen=True)
class Server:
    """Where a server is and how it is asked: `seconds` an answer may take, and so many `retries` beyond the first try.

    `base_url` ends where OpenAI's does (http://host:port/v1). `alive` says, of a server that we have started, whether it still runs; `answered_by` what
    the server calls the model in its answers, where that is another name than the one it is asked by. Raises UserError for an address that is none, or
    holds a password.
    """

    base_url: str
    api_key: str | None = field(default=None, repr=False)
    seconds: float | None = 600.0
    retries: int = 6
    alive: Callable[[], bool] = lambda: True
    answered_by: str | None = None

    def __post_init__(self):
        if "@" in self.base_url:  # wherever, for what is no address may still hold them
            raise UserError("base_url holds a name or a password, which would be shown: give the key by --api_key or OPENAI_API_KEY (an @ of the path is %40)")
        if "?" in self.base_url or "#" in self.base_url:
            raise UserError("base_url must end before its ? or #, behind which a key may stand: give that by --api_key or OPENAI_API_KEY")
        try:
            parts = urlsplit(self.base_url)
            _ = parts.port
        except ValueError as error:
            raise UserError(f"base_url {self.base_url!r} is no address: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"base_url must be an address as http://localhost:8000/v1, got {self.base_url!r}")
        for path in ("/chat/completions", "/completions", "/models"):
            if parts.path.rstrip("/").endswith(path):
                raise UserError(f"base_url must end before {path}, got {self.base_url!r}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UserError("api_key has a character that no key has, a line's end perhaps: take it out")
        object.__setattr__(self, "base_url", self.base_url.rstrip("/"))

    @property
    def is_near(self) -> bool:
        """Whether it is on this machine."""
        return urlsplit(self.base_url).hostname in LOOPBACK

    @asynccontextmanager
    async def connected(self, connections: int = 1) -> AsyncIterator[Connection]:
        """A client of so many connections at most. Raises UserError where its library is not installed, or the environment leads it nowhere."""
        httpx2 = library()
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
        # no proxy leads to this machine, and where nothing is encrypted the certificates need not be read, which takes a while
        plain = self.is_near and self.base_url.startswith("http:")
        try:
            client = httpx2.AsyncClient(headers=headers, limits=limits, timeout=timeout, trust_env=not self.is_near, verify=not plain)
        except (ImportError, OSError, ValueError, httpx2.InvalidURL) as error:
            raise UserError(misled(error)) from None
        async with client:
            yield Connection(self, client)


def library() -> Any:
    """The HTTP client's library; raises UserError where it is not installed."""
    try:
        import httpx2
    except ModuleNotFoundError:
        raise UserError("asking a server needs httpx2, which is not installed: pip install 'seodang[remote]'") from None
    return httpx2


def misled(error: Exception) -> str:
    """What to mend where no client can be made by what the environment says; not the proxy's address, which may hold a password."""
    told = "a SOCKS proxy needs the package socksio" if isinstance(error, ImportError) else getattr(error, "strerror", None) or type(error).__name__
    names = [name for name in LEADING for name in (name, name.lower()) if os.environ.get(name)]
    return f"the server cannot be asked by what the environment has in {', '.join(names)} ({told}): mend it, or unset it"


class Connection:
    """A client of a server. What it asks again it does later and later, by chance not all at once, and never before the server wants to be asked.

    `retried` counts what was asked again, `answered` what the server has answered.
    """

    def __init__(self, server: Server, client: Any):
        self._server, self._client = server, client
        self._not_before = 0.0  # the server has asked all of us to wait
        self.retried = self.answered = 0

    async def get(self, path: str) -> Any:
        """Return what the server says there; raises as `post` does."""
        return await self._patiently("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the server's answer to a body as JSON.

        Raises Refused for what it does not answer, Trouble where it still could not after all tries, GivenUp where it would refuse everything.
        """
        return await self._patiently("POST", path, json.dumps(body, ensure_ascii=False).encode())

    async def once(self, method: str, path: str, content: bytes | None = None) -> Any:
        """As `post`, in one try."""
        httpx2 = library()
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self._server.seconds):
                async with self._client.stream(method, self._server.base_url + path, content=content, headers=headers) as response:
                    raw = await bounded(response)
        except TimeoutError:
            raise Trouble(f"no answer within {self._server.seconds:g} s") from None
        except (httpx2.UnsupportedProtocol, httpx2.InvalidURL, UnicodeError) as error:
            raise GivenUp(f"{self._server.base_url} is no address: {error}") from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise Trouble(self.told(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)) from None
        if not 200 <= response.status_code < 300:
            raise self._refusal(response, raw)
        try:
            return read_json(raw)
        except ValueError:
            shown = self._beginning(raw, 200) or "an empty body"
            raise Trouble(f"the answer is not JSON: {shown}") from None

    async def _patiently(self, method: str, path: str, content: bytes | None) -> Any:
        tries = waits = 0
        answered = self.answered
        while True:
            while (left := self._not_before - time.monotonic()) > 0:
                await asyncio.sleep(left + random.uniform(0, FIRST_WAIT) * (left > 0.1))  # not all at once
            try:
                found = await self.once(method, path, content)
                self.answered += 1
                return found
            except Trouble as trouble:
                if not self._server.alive():
                    raise GivenUp(f"it has ended ({trouble})") from None
                # who waits among many has not tried in vain as long as others come in
                tries = 1 if trouble.crowded and self.answered > answered else tries + 1
                if tries > self._server.retries or not trouble.again:
                    raise
                answered = self.answered
                await self._wait(trouble, waits)
                waits += 1
                self.retried += 1

    async def _wait(self, trouble: Trouble, waits: int) -> None:
        """Wait as long as the server says, and all others with us, or longer each time."""
        if trouble.wait is not None:
            self._not_before = max(self._not_before, time.monotonic() + trouble.wait)
        else:
            await asyncio.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(waits, 10)) * random.uniform(0.5, 1))

    def _refusal(self, response: Any, raw: bytes) -> Exception:
        """What an answer that is no success comes to."""
        status, body = response.status_code, None
        try:
            body = read_json(raw)
        except ValueError:
            pass
        html = "html" in response.headers.get("content-type", "")
        words = error_in(body) or ("" if html else self._beginning(raw, 2000)) or response.reason_phrase
        told = f"HTTP {status}: {self.told(words)}"
        if 300 <= status < 400:
            return GivenUp(f"{told} (it points to {self.told(response.headers.get('location', 'nowhere'))}: give that address as --base_url)")
        if status in HOPELESS:
            return GivenUp(f"{told} ({HOPELESS[status]})")
        if status == 429 and isinstance(body, Mapping) and isinstance(body.get("error"), Mapping) and body["error"].get("code") == "insufficient_quota":
            return GivenUp(told)
        if status in PASSING or status >= 500:
            wait = seconds_to_wait(response.headers)
            if wait is not None and wait > LONGEST_TOLD:
                return GivenUp(f"{told} (it asks to be left alone for {wait:.0f} s)")
            return Trouble(told, wait, again=response.headers.get("x-should-retry") != "false", crowded=status == 429)
        return Refused(told)

    def told(self, words: str) -> str:
        """A server's words as they are shown and kept: never the key, should it repeat it."""
        key = self._server.api_key
        return one_line(words.replace(key, THE_KEY) if key else words)

    def _beginning(self, raw: bytes, most: int) -> str:
        """The first so many bytes of a body, as they are shown: the key goes before they are cut, or a part of it would stay."""
        key = self._server.api_key
        return one_line((raw.replace(key.encode(), THE_KEY.encode()) if key else raw)[:most].decode(errors="replace"))


async def bounded(response: Any) -> bytes:
    """An answer's body; raises Refused for one that does not end."""
    raw = bytearray()
    async for part in response.aiter_bytes():
        raw += part
        if len(raw) > LARGEST:
            raise Refused(f"the server's answer has more than {LARGEST} bytes")
    return bytes(raw)


def seconds_to_wait(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` says, in seconds or as a date, or `retry-after-ms`; None where nothing that can be read, or no time at all."""
    try:
        told = headers.get("retry-after", "")
        if "retry-after-ms" in headers:
            wait = float(headers["retry-after-ms"]) / 1000
        elif told.strip().replace(".", "", 1).isdigit():
            wait = float(told)
        else:
            wait = email.utils.parsedate_to_datetime(told).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError):
        return None
    return wait if wait > 0 else None  # "0" is rounded down, and a date that has passed another clock's: all tries would be over at once
