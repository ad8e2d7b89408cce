"""Several processes that train together: that they are of one mind before they begin, and hear of it where one of them is gone.

Who waits for another process waits in a library, for half an hour, and is told of a closed connection at best. So each process holds a connection to the
first one beside those of the library: a process that ends badly says why, one that is killed is missed at once, and all others end within seconds, naming it.
"""

import json
import os
import platform
import secrets
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch.distributed as dist

from ...data.errors import UserError

VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed")
START = "SEODANG_START_SECONDS"  # in the environment: how long processes wait for each other when they begin
GRACE = 10.0  # seconds in which a process that has heard of another's end may find its own
PATIENCE = 20.0  # seconds for a connection to the first process
LONGEST = 2000  # characters of what a process says when it ends


@dataclass
class Rank:
    """One of the processes, as the others call it."""

    number: int
    host: str
    process: int

    def __str__(self) -> str:
        return f"rank {self.number} ({self.host}, process {self.process})"


# Before they begin


@contextmanager
def beginning() -> Iterator[None]:
    """Raise UserError where processes that a launcher has started cannot be joined within; one that waits in vain for the others ends, and says so."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1 or dist.is_initialized():
        yield
        return
    rank, place = os.environ.get("RANK", "?"), f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    seconds = _patience()

    def give_up() -> None:
        print(
            f"error: rank {rank} of {world} has waited for the others at {place} for {seconds:.0f} seconds: one of them has not come, or another program answers "
            f"there; look at what the others say, give another --main_process_port, or more time ({START}=300)",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(2)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    except dist.DistNetworkError as error:
        used = "EADDRINUSE" in str(error)
        why = f"port {place} is in use: give another one, --main_process_port 0 finds one on a single machine" if used else " ".join(str(error).split())[:LONGEST]
        raise UserError(f"rank {rank} of {world} cannot join the others: {why}") from error
    finally:
        timer.cancel()


def _patience() -> float:
    """The seconds of the environment. Raises UserError for what is no such number."""
    told = os.environ.get(START, "60")
    try:
        seconds = float(told)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= threading.TIMEOUT_MAX:
        raise UserError(f"{START} must be a number of seconds above 0, got {told!r}: {START}=300, say")
    return seconds


def check_devices(devices: int) -> None:
    """Raise UserError where a launcher has started more processes on this machine than it has accelerators, if it has any."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if 0 < devices < here:
        raise UserError(f"{here} processes were launched on {socket.gethostname()}, which has {devices} devices: set --num_processes to {devices} a machine")


def agree(facts: Mapping[str, Any]) -> None:
    """Raise UserError, in all processes, naming those whose facts differ from most of the others'; all processes have to call this."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, dict(facts))
    refuse_odd_ones(everyone)


def refuse_odd_ones(everyone: list[Mapping[str, Any]]) -> None:
    """Raise UserError for the first fact that is not the same in all ranks, with each rank's that stands alone against most."""
    for name in everyone[0]:
        told = [json.dumps(facts.get(name), sort_keys=True, default=str) for facts in everyone]
        usual = Counter(told).most_common(1)[0][0]
        if odd := [f"rank {rank} has {value}" for rank, value in enumerate(told) if value != usual]:
            most = f"rank {told.index(usual)} has {usual}"
            raise UserError(f"the processes do not agree on {name}: {'; '.join(odd[:4])}, {most}: give all of them the same")


def versions() -> dict[str, str | None]:
    """The versions that all processes must share, those of the machine's Python included."""
    found: dict[str, str | None] = {"the version of python": platform.python_version()}
    for name in ("seodang", *VERSIONS):
        try:
            found[f"the version of {name}"] = version(name)
        except PackageNotFoundError:
            found[f"the version of {name}"] = None
    return found


# While they train


