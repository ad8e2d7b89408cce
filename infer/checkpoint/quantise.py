"""Turn a model's linear layers into 8- or 4-bit ones, in place; the float weights are let go one by one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...data.errors import UserError
from ..kernels.four_bits import Fitted, four_bits
from ..kernels.fused_projections import TOGETHER
from ..kernels.kernel_check import refuse_wrong_kernels
from ..kernels.quantised_linear import GROUP, Linear4, Linear8, OutputSlice, Quantised
from ..runners.families.parts import FAMILIES, ROTARY
from ..runners.layers import supports_direct
from ..runners.native.grouped_linear import GroupedLinear4, GroupedLinear8, missing_kernels
from .calibrate import calibrated, importances
from .sensitivity import weight_of

Fit = Callable[[Sequence[nn.Module], Tensor], Fitted | None]
Make = Callable[[Sequence[nn.Module]], Quantised]

logger = logging.getLogger(__name__)

BITS = ("int8", "int4")
COVERED = FAMILIES - {"Qwen3MoeForCausalLM"}  # whose experts are no linear layers


def quantise(
    model: PreTrainedModel,
    weights: str,
    calibration: Tensor | None = None,
    bits: float | None = None,
    report: Callable[[str], object] = logger.info,
    eight: Collection[nn.Module] = (),
) -> None:
    """Keep the weights of the model's linear layers and of its head in "int8" or "int4"; the rest becomes bfloat16.

    Weights are in groups of 32 inputs where the native kernels run; else torch's are taken, in whose 8 bits an output has one scale. In "int4" the head
    keeps 8 bits: it reads the last state alone, and each of its outputs is a token's own row. The embedding stays, where a model ties the two the head
    is a copy of its own. The model can speak and be scored, not be trained or saved.
    4 bits lie near the weights, those of large inputs nearest (`importances`); with `calibration`, ids [rows, length] of a text as `calibration_rows` reads
    them, they are chosen by it, with `bits` a weight at most, and a line a layer is reported (`calibrated`). Without, the linear layers in `eight` keep 8 bits.
    Raises UserError for models that are not of the direct runner's families, or have experts, and where this CPU's kernels compute something else.
    """
    check_quantisable(model, weights)
    missing = missing_kernels()
    in_8, four = (Linear8, Linear4) if missing else (GroupedLinear8, GroupedLinear4)
    kind = in_8 if weights == "int8" else four
    fit: Fit = lambda linears, weight: None
    if weights == "int4" and calibration is not None:
        plan = calibrated(model, calibration, four.grid, bits, report)
        fit = lambda linears, weight: _joined([plan[linear] for linear in linears])
    elif weights == "int4":
        counts = importances(model)
        fit = lambda linears, weight: None if linears[0] in eight else four_bits(weight.float(), *four.grid, counts[linears[0]])
    make = lambda linears: _made(linears, four, in_8, fit)
    if missing:
        logger.warning("weights=%s is slower here than it could be, though faster than float32: there are no kernels of our own (%s)", weights, missing)
    with torch.no_grad():
        head = model.get_output_embeddings()
        # in 4 bits speed comes first: one term and integers always take half the time, for 0.6% of perplexity
        model.lm_head = Linear8(head.weight, head.bias, terms=1, always=True) if kind is Linear4 else in_8(head.weight, head.bias)
        rotary = type(model).__name__ in ROTARY
        for layer in model.model.layers if rotary else model.transformer.h:
            if rotary:
                _quantise_rotary(layer, make)
            else:
                _quantise_gpt2(layer, make)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        refuse_wrong_kernels(module for module in model.modules() if isinstance(module, Quantised))
    as_quantised(model)


def as_quantised(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model whose layers are quantised, told that it is neither trained nor saved by itself."""
    model.requires_grad_(False)
    model.config.dtype = torch.bfloat16
    model.save_pretrained = refuse_saving
    return model


