"""Processes that make shards side by side, each asked by a thread here; or this process alone."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from ..errors import UserError
from .shard import Facts, Maker

# A core each: the threads of tokenizers would only wait for one another.
ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """So many processes that make shards as `maker` would; with one, this process does. Use as a context."""

    def __init__(self, maker: Maker, processes: int):
        self.maker, self.processes = maker, processes
        self._pool = ThreadPoolExecutor(processes) if processes > 1 else None
        self._own = threading.local()
        self._started: list[subprocess.Popen] = []

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for process in self._started:
            if kind is not None:
                process.kill()
            process.stdin.close()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for process in self._started:
            process.wait()
            process.stdout.close()

    def submit(self, number: int, records: str, examples: bytes) -> Callable[[], Facts]:
        """Have a shard made of pickled examples; what is returned waits for its facts, and raises what went wrong."""
        if self._pool is None:
            facts = self.maker.make(number, records, pickle.loads(examples))
            return lambda: facts
        future: Future[Facts] = self._pool.submit(self._asked, number, records, examples)
        return future.result

    def _asked(self, number: int, records: str, examples: bytes) -> Facts:
        if (process := getattr(self._own, "process", None)) is None:
            process = self._own.process = self._start()
            self._said(process, (str(self.maker.folder), self.maker.tokenizer, dict(self.maker.labelling)))
        return self._said(process, (number, records, examples))

    def _start(self) -> subprocess.Popen:
        paths = os.pathsep.join(filter(None, sys.path))  # as things are found here, and not by what lies where the command was given
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__.rpartition(".")[0] + ".worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
        )  # fmt: skip
        self._started.append(process)
        return process

    def _said(self, process: subprocess.Popen, asked: Any) -> Any:
        try:
            pickle.dump(asked, process.stdin)
            process.stdin.flush()
            said = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            code = process.wait()
            told = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
            raise UserError(
                f"a process that prepares rows {told}: where memory is short give fewer, --num_proc 1, and the same command goes on from the shards that are whole"
            ) from None
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(f"the tokenizer cannot be handed to another process ({error}): prepare in this one, --num_proc 1") from error
        if isinstance(said, Exception):
            raise said
        return said
