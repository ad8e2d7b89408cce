"""The native pass as Python calls it: the compiled `step.c`, and a model laid out for it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...kernels.quantised_linear import OutputSlice, Quantised
from ..families.parts import LayerParts, ModelParts
from .compiler import NotBuilt, built, forget
from .low_rank import NativeAdapters

SOURCE = Path(__file__).with_name("step.c")
DTYPES, INT8, INT4 = {torch.float32: 0, torch.bfloat16: 1}, 2, 3
INT5, SUPER4, SUPER5, SUPER6 = range(4, 8)  # in the blocks of GGUF files
BLOCK = 16  # outputs that are computed at a time
OFF = "SEODANG_NATIVE"  # the environment variable that turns it off
# what `activations.h` computes, by the class of the module
ACTIVATIONS = {"SiLU": 0, "SiLUActivation": 0, "GELUActivation": 1, "GELUTanh": 2, "NewGELUActivation": 2, "FastGELUActivation": 2, "ReLU": 3}
ROW = 10  # numbers that say what a row is: the fields of `Row` in model.h

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")  # of a layer, those of the same input side by side: adapters know them by numbers

_Address = ctypes.c_void_p


class Linear(ctypes.Structure):
    """A linear layer as `step.c` reads it."""

    _fields_ = [*((name, ctypes.c_int64) for name in ("dtype", "inputs", "outputs", "stride", "number")), ("weight", _Address), ("bias", _Address)]


class _Norm(ctypes.Structure):
    _fields_ = [("weight", _Address), ("bias", _Address), ("count", ctypes.c_int64), ("eps", ctypes.c_double), ("offset", ctypes.c_double)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, Linear) for name in (*LINEARS, "router")),
        *((name, _Norm) for name in ("attention_norm", "q_norm", "k_norm", "after_attention", "feed_norm", "after_feed")),
        *((name, ctypes.c_int64) for name in ("window", "turned", "chosen", "normalised")),
        *((name, ctypes.c_double) for name in ("scale", "softcap")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("dtype", "hidden", "heads", "kv_heads", "width", "inner", "vocab", "activation", "experts", "chosen", "cache")),
        *((name, ctypes.c_double) for name in ("embed_scale", "softcap")),
        ("head", Linear),
        ("norm", _Norm),
        *((name, _Address) for name in ("embed", "positions")),
        ("layers", ctypes.POINTER(_Layer)),
    ]


class NativeModel:
    """The addresses of a model's weights, as they are now, and its sizes: what `step.c` reads. Nothing is copied."""

    def __init__(self, parts: ModelParts, layers: Sequence[LayerParts], weights: Iterable[Tensor], cache_in_8_bits: bool = False):
        """`layers` are those of the model to run, or the first of them, `weights` all of the model's, which is one that `refuses` has no word against.

        Keys and values are in the dtype of the embedding, or `cache_in_8_bits`.
        """
        self.kept = [weight.detach() for weight in weights]  # one that is replaced stays until this is laid out anew
        turned = 0 if parts.rotary is None else 2 * parts.rotary.inv_freq.numel()
        numbers: dict[nn.Module, int] = {}
        self.layers = (_Layer * len(layers))(*(_laid(layer, parts, turned, i * len(LINEARS), numbers) for i, layer in enumerate(layers)))
        first = self.layers[0]
        self.reads_prompts = first.q.dtype >= INT8 or not first.o.stride and quick_with_many(parts.embed.weight.dtype)
        embed = self.embed = parts.embed.weight
        unread = {module for layer in parts.layers[len(layers) :] for module in layer.linears}
        self.adapters = NativeAdapters(numbers, len(layers) * len(LINEARS), unread, embed.dtype)
        self.ids, self.positions = len(embed), None if parts.positions is None else len(parts.positions.weight)
        scale = getattr(parts.embed, "embed_scale", None)
        self.whole = _Model(
            dtype=DTYPES[embed.dtype],
            hidden=embed.shape[1],
            heads=parts.heads,
            kv_heads=parts.kv_heads,
            width=parts.width,
            inner=max(layer.down.inputs for layer in self.layers),
            vocab=_linear(parts.head).outputs,
            activation=ACTIVATIONS[type(layers[0].activation).__name__],
            experts=max(layer.router.outputs for layer in self.layers),
            chosen=max(layer.chosen for layer in self.layers),
            cache=INT8 if cache_in_8_bits else DTYPES[embed.dtype],
            embed_scale=1.0 if scale is None else scale.to(embed.dtype).item(),
            softcap=parts.softcap or 0.0,
            embed=embed.data_ptr(),
            positions=None if parts.positions is None else parts.positions.weight.data_ptr(),
            norm=_norm(parts.norm, parts.one_is_added),
            head=_linear(parts.head),
            layers=self.layers,
        )

    def run(self, rows: Sequence[int], turns: tuple[Tensor, Tensor] | None, logits: Tensor, states: dict[int, Tensor]) -> None:
        """Take rows, `ROW` numbers each, through the layers; raises MemoryError where there is none for what lies between.

        `turns` are cosine and sine of the positions, float32 [positions, 1, numbers of a head that turn], the first half of the sine with its sign
        turned; None where nothing turns. `logits`, float32 [rows wanted, vocab], and by layer `states`, float32 [rows, hidden], are written.
        """
        numbers = (ctypes.c_int64 * len(rows))(*rows)
        places = (_Address * (len(self.layers) + 1))(*(states[i].data_ptr() if i in states else None for i in range(len(self.layers) + 1))) if states else None
        cos, sin = (None, None) if turns is None else (turn.data_ptr() for turn in turns)
        failed = library().seodang_step(
            ctypes.byref(self.whole), len(self.layers), numbers, len(rows) // ROW, cos, sin, logits.data_ptr(), places, torch.get_num_threads()
        )
        if failed:
            raise MemoryError(f"no memory for a pass of {len(rows) // ROW} rows")