class Watch:
    """A connection of each process to the first, by which all hear who has ended badly, or is gone without a word."""

    def __init__(self, rank: int, ranks: list[Rank], connections: dict[int, socket.socket], grace: float = GRACE):
        self.rank, self.ranks, self.grace = rank, ranks, grace
        self._connections = connections  # by the rank at the other end
        self._left: set[int] = set()  # who has ended as it should
        self._lock, self._heard = threading.Lock(), threading.Event()
        self._news, self._leaving = "", False
        for other, connection in connections.items():
            threading.Thread(target=self._listen, args=(other, connection), daemon=True).start()

    def lost(self, seconds: float) -> str:
        """What there is to say of a process that has ended badly, waiting so long for it; else nothing."""
        return self._news if self._heard.wait(seconds) else ""

    def leave(self, words: str | None) -> None:
        """End this process's part: `words` say why it ends badly, None that it has done its work."""
        with self._lock:
            self._leaving = True
        self._tell({"rank": self.rank, "words": words}, self._connections)
        for connection in self._connections.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_WR)

    def _listen(self, other: int, connection: socket.socket) -> None:
        lines = connection.makefile(encoding="utf-8")
        with suppress(OSError, ValueError):
            for line in lines:
                said = json.loads(line)
                self._take(said["rank"], said["words"], other)
        if other not in self._left:
            self._take(other, "is gone: it was killed, or its machine is", other)

    def _take(self, rank: int, words: str | None, by: int) -> None:
        """Note what a rank said, or was said of it; the first process hands it on."""
        with self._lock:
            self._left.add(rank)
            first = words is not None and not self._news
            if first:
                self._news = f"{self.ranks[rank]} of {len(self.ranks)} {words}"
        if words is None:
            return
        if self.rank == 0:
            self._tell({"rank": rank, "words": words}, {other: to for other, to in self._connections.items() if other != by})
        if first:
            self._heard.set()
            threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        """End this process, which may wait for one that is gone, unless it finds its own end soon."""
        threading.Event().wait(self.grace)
        with self._lock:
            leaving = self._leaving
        if not leaving:
            print(f"error: {self._news}", file=sys.stderr, flush=True)
            os._exit(2)

    def _tell(self, message: dict[str, Any], connections: dict[int, socket.socket]) -> None:
        for connection in connections.values():
            with suppress(OSError):
                connection.sendall(json.dumps(message).encode() + b"\n")


_watch: Watch | None = None


def watch() -> None:
    """Have the processes, once they are joined, agree on versions and watch each other; all of them have to call this. Nothing where there is one."""
    global _watch
    if _watch is not None or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    rank, world = dist.get_rank(), dist.get_world_size()
    listener = socket.create_server(("", 0), backlog=world) if rank == 0 else None
    own = {"host": socket.gethostname(), "process": os.getpid(), "port": listener and listener.getsockname()[1], "token": secrets.token_hex(16)}
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, {**own, "versions": versions()})
    ranks = [Rank(number, each["host"], each["process"]) for number, each in enumerate(everyone)]
    if listener is not None:
        connections = _accepted(listener, everyone[0]["token"], world - 1)
    else:
        connections = _connected(os.environ.get("MASTER_ADDR", "127.0.0.1"), everyone[0]["port"], everyone[0]["token"], rank)
    if missing := (set(range(1, world)) if rank == 0 else {0}) - connections.keys():
        print(f"warning: no connection beside the library's from rank {rank} to {sorted(missing)}: should one be killed, this is told by a timeout alone", file=sys.stderr)
    _watch = Watch(rank, ranks, connections)
    refuse_odd_ones([each["versions"] for each in everyone])


def leave(words: str | None = None) -> None:
    """Tell the other processes, where there are some, that this one ends: why, or without words that it has done its work."""
    global _watch
    if _watch is not None:
        _watch.leave(words and f"has ended: {words[:LONGEST]}")
        _watch = None


def lost(seconds: float = 3.0) -> str:
    """What there is to say of another process that has ended badly, which may be why this one fails; else nothing."""
    return "" if _watch is None else _watch.lost(seconds)


def _accepted(listener: socket.socket, token: str, count: int) -> dict[int, socket.socket]:
    """The connections of so many ranks that know the token."""
    found: dict[int, socket.socket] = {}
    listener.settimeout(PATIENCE)
    with listener, suppress(OSError):
        while len(found) < count:
            connection, _ = listener.accept()
            connection.settimeout(PATIENCE / 4)
            said = b""
            with suppress(OSError):
                while not said.endswith(b"\n") and len(said) < 100:
                    said += connection.recv(1) or b"\n"
            words = said.decode(errors="replace").split()
            if len(words) == 2 and secrets.compare_digest(words[0].encode(), token.encode()) and words[1].isdecimal():
                found[int(words[1])] = _kept_alive(connection)
            else:
                connection.close()
    return found


def _connected(host: str, port: int, token: str, rank: int) -> dict[int, socket.socket]:
    """This rank's connection to the first process, none where it cannot be had."""
    try:
        connection = socket.create_connection((host, port), timeout=PATIENCE)
        connection.sendall(f"{token} {rank}\n".encode())
    except OSError:
        return {}
    return {0: _kept_alive(connection)}


def _kept_alive(connection: socket.socket) -> socket.socket:
    """The connection without a timeout, but for a machine at its other end that is gone: that shows within half a minute."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
