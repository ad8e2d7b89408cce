"""A short form of `benchmarks/serve_soak.py`, on a tiny model that answers many a request in two minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[3] / "benchmarks" / "serve_soak.py"


@pytest.mark.full
def test_two_minutes_of_a_mixed_load_leave_nothing_behind(talker, tmp_path):
    for each in talker:
        each.save_pretrained(tmp_path)
    options = ["--model", tmp_path, "--minutes", 2, "--against", 1, "--lead_in", 1500, "--cache_gib", 0.02]
    command = [sys.executable, SOAK, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, encoding="utf-8", env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=1500)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert "passed" in done.stdout