def _laid(layer: LayerParts, parts: ModelParts, turned: int, number: int, numbers: dict[nn.Module, int]) -> _Layer:
    """A layer's addresses and sizes; `numbers` gets its linear layers, from `number` on, but those of which several are in one module."""
    linears = {"o": _linear(layer.out), **dict(zip("qkv", _linears(layer.qkv, [parts.heads * parts.width, *[parts.kv_heads * parts.width] * 2])))}
    chosen = {}
    if layer.experts is None:
        linears["down"] = _linear(layer.shrink)
        inner = linears["down"].inputs
        linears |= dict(zip(("gate", "up") if layer.gated else ("up",), _linears(layer.grow, [inner, inner])))
    else:
        linears |= _experts(layer.router, layer.experts)
        chosen = {"chosen": layer.router.top_k, "normalised": bool(layer.router.norm_topk_prob)}
    modules = {"o": layer.out, "down": layer.shrink}
    modules |= dict(zip("qkv", layer.qkv)) if len(layer.qkv) > 1 else {}
    modules |= dict(zip(("gate", "up") if layer.gated else ("up",), layer.grow)) if len(layer.grow) == 1 + layer.gated else {}
    for i, name in enumerate(LINEARS):
        if (module := modules.get(name)) is not None:
            numbers[module] = linears[name].number = number + i
    norms = {name: norm for name in ("attention_norm", "after_attention", "feed_norm", "after_feed") if (norm := getattr(layer, name)) is not None}
    heads = {} if layer.head_norms is None else {name: _norm(norm) for name, norm in zip(("q_norm", "k_norm"), layer.head_norms)}
    return _Layer(
        window=layer.window or 0,
        turned=turned if layer.turns else 0,
        scale=layer.scale,
        softcap=layer.softcap or 0.0,
        **linears,
        **{name: _norm(norm, parts.one_is_added) for name, norm in norms.items()},
        **heads,
        **chosen,
    )


def _linears(modules: Sequence[nn.Module], outputs: Sequence[int]) -> list[Linear]:
    """Linear layers as they are, or where there is one for all of them, its parts of so many outputs each."""
    if len(modules) > 1:
        return [_linear(module) for module in modules]
    return [_linear(modules[0], begin, count) for begin, count in zip((0, *accumulate(outputs)), outputs)]


def _linear(module: nn.Module, begin: int = 0, count: int | None = None) -> Linear:
    """A linear layer, or so many of its outputs from `begin` on; one of few bits says itself where it lies."""
    if isinstance(module, OutputSlice):
        return module.whole.as_read(module.start + begin, module.stop - module.start - begin if count is None else count)
    if isinstance(module, Quantised):
        return module.as_read(begin, count)
    weight, bias, across = module.weight, module.bias, isinstance(module, Conv1D)
    outputs, inputs = weight.shape[::-1] if across else weight.shape
    return Linear(
        dtype=DTYPES[weight.dtype],
        inputs=inputs,
        outputs=outputs if count is None else count,
        stride=outputs if across else 0,
        number=-1,
        weight=weight.data_ptr() + begin * (1 if across else inputs) * weight.itemsize,
        bias=None if bias is None else bias.data_ptr() + begin * bias.itemsize,
    )


def _experts(router: nn.Module, experts: nn.Module) -> dict[str, Linear]:
    """The router, and the first of the experts, whose gate lies before its other branch."""
    both, down, dtype = experts.gate_up_proj, experts.down_proj, DTYPES[router.weight.dtype]
    hidden, inner = down.shape[1:]
    found = {
        "router": (hidden, len(router.weight), router.weight.data_ptr()),
        "gate": (hidden, inner, both.data_ptr()),
        "up": (hidden, inner, both[0, inner:].data_ptr()),
        "down": (inner, hidden, down.data_ptr()),
    }
    return {name: Linear(dtype=dtype, inputs=inputs, outputs=outputs, number=-1, weight=weight) for name, (inputs, outputs, weight) in found.items()}


def _norm(module: nn.Module, one_is_added: bool = False) -> _Norm:
    weight, bias = module.weight, getattr(module, "bias", None)
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    return _Norm(weight.data_ptr(), None if bias is None else bias.data_ptr(), len(weight), eps, float(one_is_added))


def quick_with_many(dtype: torch.dtype) -> bool:
    """Whether the native products of many rows are known to be quicker than torch's in a dtype, whose weights lie [outputs, inputs].

    With AVX2 and more they are, at any number of rows (docs/native.md), but in bfloat16 where torch has AMX. Elsewhere neither was measured.
    """
    amx = dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16", False)
    return built_for().startswith("AVX") and not amx


def is_off() -> bool:
    """Whether the native step is turned off."""
    return os.environ.get(OFF) == "0"


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
    found.seodang_product.argtypes = [ctypes.POINTER(Linear), floats, number, floats, number]
    found.seodang_product.restype = number
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
    """The instructions that the compiled pass uses, as "AVX512-BF16 and VNNI"; raises as `library` does."""
    return library().seodang_built_for().decode()
