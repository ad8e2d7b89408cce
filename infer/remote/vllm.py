"""vLLM as a server of this machine, in an interpreter of its own environment: started, waited for, and gone with whoever started it."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from ...data.errors import UserError
from .connection import Server

START_SECONDS = 3600.0  # that it may take to load a model, perhaps from the hub
STOP_SECONDS = 30.0
COMMAND = "vllm.entrypoints.cli.main"  # what its own command `vllm` runs
# It ends with the pipe that it reads from, which closes with our process, however that ends: nobody else would stop it.
UNDER_US = f"""
import os, runpy, signal, sys, threading, time

def end_with_them():
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep({STOP_SECONDS})
    os.killpg(0, signal.SIGKILL)

if __name__ == "__main__":
    sys.path[:] = filter(None, sys.path)  # what lies in the current folder is no library
    threading.Thread(target=end_with_them, daemon=True).start()
    runpy.run_module({COMMAND!r}, run_name="__main__", alter_sys=True)
"""
OURS = ("--model", "--host", "--port", "--uds", "--api-key", "--served-model-name", "--generation-config")  # that are said here


def check_interpreter(python: str, arguments: str) -> None:
    """Raise UserError for an interpreter that cannot be run or has no vLLM, and for arguments of its that are ours to say."""
    for word in words_of(arguments):
        if word.partition("=")[0].replace("_", "-") in OURS:
            raise UserError(f"vllm_args has {word.partition('=')[0]}, which is said here: leave it out")
    try:
        done = subprocess.run([python, "-c", "import importlib.util as u, sys; sys.exit(3 * (u.find_spec('vllm') is None))"], stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        raise UserError(f"vllm_python {python} cannot be run ({error.strerror}): name the interpreter of vLLM's environment, as ENV/bin/python") from None
    if done.returncode:
        made = "python -m venv ENV && ENV/bin/pip install vllm"
        raise UserError(f"{python} has no vLLM, which needs an environment of its own: make one ({made}) and name its interpreter by --vllm_python ENV/bin/python")


def words_of(arguments: str) -> list[str]:
    """Arguments as a shell parts them."""
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise UserError(f"vllm_args {arguments!r}: {error}") from None


@contextmanager
def vllm_server(python: str, model: str, name: str, arguments: Sequence[str] = (), **how: Any) -> Iterator[Server]:
    """Serve a model, a folder or a name on the hub, under a name, as long as the context lasts; `how` are settings of the Server that is asked.

    It listens on a port of this machine alone, and takes nobody's requests who has not the key that was drawn for it. The settings of its
    checkpoint are not its defaults: what holds is said by each request. Raises UserError, with the last that it wrote, where it does not start.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    key = secrets.token_hex(16)
    said = ["serve", model, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", name, "--generation-config", "vllm"]
    environment = {**os.environ, "VLLM_API_KEY": key}  # which, as an argument, every user of the machine could read
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [python, "-c", UNDER_US, *said, *arguments], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until_ready(process, port, log)
            yield Server(f"http://127.0.0.1:{port}/v1", key, alive=lambda: process.poll() is None, **how)
        except UserError:
            raise
        except Exception:
            if process.poll() is not None:
                print(f"vLLM has ended:\n{last_words(log)}", file=sys.stderr)
            raise
        finally:
            stop(process)


def wait_until_ready(process: subprocess.Popen, port: int, log: BinaryIO) -> None:
    """Return once it is well; raises UserError where it ends instead, or takes too long."""
    until, asked = time.monotonic() + START_SECONDS, build_opener(ProxyHandler({}))  # no proxy leads to this machine
    while True:
        if process.poll() is not None or time.monotonic() > until:
            why = "did not start" if process.poll() is not None else f"was not ready within {START_SECONDS:g} s"
            raise UserError(f"vLLM {why}; it said: {last_words(log)}")
        with suppress(URLError, OSError), asked.open(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)


def last_words(log: BinaryIO, most: int = 3000) -> str:
    """The end of what it wrote."""
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - most))
    return log.read().decode(errors="replace").strip()


def stop(process: subprocess.Popen) -> None:
    """End it, and what it has started; kindly at first."""
    process.stdin.close()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):  # what is left of its group
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
