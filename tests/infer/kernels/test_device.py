"""Where float64 is computed: on the device, or on the CPU for one that has none."""

import re
from pathlib import Path

import torch

import seodang.train
from seodang.infer.kernels.device import in_float64, precise

TRAIN = Path(seodang.train.__file__).parent


class OnApple:
    """What stands for a tensor on Apple's GPU, which refuses float64."""

    device, is_mps = torch.device("mps"), True

    def cpu(self) -> torch.Tensor:
        return torch.tensor([1.5], dtype=torch.float32)

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")


def test_float64_is_computed_on_the_cpu_where_the_device_has_none():
    assert in_float64(OnApple()).dtype == torch.float64 and in_float64(OnApple()).item() == 1.5
    here = torch.ones(2)
    assert precise(here) is here and in_float64(here).dtype == torch.float64


def test_training_asks_for_float64_through_that_alone():
    lines = [(path.name, line.strip()) for path in TRAIN.rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    assert lines and not [each for each in lines if re.search(r"(?<!\.cpu\(\))\.double\(\)", each[1])]