def is_quantised(model: nn.Module) -> bool:
    """Whether a model's linear layers are in few bits of ours."""
    return any(isinstance(module, Quantised) for module in model.modules())


def refuse_family(name: str, model_type: str, weights: str) -> None:
    """Raise UserError for unknown `weights`, and for a class of models, by its name and its configuration's, that has none in few bits."""
    if weights not in BITS:
        raise UserError(f"weights={weights!r} is unknown: choose int8 or int4, or leave it out")
    if name not in COVERED:
        known = ", ".join(sorted(name.removesuffix("ForCausalLM").removesuffix("LMHeadModel") for name in COVERED))
        raise UserError(f"weights={weights} is there for {known}, not for {model_type} as it is configured: leave weights out")


def check_quantisable(model: PreTrainedModel, weights: str) -> None:
    """Raise UserError for unknown `weights`, and for a model of another family, not on the CPU, or of widths that are no whole number of groups."""
    family = model.config.get_text_config().model_type
    refuse_family(type(model).__name__ if supports_direct(model) else "another", family, weights)
    if model.get_input_embeddings().weight.device.type != "cpu":
        raise UserError(f"weights={weights} computes on the CPU: choose device cpu, or leave weights out")
    for name, module in model.named_modules():
        width = module.in_features if isinstance(module, nn.Linear) else module.nx if isinstance(module, Conv1D) else 0
        if width % GROUP:
            raise UserError(f"weights={weights} needs inputs in groups of {GROUP}, and {family}'s {name} has {width}: leave weights out")


def _quantise_rotary(layer: nn.Module, make: Make) -> None:
    for owner in (layer.self_attn, layer.mlp):
        for names in (*TOGETHER, ("qkv_proj",), ("gate_up_proj",)):
            linears = [getattr(owner, name, None) for name in names]
            if None in linears:
                continue
            start, whole = 0, make(linears)
            for name, linear in zip(names, linears):
                setattr(owner, name, OutputSlice(whole, start, start + linear.out_features))
                start += linear.out_features
    layer.self_attn.o_proj = make([layer.self_attn.o_proj])
    layer.mlp.down_proj = make([layer.mlp.down_proj])
    gate = layer.mlp.gate_proj if hasattr(layer.mlp, "gate_proj") else layer.mlp.gate_up_proj
    for linear in (layer.self_attn.o_proj, gate.whole):
        if isinstance(linear, Linear8):
            linear.terms = 1  # SmolLM2: 0.05% and 0.2% of perplexity, against 2.6% for q, k and v and 1.4% for down_proj


def _made(linears: Sequence[nn.Module], four: type[Quantised], eight: type[Quantised], fit: Fit) -> Quantised:
    """Linear layers as one, with the levels, scales and zeros that `fit` gives, in 8 bits where it gives none."""
    biases: list[Tensor] = []
    if any(linear.bias is not None for linear in linears):
        biases = [torch.zeros(len(weight_of(linear))) if linear.bias is None else linear.bias for linear in linears]
    weight, bias = torch.cat([weight_of(linear) for linear in linears]), torch.cat(biases) if biases else None
    fitted = fit(linears, weight)
    return eight(weight, bias) if fitted is None else four(weight, bias, fitted)


def _joined(parts: Sequence[Fitted | None]) -> Fitted | None:
    return None if None in parts else tuple(map(torch.cat, zip(*parts)))


def _quantise_gpt2(layer: nn.Module, make: Make) -> None:
    for owner, name in ((layer.attn, "c_attn"), (layer.attn, "c_proj"), (layer.mlp, "c_fc"), (layer.mlp, "c_proj")):
        setattr(owner, name, make([getattr(owner, name)]))


def refuse_saving(*args, **kwargs) -> None:
    """In place of a model's `save_pretrained`, where its weights are in few bits."""
    raise UserError(
        "a quantised model cannot be saved by save_pretrained: `seodang export MODEL FOLDER --weights int4` (or int8) writes one that load reads as it is; "
        "to save its floats, load it without weights="
    )
