import os

import psutil
import pytest
import torch

from seodang.infer.kernels.cpu_threads import threads_line


@pytest.mark.parametrize(
    ("threads", "busy", "policy", "line"),
    [
        (4, 2.0, "passive", "4, an idle one sleeps (OMP_WAIT_POLICY=PASSIVE)"),
        (4, 12.5, None, "4, an idle one spins for a while (OMP_WAIT_POLICY is not set)"),  # half a core of four is let pass
        (4, 50.0, "ACTIVE", "4, an idle one spins (OMP_WAIT_POLICY=ACTIVE); other programs keep 2.0 of 4 cores busy: OMP_NUM_THREADS=2 may be faster"),
        (2, 100.0, "PASSIVE", "2, an idle one sleeps (OMP_WAIT_POLICY=PASSIVE); other programs keep 4.0 of 4 cores busy: OMP_NUM_THREADS=1 may be faster"),
        (1, 100.0, "PASSIVE", "1, an idle one sleeps (OMP_WAIT_POLICY=PASSIVE)"),
    ],
)
def test_the_line_says_what_is_in_use_and_advises_where_others_take_the_cores(monkeypatch, threads, busy, policy, line):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds: busy)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    assert threads_line() == line
