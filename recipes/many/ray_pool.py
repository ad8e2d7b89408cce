"""Workers as Ray's actors, on this machine or a cluster: a process each, which is never asked twice by Ray itself."""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.infer.remote.connection import GivenUp
from seodang.recipes.many.dispatch import Heard

PLACE_SECONDS = 300.0  # a cluster may have to start a machine first
PING_SECONDS = 10.0
SILENT_SECONDS = 120.0  # without an answer to a ping, which has a thread of its own: the process is stopped, or its machine is out of reach
REACH_SECONDS = 10.0  # within which a cluster's machine takes a connection
STORE_BYTES = 256 << 20  # of this machine's own Ray: a shard's prompts and answers a worker
TOLD = 3  # last lines of what a lost process said


def library() -> Any:
    """Ray; raises UserError where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a run tells nobody that it was
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError("--backend ray needs Ray, which is not installed: pip install 'seodang[ray]'") from None
    return ray


@dataclass(frozen=True)
class Resources:
    """What a worker takes; None: its share of this machine's cores, or one of a cluster; a GPU where there are any, but for `on_cpu`."""

    cpus: float | None = None
    gpus: float | None = None
    on_cpu: bool = False


@dataclass
class _Worker:
    """A worker as the driver knows it."""

    actor: Any
    began: float
    stage: str = "placed"  # what is waited for: that it is placed, open, or done
    pid: int = 0
    host: str = ""
    errors: str = ""  # the file of what it says on stderr, on its machine
    pinged: float = 0.0
    pings: list[Any] = field(default_factory=list)  # one that is not answered yet


class Process:
    """The inside of a worker's process. `opener` loads what answers, which has a method for each call and `said`."""

    def __init__(self, opener: Callable[[], Any]):
        self._opener, self._opened = opener, None

    def place(self) -> tuple[int, str, str]:
        """The process, its machine, and the file of what it says on stderr."""
        try:
            errors = os.readlink("/proc/self/fd/2")
        except OSError:
            errors = ""
        return os.getpid(), socket.gethostname(), errors

    def open(self) -> tuple[str, Any]:
        def opened() -> Any:
            from transformers.utils import logging

            logging.disable_progress_bar()  # nobody sees it
            self._opened = self._opener()
            return self._opened.said

        return told(opened)

    def ask(self, call: str, given: tuple[Any, ...]) -> tuple[str, Any]:
        return told(lambda: getattr(self._opened, call)(*given))

    def ping(self) -> None:
        """Show that the process lives, whatever it is doing."""


def told(do: Callable[[], Any]) -> tuple[str, Any]:
    """The value of what is done, or what went wrong: an error as Ray carries it has become another class, and its text a traceback."""
    try:
        return "value", do()
    except UserError as error:
        return "refused", str(error)
    except GivenUp as error:
        return "lost", str(error)
    except Exception as error:
        import traceback

        traceback.print_exc()
        return "lost", f"{type(error).__name__}: {error}"


