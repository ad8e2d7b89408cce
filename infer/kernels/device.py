"""Which device and dtype this machine does best with."""

from functools import cache

import torch
from torch import Tensor

from ...data.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device, or for "auto" the first of CUDA, Apple's MPS and the CPU that is there; raises UserError for one that cannot be used."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}): choose auto, cpu, cuda or mps") from None
    return device


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, str]:
    """Return the named dtype, or for "auto" the fastest that is safe on `device`, with the reason in words; raises UserError for an unknown name."""
    if name in DTYPES:
        return DTYPES[name], "as asked"
    if name != "auto":
        raise UserError(f"dtype {name!r} is unknown: choose auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return torch.bfloat16, "this GPU computes in bfloat16"
        return torch.float32, "this GPU has no bfloat16"
    if device.type == "cpu" and cpu_has_bfloat16():
        return torch.bfloat16, "this CPU has AVX512-BF16 or AMX"
    return torch.float32, f"bfloat16 is slower than float32 on this {'CPU' if device.type == 'cpu' else device.type}"


def precise(tensor: Tensor) -> Tensor:
    """Return the tensor, of any shape, where there is float64, which draws and sums need: Apple's MPS has none."""
    return tensor.cpu() if tensor.is_mps else tensor


def in_float64(tensor: Tensor) -> Tensor:
    """Return the tensor, of any shape, in float64, on its own device where that has it, else on the CPU."""
    return precise(tensor).double()


@cache
def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 matrices by instruction; without, they run 3 to 5 times slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
