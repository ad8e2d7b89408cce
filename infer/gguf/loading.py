"""A GGUF file as a model that speaks: its weights in the blocks that they are kept in, or written out as floats."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from gguf import GGMLQuantizationType
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...data.errors import UserError
from ..kernels.kernel_check import refuse_wrong_kernels
from ..kernels.quantised_linear import Quantised
from ..runners.families.hollow import hollow
from ..runners.families.parts import ModelParts, parts_of
from ..runners.native.grouped_linear import missing_kernels
from .blocks import BLOCKS, FLOATS, floats_of, layer_of
from .configuration import ROPE_FREQUENCIES, config_of
from .families import FAMILIES, LAYER, Family, as_it_is, held_as, minus_one, pairs_apart
from .reading import GgufFile

logger = logging.getLogger(__name__)

PHI3 = Family(
    "phi3", layer={
        "input_layernorm": LAYER["input_layernorm"], "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": LAYER["self_attn.o_proj"],
        "post_attention_layernorm": LAYER["post_attention_layernorm"], "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": LAYER["mlp.down_proj"],
    },
)  # fmt: skip
BACK = {"llama": pairs_apart, "gemma": minus_one, "gemma2": minus_one}  # by architecture, how a tensor becomes transformers' again
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def model_of(file: GgufFile, dtype: torch.dtype | None, instead: torch.dtype) -> PreTrainedModel:
    """Return the model of a file on the CPU, its weights written out in a dtype, or where that is None in their own blocks and the rest in bfloat16.

    Where no kernel multiplies blocks here, or a kind has none, weights are written out, all in the dtype `instead` in the one case, those of that kind in
    bfloat16 in the other; a warning says so.
    Raises UserError for a file that lacks a tensor, has one of another shape, or one that cannot be read.
    """
    config = config_of(file)
    if dtype is None and (reason := kept_from_blocks(file)) is not None:
        logger.warning("%s is written out in %s, for %s", file.path, str(instead).removeprefix("torch."), reason)
        dtype = instead
    model = hollow(lambda: AutoModelForCausalLM.from_config(config, dtype=dtype or torch.bfloat16))
    reader = _Reader(file, model, dtype)
    with torch.no_grad():
        reader.fill()
    if dtype is None:
        try:
            refuse_wrong_kernels(module for module in model.modules() if isinstance(module, Quantised))
        except UserError as error:
            logger.warning("%s is written out in %s, for a kernel is wrong here (%s)", file.path, str(instead).removeprefix("torch."), error)
            return model_of(file, instead, instead)
        model.requires_grad_(False)
    return model.eval()


def kinds_in(file: GgufFile) -> Counter[str]:
    """What the matrices of a file are kept in, by name, and how many are."""
    return Counter(file.kind(name).name for name in file.names if len(file.shape(name)) > 1 and file.kind(name) not in FLOATS)


def kept_from_blocks(file: GgufFile) -> str | None:
    """Say what keeps a file's weights from being multiplied in their blocks here; None where nothing does."""
    if (missing := missing_kernels()) is not None:
        return f"there are no native kernels ({missing})"
    known = [name for name in kinds_in(file) if GGMLQuantizationType[name] in BLOCKS]
    return None if known else f"no kernel multiplies {' and '.join(sorted(kinds_in(file)))}"


