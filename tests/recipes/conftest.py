"""What recipes begin from, and how a cluster runs them: several processes, by accelerate's command or forked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig

from seodang.infer.runners.paradigm import Diffusion, declare


@pytest.fixture(autouse=True)
def _quick(unpainted):
    pass


@pytest.fixture
def base(fresh_tiny, tiny_tokenizer, tmp_path):
    """A tiny language model's folder."""
    folder = tmp_path / "base"
    fresh_tiny("llama").save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def declared(base):
    """`declared(shift=1)`: the same folder, whose config says that it is of masked diffusion, by mask 127 unless another is given."""

    def say(mask: int = 127, **diffusion) -> Path:
        config = AutoConfig.from_pretrained(base)
        declare(config, Diffusion(mask, **diffusion))
        config.save_pretrained(base)
        return base

    return say


@pytest.fixture
def launch():
    """`launch(verb, *argv)`: run `accelerate launch recipes/<verb>.py` on two CPU processes to its end, each of which imports everything."""

    def run(verb: str, *argv) -> None:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--num_machines", 1,
                   "--main_process_port", 0, "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", 1,
                   Path(__file__).parents[2] / "recipes" / f"{verb}.py", *argv]  # fmt: skip
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture
def on_two(run_script):
    """`on_two(verb, *argv)`: the same in two forked processes, without the command and the imports."""
    return lambda verb, *argv: run_script(f"recipes/{verb}.py", *argv, processes=2)
