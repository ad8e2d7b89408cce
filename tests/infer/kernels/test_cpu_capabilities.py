"""What CPUs of fewer instructions compute, shown on this one: torch chooses its kernels by a variable that it reads when it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[2]
LESS = [name for name in ("default", "avx2") if name != torch.backends.cpu.get_cpu_capability().lower()]  # what the other tests run under


def passes(capability: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-c", TESTS / "pytest.ini", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([*map(str, command)], cwd=TESTS, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.full
@pytest.mark.parametrize("capability", LESS)
def test_quantised_layers_and_models_are_right(capability):
    passes(capability, "infer/kernels/test_quantised_linear.py", "-k", "not speaks and not adapter")  # those load the real model or its tokenizer


@pytest.mark.full
@pytest.mark.parametrize("capability", LESS)
def test_runners_and_packing_are_right(capability):
    runners = [f"infer/runners/test_{kind}.py" for kind in ("ragged", "direct", "padded", "stateful", "encoder_decoder")]
    passes(capability, *runners, "infer/runners/test_attention.py", "data/test_packing.py", "train/attention/test_packed_attention.py", "-m", "not full")