class _Reader:
    """Fills an empty model with a file's tensors."""

    def __init__(self, file: GgufFile, model: PreTrainedModel, dtype: torch.dtype | None):
        self.file, self.model, self.dtype = file, model, dtype
        arch = file.values["general.architecture"]
        self.family = PHI3 if arch == "phi3" else FAMILIES[arch]
        self.back = BACK.get(arch, as_it_is)
        self.left = set(file.names) - {ROPE_FREQUENCIES}

    def fill(self) -> None:
        whole = {id(module) for module in self._written_out()} if self.dtype is None else set()
        tied = HEAD not in self.file.names
        for name, module in list(self.model.named_modules()):
            if not list(module.parameters(recurse=False)):
                continue
            held = self._held(name, tied)
            linear = isinstance(module, nn.Linear | Conv1D) and id(module) not in whole
            if self.dtype is None and linear and self.file.kind(held) in BLOCKS:
                self.model.set_submodule(name, self._layer(name, held, module))
                continue
            if tied and module is self.model.get_output_embeddings():
                module.weight = self.model.get_input_embeddings().weight
                continue
            for part, parameter in list(module.named_parameters(recurse=False)):
                found = self._float(name, f"{held.removesuffix('.weight')}.{part}", parameter.dtype)
                setattr(module, part, nn.Parameter(self._fitting(found.t() if isinstance(module, Conv1D) and found.dim() == 2 else found, parameter.shape, held)))
        if self.left:
            logger.warning("%s holds %d tensors that %s does not use, %s first", self.file.path, len(self.left), type(self.model).__name__, min(self.left))

    def _held(self, name: str, tied: bool) -> str:
        """What the file calls a module's weight."""
        own, layer = held_as(name, self.family)
        held = f"{layer}{own}.weight"
        if held == HEAD and tied:
            held = EMBEDDING
        if held not in self.file.names:
            raise UserError(f"{self.file.path} lacks the tensor {held}: the file is incomplete, fetch it again or use another")
        return held

    def _layer(self, name: str, held: str, module: nn.Module) -> nn.Module:
        """The linear layer of a tensor in blocks."""
        outputs, inputs = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
        self._fitting(torch.empty(self.file.shape(held), device="meta"), (outputs, inputs), held)
        bias = None if module.bias is None else self._float(name, held.removesuffix("weight") + "bias", torch.bfloat16)
        self.left.discard(held)
        with self._named(held):
            return layer_of(self._rows(name, held), self.file.kind(held), bias)

    def _float(self, name: str, held: str, dtype: torch.dtype) -> Tensor:
        """A tensor's numbers as transformers has them, of rows that have changed places."""
        if held not in self.file.names:
            raise UserError(f"{self.file.path} lacks the tensor {held}: the file is incomplete, fetch it again or use another")
        self.left.discard(held)
        if len(self.file.shape(held)) > 1:
            with self._named(held):
                return floats_of(self._rows(name, held), self.file.kind(held), dtype)
        return self.back(floats_of(torch.from_numpy(self.file.blocks(held)), self.file.kind(held), torch.float32), self._own(name), self.config).to(dtype)

    @contextmanager
    def _named(self, held: str) -> Iterator[None]:
        """Let a UserError say of which tensor of which file it is."""
        try:
            yield
        except UserError as error:
            raise UserError(f"{self.file.path}, tensor {held}: {error}") from None

    def _rows(self, name: str, held: str) -> Tensor:
        """A matrix's rows as they are kept, in transformers' order."""
        return self.back(torch.from_numpy(self.file.blocks(held)), self._own(name), self.config)

    def _own(self, name: str) -> str:
        return held_as(name, self.family)[0]

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    def _fitting(self, found: Tensor, wanted: tuple[int, ...], held: str) -> Tensor:
        if tuple(found.shape) != tuple(wanted):
            raise UserError(f"{self.file.path}: the tensor {held} has the shape {list(found.shape)}, but {list(wanted)} by the file's own values: fetch it again")
        return found.contiguous()

    def _written_out(self) -> Iterator[nn.Module]:
        """Yield the linear layers that must be floats, since their own kind has no kernel, or that of one that reads the same input: the pass reads one or the other."""
        names, told = {module: name for name, module in self.model.named_modules()}, Counter()
        for group in _read_together(parts_of(self.model)):
            held = [self._held(names[module], HEAD not in self.file.names) for module in group]
            without = [self.file.kind(each).name for each in held if self.file.kind(each) not in BLOCKS]
            if without:
                told.update(kind for kind in without if GGMLQuantizationType[kind] not in FLOATS)
                yield from group
        if told:
            logger.warning("%s: no kernel multiplies %s (%d matrices), which are written out in bfloat16", self.file.path, " and ".join(sorted(told)), told.total())


def _read_together(parts: ModelParts) -> Iterator[list[nn.Module]]:
    """Yield the linear layers of a model, those that read the same input side by side."""
    for layer in parts.layers:
        yield from (layer.qkv, [layer.out], layer.grow, [layer.shrink])
    yield [parts.head]
