"""The head of a request, its first line and headers, within bounds of size and time: uvicorn with httptools has none."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 << 10  # bytes; what comes in one read of the socket may be more
HEAD_SECONDS = 20.0  # that a head may take to come


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, which answers a head that is too large by 431, and closes a connection on which none comes in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._late is None:  # behind another request
            self._begin()

    def on_headers_complete(self) -> None:
        self._end()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        head = self._late
        super().data_received(data)
        if head is None or self._late is not head:  # it has ended, or another began
            return
        self._bytes += len(data)
        if self._bytes > MAX_HEAD and not self.transport.is_closing():
            self._end()
            told = b"the head of the request is larger than a server reads: send fewer headers, or shorter ones"
            length = str(len(told)).encode()
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: " + length + b"\r\n\r\n" + told)
            self.transport.close()

    def _begin(self) -> None:
        self._bytes = 0
        self._late = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
