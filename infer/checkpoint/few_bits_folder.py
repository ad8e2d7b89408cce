"""A model in 8 or 4 bits as a folder of its own: what the kernels read lies in the file as in memory, and is mapped from there.

`few_bits.safetensors` holds the packs of each quantised layer, its bias, and all other weights and buffers in the dtype that they are computed with. Its
header says in JSON, under `seodang`, the layout's number and of each layer its kind, its inputs and outputs, and the modules that it stands for.
Each tensor that is a whole number of lines of `LINE` bytes begins with one. What packs are made of is the same on every CPU.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...data.errors import UserError
from ..kernels.quantised_linear import GROUP, OutputSlice, Quantised
from ..runners.families.hollow import hollow
from ..runners.native.grouped_linear import LINE, GroupedLinear, GroupedLinear4, GroupedLinear8, missing_kernels
from ..runners.native.library import BLOCK
from .damage import read_json
from .manifest import verify
from .quantise import BITS, COVERED, as_quantised, quantise

LAYOUT = 1
METHOD = "seodang"  # in a configuration, of which transformers says that it does not know it
FILE = "few_bits.safetensors"  # a name that transformers does not look for: it would fill in random weights, with a warning
KINDS: dict[str, type[GroupedLinear]] = {kind.__name__: kind for kind in (GroupedLinear8, GroupedLinear4)}
HASHED = 256 << 20  # bytes of weights that are checked by their hash as they are loaded, which takes 0.15 s; of more the size is compared
DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.uint8: "U8", torch.int64: "I64", torch.bool: "BOOL"}


def few_bits_of(place: str | Path) -> str | None:
    """Return "int8" or "int4" where a folder holds a model that was saved so; None for all others."""
    config = Path(place) / "config.json"
    told = read_json(config).get("quantization_config") if config.is_file() else None
    if not isinstance(told, dict) or told.get("quant_method") != METHOD:
        return None
    if told.get("weights") not in BITS or told.get("layout") != LAYOUT:
        raise UserError(
            f"{place} holds weights in {told.get('weights')}, layout {told.get('layout')}, where this version of Seodang reads layout {LAYOUT} of {' and '.join(BITS)}: "
            "export the model again, or use the version that it was exported with"
        )
    return told["weights"]


# Writing


def write_few_bits(folder: Path, model: PreTrainedModel, weights: str) -> None:
    """Write a model that `quantise` has put in so many bits: configuration, generation's settings and weights, without a manifest.

    Raises UserError where its layers are torch's, for their layout is not the same on all CPUs.
    """
    layers, tensors = _layers(model), {}
    for layer in layers:
        tensors |= {f"{layer['name']}.{name}": buffer for name, buffer in layer.pop("module").named_buffers()}
    inside = {id(module) for module in model.modules() if isinstance(module, Quantised)}
    for name, module in model.named_modules():
        if id(module) not in inside:
            own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))  # transformers does not save all of these
            tensors |= {f"{name}.{part}": tensor.detach() for part, tensor in own}
    folder.mkdir(parents=True, exist_ok=True)
    told = model.config.to_dict() | {"architectures": [type(model).__name__]}
    told["quantization_config"] = {"quant_method": METHOD, "weights": weights, "layout": LAYOUT}
    type(model.config).from_dict(told).save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    _write(folder / FILE, tensors, {"format": "pt", METHOD: json.dumps({"layout": LAYOUT, "weights": weights, "layers": layers})})


def size_in_few_bits(model: PreTrainedModel) -> int:
    """How many bytes the weights of such a model take in its file."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _layers(model: PreTrainedModel) -> list[dict[str, Any]]:
    """Each quantised layer once, by the name of the first module that it stands for: kind, sizes, and the modules, those of some of its outputs with these."""
    found: dict[int, dict[str, Any]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        part = isinstance(module, OutputSlice)
        whole = module.whole if part else module
        if not isinstance(whole, Quantised) or name.endswith(".whole"):
            continue
        if type(whole).__name__ not in KINDS:
            reason = missing_kernels() or f"{type(whole).__name__} has no place there"
            raise UserError(f"the model cannot be saved in few bits on this machine ({reason}): save it where the native step runs")
        sizes = {"name": name, "kind": type(whole).__name__, "inputs": whole.in_features, "outputs": whole.out_features, "places": [], "module": whole}
        found.setdefault(id(whole), sizes)["places"].append([name, module.start, module.stop] if part else [name])
    return list(found.values())


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write a safetensors file: first what is a whole number of lines, each beginning with one, then the rest, larger numbers first."""
    order = sorted(tensors, key=lambda name: (tensors[name].nbytes % LINE > 0, -tensors[name].itemsize))
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % LINE)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name].contiguous().view(-1).view(torch.uint8).numpy())


# Reading


def read_few_bits(folder: str | Path) -> PreTrainedModel:
    """Return the model of such a folder, its weights mapped into memory: nothing is copied or computed, and the file is read when they first are.

    Where this machine has no kernels for them, the weights are written out and quantised anew for torch's, which takes as long as from a checkpoint in
    floats. Raises UserError for files that are missing, damaged, or do not fit the configuration.
    """
    folder = Path(folder)
    weights = few_bits_of(folder)
    path = folder / FILE
    verify(folder, by_size=(FILE,) if path.is_file() and path.stat().st_size > HASHED else ())
    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, StrictDataclassError) as error:
        raise UserError(f"{folder / 'config.json'} is no configuration ({str(error).splitlines()[-1].strip()}): restore the file, or export the model again") from None
    del config.quantization_config
    try:
        with safe_open(path, "pt") as file:
            told = json.loads(file.metadata()[METHOD])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        model = _empty(config)
        for layer in told["layers"]:
            _put(model, layer, tensors)
        _fill(model, tensors)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: restore the file, or export the model again") from None
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): restore the file, or export the model again") from None
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    if missing_kernels() is not None:
        eight = write_out(model)
        quantise(model.float(), weights, eight=eight)
        return model
    model.mapped_from = path
    return as_quantised(model)


def is_mapped(model: PreTrainedModel) -> bool:
    """Whether a model's weights lie in such a file, which a copy of them in memory of our own would read whole."""
    return getattr(model, "mapped_from", None) is not None


def _empty(config: PreTrainedConfig) -> PreTrainedModel:
    """Return a model as its configuration has it, whose weights hold nothing; raises ValueError where `quantise` does not cover it."""
    [name] = config.architectures
    if name not in COVERED:
        raise ValueError(f"{name} is kept in no few bits")
    return hollow(lambda: getattr(transformers, name)(config))


def _put(model: PreTrainedModel, layer: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put a layer, mapped, into the places of the modules that it stands for; raises ValueError where its sizes are not theirs, for kernels would read what is not there."""
    name, inputs, outputs, places = layer["name"], layer["inputs"], layer["outputs"], layer["places"]
    kind = KINDS[layer["kind"]]
    packed, bias = tensors.pop(f"{name}.packed"), tensors.pop(f"{name}.bias", None)
    wanted = (-(-outputs // BLOCK), pack_bytes(kind, inputs))
    if tuple(packed.shape) != wanted or packed.dtype != torch.uint8 or bias is not None and (bias.shape != (outputs,) or bias.dtype != torch.bfloat16):
        raise ValueError(f"{name} has packs of {list(packed.shape)} {packed.dtype}, not {list(wanted)}, or no such bias")
    whole = kind.of_packs(packed, outputs, inputs, bias)
    for place, *part in places:
        parent, _, leaf = place.rpartition(".")
        former = model.get_submodule(place)
        there = tuple(former.weight.shape)[:: -1 if isinstance(former, Conv1D) else 1]
        begin, end = part or (0, outputs)
        if there != (end - begin, inputs) or not 0 <= begin < end <= outputs:
            raise ValueError(f"{place} has {list(there)} weights by config.json, not {[end - begin, inputs]}")
        setattr(model.get_submodule(parent), leaf, OutputSlice(whole, begin, end) if part else whole)


@cache
def pack_bytes(kind: type[GroupedLinear], inputs: int) -> int:
    """How many bytes a pack of such a layer has."""
    if inputs <= 0 or inputs % GROUP:
        raise ValueError(f"{inputs} inputs are no whole number of groups of {GROUP}")
    return kind(torch.zeros(BLOCK, inputs)).packed.shape[1]


def _fill(model: PreTrainedModel, tensors: dict[str, Tensor]) -> None:
    """Put the other tensors into the model; raises ValueError for one that is missing, of another shape or kind of number, or too many."""
    for name, module in model.named_modules():
        if isinstance(module, Quantised):
            continue
        for held, parts in ((module._parameters, module.named_parameters(recurse=False)), (module._buffers, module.named_buffers(recurse=False))):
            for part, empty in list(parts):
                tensor = tensors.pop(f"{name}.{part}")
                if tensor.shape != empty.shape or tensor.is_floating_point() != empty.is_floating_point():
                    raise ValueError(f"{name}.{part} is {list(tensor.shape)} of {tensor.dtype}, by config.json {list(empty.shape)} of {empty.dtype}")
                held[part] = nn.Parameter(tensor, requires_grad=False) if held is module._parameters else tensor
    if tensors:
        raise ValueError(f"there is no place for {min(tensors)}")


def write_out(model: PreTrainedModel) -> set[nn.Module]:
    """Put plain layers with the weights in float32 that they stand for into the places of quantised ones; return those that were in 8 bits."""
    eight = set()
    for name, module in list(_places(model)):
        parent, _, leaf = name.rpartition(".")
        whole, part = (module.whole, slice(module.start, module.stop)) if isinstance(module, OutputSlice) else (module, slice(None))
        weight, bias = whole.dequantised()[part], None if whole.bias is None else whole.bias[part].float()
        layer = _plain(weight, bias, across=model.config.model_type == "gpt2" and name != "lm_head")
        setattr(model.get_submodule(parent), leaf, layer)
        if isinstance(whole, GroupedLinear8):
            eight.add(layer)
    return eight


def _places(model: PreTrainedModel) -> Iterable[tuple[str, nn.Module]]:
    return ((name, each) for name, each in model.named_modules() if isinstance(each, OutputSlice) or isinstance(each, Quantised) and not name.endswith(".whole"))


def _plain(weight: Tensor, bias: Tensor | None, across: bool) -> nn.Module:
    outputs, inputs = weight.shape
    with torch.device("meta"):
        layer = Conv1D(outputs, inputs) if across else nn.Linear(inputs, outputs, bias=bias is not None)
    layer.weight = nn.Parameter(weight.t().contiguous() if across else weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return layer
