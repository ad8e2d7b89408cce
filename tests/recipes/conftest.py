"""Recipes as a cluster runs them: several processes by accelerate."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def launch():
    """`launch(verb, *argv, processes=2)`: run `accelerate launch recipes/<verb>.py` on CPU processes to its end."""

    def run(verb: str, *argv, processes: int = 2) -> None:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", processes, "--num_machines", 1,
                   "--main_process_port", 0, "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", 1,
                   Path(__file__).parents[2] / "recipes" / f"{verb}.py", *argv]  # fmt: skip
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, done.stderr[-3000:]

    return run
