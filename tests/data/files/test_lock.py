import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from seodang.data.errors import UserError
from seodang.data.files import lock
from seodang.data.files.lock import alone

HOLDS = "import sys, time; from seodang.data.files.lock import alone\nwith alone({path!r}, 'x'): print('held', flush=True); time.sleep(60)"


def test_who_waits_is_told_for_whom_and_takes_over_from_one_that_was_killed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "TOLD_AFTER", 0.1)
    path = tmp_path / "lock"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = HOLDS.format(path=str(path)).replace("alone('", "alone(__import__('pathlib').Path('").replace("', 'x')", "'), 'x')")
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout.readline() == b"held\n"
        threading.Timer(0.5, holder.send_signal, [signal.SIGKILL]).start()
        began = time.monotonic()
        with caplog.at_level(logging.WARNING), alone(path, "preparing rows"):
            assert 0.3 < time.monotonic() - began < 10
    assert f"preparing rows: waiting for process {holder.pid} on " in caplog.text and "which does it" in caplog.text


def test_one_without_a_sign_is_not_waited_for_and_one_that_gives_signs_is(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    with alone(path, "first"):
        with pytest.raises(UserError, match=rf"second: process {os.getpid()} on .* holds .*lock and has given no sign for 0.3 s: end it"), alone(path, "second", patience=0.3):
            pass
        done = threading.Event()

        def signs():
            while not done.wait(0.05):
                os.utime(path)

        threading.Thread(target=signs).start()
        began = time.monotonic()
        threading.Timer(1.0, done.set).start()
        with pytest.raises(UserError, match="no sign"), alone(path, "third", patience=0.4):
            pass
        assert time.monotonic() - began > 1.2
    with alone(path, "fourth", patience=0.1):  # free again
        pass


def test_what_is_yielded_is_a_sign(tmp_path, monkeypatch):
    path, clock = tmp_path / "lock", iter(range(0, 100, 2))
    with alone(path, "first") as sign:
        os.utime(path, (1, 1))
        monkeypatch.setattr(lock.time, "monotonic", lambda: 1e9 + next(clock))
        sign()
        assert path.stat().st_mtime > 1000
