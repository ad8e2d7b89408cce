"""The native pass as Python calls it: the compiled `step.c`, and a model laid out for it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .compiler import NotBuilt, built, forget
from .low_rank import NativeAdapters

SOURCE = Path(__file__).with_name("step.c")
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
ROW = 10  # numbers that say what a row is: the fields of `Row` in step.c

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer, those of the same input side by side

_Address = ctypes.c_void_p


class Windowed(Protocol):
    """A layer as the direct runner knows it."""

    scale: float
    window: int | None


class _Linear(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_int64) for name in ("dtype", "inputs", "outputs", "number")), ("weight", _Address), ("bias", _Address)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, _Linear) for name in LINEARS),
        *((name, _Address) for name in ("attention_norm", "feed_norm", "q_norm", "k_norm")),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_double),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "hidden", "heads", "kv_heads", "width", "inner", "vocab")),
        ("eps", ctypes.c_double),
        ("head", _Linear),
        *((name, _Address) for name in ("embed", "norm")),
        ("layers", ctypes.POINTER(_Layer)),
    ]


class NativeModel:
    """The addresses of a model's weights, as they are now, and its sizes: what `step.c` reads. Nothing is copied."""

    def __init__(self, model: PreTrainedModel, blocks: Sequence[Windowed]):
        """`blocks` are those of the direct runner, which know each layer's window and scale; `model` is one that `refuses` has no word against."""
        trunk, config = model.model, model.config
        self.kept = [parameter.detach() for parameter in model.parameters()]  # one that is replaced stays until this is laid out anew
        numbers: dict[nn.Module, int] = {}
        self.layers = (_Layer * len(blocks))(*(_laid(layer, block, numbers) for layer, block in zip(trunk.layers, blocks)))
        first, embed = trunk.layers[0], trunk.embed_tokens.weight
        unread = {module for layer in trunk.layers[len(blocks) :] for module in layer.modules()}
        self.adapters = NativeAdapters(numbers, unread, embed.dtype)
        self.embed, self.ids = embed, len(embed)
        self.whole = _Model(
            dtype=DTYPES[embed.dtype],
            hidden=embed.shape[1],
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            width=first.self_attn.head_dim,
            inner=len(first.mlp.gate_proj.weight),
            vocab=len(model.lm_head.weight),
            eps=trunk.norm.variance_epsilon,
            embed=embed.data_ptr(),
            norm=trunk.norm.weight.data_ptr(),
            head=_linear(model.lm_head),
            layers=self.layers,
        )

    def run(self, rows: Sequence[int], turns: tuple[Tensor, Tensor], logits: Tensor, states: dict[int, Tensor]) -> None:
        """Take rows, `ROW` numbers each, through the layers; raises MemoryError where there is none for what lies between.

        `turns` are cosine and sine of the positions, float32 [positions, 1, width], the first half of the sine with its sign turned. `logits`, float32
        [rows wanted, vocab], and by layer `states`, float32 [rows, hidden], are written.
        """
        numbers = (ctypes.c_int64 * len(rows))(*rows)
        places = (_Address * (len(self.layers) + 1))(*(states[i].data_ptr() if i in states else None for i in range(len(self.layers) + 1))) if states else None
        cos, sin = (turn.data_ptr() for turn in turns)
        failed = library().seodang_step(
            ctypes.byref(self.whole), len(self.layers), numbers, len(rows) // ROW, cos, sin, logits.data_ptr(), places, torch.get_num_threads()
        )
        if failed:
            raise MemoryError(f"no memory for a pass of {len(rows) // ROW} rows")


def _linear(linear: nn.Linear, number: int = -1) -> _Linear:
    bias = None if linear.bias is None else linear.bias.data_ptr()
    return _Linear(DTYPES[linear.weight.dtype], linear.in_features, linear.out_features, number, linear.weight.data_ptr(), bias)


def _laid(layer: nn.Module, block: Windowed, numbers: dict[nn.Module, int]) -> _Layer:
    """A layer's addresses and sizes; `numbers` gets its linear layers, in their order."""
    attention, mlp = layer.self_attn, layer.mlp
    linears = {"q": attention.q_proj, "k": attention.k_proj, "v": attention.v_proj, "o": attention.o_proj}
    linears |= {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
    numbers |= {linears[name]: len(numbers) + i for i, name in enumerate(LINEARS)}
    norms = {"attention_norm": layer.input_layernorm, "feed_norm": layer.post_attention_layernorm}
    norms |= {name: norm for name in ("q_norm", "k_norm") if (norm := getattr(attention, name, None)) is not None}
    return _Layer(
        window=block.window or 0,
        scale=block.scale,
        **{name: _linear(linear, numbers[linear]) for name, linear in linears.items()},
        **{name: norm.weight.data_ptr() for name, norm in norms.items()},
    )


def library() -> ctypes.CDLL:
    """Return the compiled pass, built at the first call where it is not in the cache; raises NotBuilt with what kept it from being built then."""
    found = loaded()
    if isinstance(found, str):
        raise NotBuilt(found)
    return found


@cache
def loaded() -> ctypes.CDLL | str:
    """The compiled pass, or in words why there is none: a compiler that fails or hangs is asked once a process."""
    try:
        return _load()
    except NotBuilt as error:
        return str(error)


def _load() -> ctypes.CDLL:
    path = built(SOURCE)
    try:
        found = ctypes.CDLL(str(path))
    except OSError:  # half a file, or one for another machine that shares the cache
        forget(path)
        try:
            found = ctypes.CDLL(str(built(SOURCE)))
        except OSError as error:
            raise NotBuilt(f"what the compiler made cannot be loaded ({error})") from None
    try:
        _declare(found)
    except AttributeError as error:  # compiled with hidden names, say
        raise NotBuilt(f"what the compiler made lacks a function ({error})") from None
    if (team := openmp()) is not None:
        found.seodang_use_team(*(ctypes.cast(function, _Address) for function in team))
    return found


def _declare(found: ctypes.CDLL) -> None:
    """Say what the functions of `step.c` take and give."""
    number, floats = ctypes.c_int, _Address
    found.seodang_step.argtypes = [ctypes.POINTER(_Model), number, ctypes.POINTER(ctypes.c_int64), number, floats, floats, floats, _Address, number]
    found.seodang_step.restype = number
    found.seodang_built_for.restype = ctypes.c_char_p
    found.seodang_use_team.argtypes = [_Address] * 3


def openmp() -> list[ctypes._CFuncPtr] | None:
    """The functions of the OpenMP runtime that torch computes with by which `step.c` runs on its threads; None where it has another kind of threads."""
    own = sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*"))
    try:
        runtime = ctypes.CDLL(str(own[0]) if own else None)  # what is loaded already is not loaded again
        return [getattr(runtime, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library of the process itself
        return None


def built_for() -> str:
    """The instructions that the compiled pass uses, as "AVX512-BF16"; raises as `library` does."""
    return library().seodang_built_for().decode()
