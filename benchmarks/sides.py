"""The sides of a benchmark, each a process of its own: it loads its model once, answers a line on its stdin by a line on its stdout, and stands still in between.

Needs nothing but Python, for a side may run in another engine's environment.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

Calls = dict[str, Callable[..., dict]]


def serve(begin: Callable[[], tuple[Calls, dict]]) -> None:
    """Be a side: say what `begin` has to say of what it loaded, then answer each line's `call` with the rest of the line as its arguments."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    calls, said = begin()
    print(json.dumps(said), file=answers, flush=True)
    for line in sys.stdin:
        arguments = json.loads(line)
        print(json.dumps(calls[arguments.pop("call")](**arguments)), file=answers, flush=True)


class Side:
    """A side as the benchmark has it: its process stands still (SIGSTOP) unless it is asked, so that no thread of it spins beside the others."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str]):
        self.name, self.log = name, tempfile.TemporaryFile()
        inherited = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}  # each waits as it does by itself
        everything = inherited | {"OMP_NUM_THREADS": str(os.cpu_count())} | environment
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.log, text=True, env=everything, start_new_session=True)
        self.said = self._answer()
        self._signal(signal.SIGSTOP)

    def ask(self, call: str, **arguments) -> dict:
        """Have the side run, answer, and stand still again."""
        self._signal(signal.SIGCONT)
        print(json.dumps({"call": call, **arguments}), file=self.process.stdin, flush=True)
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()
        self.log.close()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.log.seek(0)
            raise RuntimeError(f"{self.name} ended by itself:\n{self.log.read().decode(errors='replace')[-3000:]}")
        return json.loads(line)

    def _signal(self, number: int) -> None:
        """Send it to the process and those that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
