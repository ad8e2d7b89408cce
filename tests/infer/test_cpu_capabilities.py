"""What CPUs of fewer instructions compute, shown on this one: torch chooses its kernels by a variable that it reads when it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]
LESS = [name for name in ("default", "avx2") if name != torch.backends.cpu.get_cpu_capability().lower()]  # what the other tests run under


def passes(capability: str, *arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-c", TESTS / "pytest.ini", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([*map(str, command)], cwd=TESTS, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.parametrize("capability", LESS)
def test_quantised_layers_and_models_are_right(capability):
    passes(capability, "infer/test_quantised.py", "-k", "not speaks and not adapter")  # those load the real model or its tokenizer


@pytest.mark.full
@pytest.mark.parametrize("capability", LESS)
def test_runners_and_packing_are_right(capability):
    runners = [f"infer/test_{kind}runner.py" for kind in ("", "direct_", "padded_", "stateful_", "encoder_decoder_")]
    passes(capability, *runners, "infer/test_attention.py", "data/test_packing.py", "train/test_packed.py", "-m", "not full")
