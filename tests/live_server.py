"""A server of an engine, in a thread of the test's process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from seodang.infer.server.run import Server, address_of, bound


@contextmanager
def behind_a_socket(app: Any, engine: Any) -> Iterator[str]:
    """Serve an application of an engine behind a socket of this machine; yields its address, and in the end waits until the server has ended."""
    listening = bound("127.0.0.1", 0)
    listening.listen(64)
    server = Server(uvicorn.Config(app, log_level="warning", lifespan="on"), engine)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield address_of(listening)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