class RayPool:
    """Workers in a Ray that is started here, or in the one at an `address`. Entered, it is there; `workers`: as many as there are GPUs, or one, for None.

    Raises UserError where there is no Ray to be had.
    """

    def __init__(self, opener: Callable[[], Any], workers: int | None, resources: Resources, address: str | None = None):
        self._opener, self._wanted, self._resources, self._address = opener, workers, resources, address
        self._ray = library()
        self._workers: dict[int, _Worker] = {}
        self._refs: dict[Any, int] = {}  # what is waited for, and of whom

    def __enter__(self) -> "RayPool":
        self._refuse_unreachable()
        cores, cpus = os.cpu_count() or 1, self._resources.cpus
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if self._address is None:
                os.environ.setdefault("RAY_worker_niceness", "0")  # they are the command's own work; Ray would have them wait for all others on the machine
                room = max(cores, int(-(-(self._wanted or 1) * (cpus or 1) // 1)))
                self._ray.init("local", num_cpus=room, include_dashboard=False, object_store_memory=STORE_BYTES, **quiet)
            else:
                self._ray.init(self._address, **quiet)
        except Exception as error:
            where = "Ray does not start on this machine" if self._address is None else f"--ray_address {self._address}: no Ray cluster answers there"
            raise UserError(f"{where}: {first_line(error)}") from None
        there = self._ray.cluster_resources()
        devices = 0 if self._resources.on_cpu else int(there.get("GPU", 0))
        self.workers = self._wanted or devices or 1
        gpus = self._resources.gpus if self._resources.gpus is not None else min(1, devices)
        if cpus is None:
            cpus = max(1, cores // self.workers) if self._address is None else 1
        self._takes = {"num_cpus": cpus, "num_gpus": gpus}
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):  # what is lost is lost, and the run's own error is to be seen
            self._ray.shutdown()

    def open(self, worker: int) -> None:
        """Begin a worker: find it a place, then let it load."""
        # one try each, for it is counted elsewhere which shard was lost how often; a second thread answers pings
        actor = self._ray.remote(Process).options(**self._takes, max_restarts=0, max_task_retries=0, max_concurrency=2).remote(self._opener)
        self._workers[worker] = _Worker(actor, time.monotonic())
        self._await(worker, actor.place.remote())

    def ask(self, worker: int, call: str, given: tuple[Any, ...]) -> None:
        """Have an open worker do something."""
        self._workers[worker].stage = "done"
        self._await(worker, self._workers[worker].actor.ask.remote(call, given))

    def wait(self) -> list[Heard]:
        """What was heard of workers within ten seconds."""
        ready, _ = self._ray.wait([*self._refs], num_returns=1, timeout=PING_SECONDS)
        heard = [each for ref in ready if (each := self._come(self._refs.pop(ref), ref)) is not None]
        return heard + [each for worker in [*self._workers] if (each := self._silent(worker)) is not None]

    def _refuse_unreachable(self) -> None:
        """Raise UserError for an address where nothing listens, which Ray tries for minutes."""
        host, colon, port = (self._address or "").removeprefix("ray://").rpartition(":")
        if not colon:
            return
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
        except ValueError:
            raise UserError(f"ray_address must be HOST:PORT or auto, got {self._address!r}") from None
        except OSError as error:
            raise UserError(f"--ray_address {self._address}: no Ray cluster answers there ({error.strerror or error}): `ray status` says on its machines where it is") from None

    def _await(self, worker: int, ref: Any) -> None:
        self._refs[ref] = worker

    def _come(self, number: int, ref: Any) -> Heard | None:
        """What has come of a worker; None where it goes on with the next step by itself."""
        worker = self._workers[number]
        try:
            value = self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            return self._lose(number, self._death(worker, error))
        if worker.stage == "placed":
            worker.pid, worker.host, worker.errors = value
            worker.stage, worker.pinged = "open", time.monotonic()
            self._await(number, worker.actor.open.remote())
            return None
        kind, value = value
        if kind == "lost":  # it lives, but what it holds may be broken
            return self._lose(number, f"worker process {worker.pid} on {worker.host} said {value}")
        worker.stage = "idle"
        return Heard(number, value) if kind == "value" else Heard(number, refused=value)

    def _silent(self, number: int) -> Heard | None:
        """Whether a worker must be taken for lost: it found no place, or does not answer."""
        worker, now = self._workers[number], time.monotonic()
        if worker.stage == "placed":
            if now - worker.began < PLACE_SECONDS:
                return None
            return self._lose(number, f"no place was found for a worker within {PLACE_SECONDS:.0f} seconds: it takes {self._told_resources()}", placeless=True)
        if worker.pings and self._ray.wait(worker.pings, timeout=0)[0]:
            worker.pings = []
        if not worker.pings and now - worker.pinged >= PING_SECONDS:
            worker.pings, worker.pinged = [worker.actor.ping.remote()], now
        if worker.pings and now - worker.pinged > SILENT_SECONDS:
            return self._lose(number, f"worker process {worker.pid} on {worker.host} has not answered for {SILENT_SECONDS:.0f} seconds{last_words(worker)}")
        return None

    def _lose(self, number: int, why: str, placeless: bool = False) -> Heard:
        worker = self._workers.pop(number)
        self._refs = {ref: of for ref, of in self._refs.items() if of != number}
        with suppress(Exception):
            self._ray.kill(worker.actor)
        return Heard(number, lost=why, placeless=placeless)

    def _death(self, worker: _Worker, error: Exception) -> str:
        named = f"worker process {worker.pid} on {worker.host}" if worker.pid else "a worker's process"
        return f"{named} ended ({reason(error)}){last_words(worker)}"

    def _told_resources(self) -> str:
        there = self._ray.cluster_resources()
        takes = " and ".join(f"{self._takes[name]:g} {what}" for name, what in (("num_cpus", "CPUs"), ("num_gpus", "GPUs")) if self._takes[name])
        return f"{takes}, and all of Ray has {there.get('CPU', 0):g} CPUs and {there.get('GPU', 0):g} GPUs"


def reason(error: Exception) -> str:
    """Why Ray says that an actor ended, in a line: what it knows of the process, else the last of what was raised in it."""
    _, there, detail = " ".join(str(error).split()).partition("Worker exit detail: ")
    return (detail.split(". ")[0] if there else str(error).strip().splitlines()[-1])[:300]


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def last_words(worker: _Worker) -> str:
    """The last that a process said on stderr, where that can be read from here."""
    if worker.host != socket.gethostname() or not worker.errors:
        return ""
    try:
        lines = Path(worker.errors).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    own = [line.strip() for line in lines if line.strip() and not line.startswith(":")]  # Ray's own marks begin so
    return f"; the last it said: {' | '.join(own[-TOLD:])[:600]}" if own else ""
