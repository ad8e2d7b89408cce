"""The common decoders as plain functions over their own weights: the families of `families/parts.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..kernels.linear_kernel import LinearKernel, linear_kernel
from ..kernels.quantised_linear import Linear4, Linear8, OutputSlice
from ..kernels.rotary import Rotation
from .families.parts import FAMILIES, ROTARY, LayerParts, ModelParts, parts_of
from .native.block_linear import BLOCK_LINEARS
from .native.grouped_linear import GroupedLinear4, GroupedLinear8

STATIC_ROTATIONS = {"default", "linear", "llama3", "yarn"}  # the others turn by the length of the longest slot
PLAIN_MODULES = {nn.Linear, nn.Embedding, nn.ModuleList, nn.LayerNorm, nn.Dropout, Conv1D, Linear4, Linear8, GroupedLinear4, GroupedLinear8, OutputSlice, *BLOCK_LINEARS}
ACTIVATIONS = {"transformers.activations", "torch.nn.modules.activation"}

Map = Callable[[Tensor], Tensor]
MakeKernel = Callable[[Sequence[nn.Module]], LinearKernel]


@dataclass
class Block:
    """One layer; the maps take and give [total, features], those of a head's norm [total, heads, width]. One that a family has not is None."""

    parts: LayerParts
    attention_norm: Map | None
    qkv: LinearKernel
    head_norms: tuple[Map, Map] | None
    out: LinearKernel
    after_attention: Map | None
    feed_norm: Map | None
    feed: Map
    after_feed: Map | None


@dataclass
class Decoder:
    """A whole model."""

    parts: ModelParts
    embed: Callable[[Tensor, Tensor], Tensor]  # ids and positions, [total] each, to [total, hidden]
    rotation: Rotation | None
    blocks: list[Block]
    norm: Map
    head: Map
    heads: int
    kv_heads: int
    width: int  # of a head
    watched: list[Tensor]  # what the maps hold: where one of these moves, the decoder must be read again

    def addresses(self, first: int | None = None) -> list[int]:
        """Where the watched tensors lie in memory, or the first so many of them: behind a pass each takes a microsecond to be asked."""
        return [tensor.data_ptr() for tensor in self.watched[:first]]


def supports_direct(model: PreTrainedModel) -> bool:
    """Whether `bind_weights` computes what the model computes: a family of ours with nothing put in, on or around its layers."""
    if type(model).__name__ not in FAMILIES or not is_plain(model):
        return False
    if type(model).__name__ not in ROTARY:
        return not model.config.add_cross_attention
    turned, width = 2 * model.model.rotary_emb.inv_freq.numel(), model.model.layers[0].self_attn.head_dim
    part = turned < width and type(model).__name__ == "Phi3ForCausalLM"  # in the others another width is an error
    return model.model.rotary_emb.rope_type in STATIC_ROTATIONS and (turned == width or part)


def is_plain(model: PreTrainedModel) -> bool:
    """Whether a model is one of transformers' own with nothing put in, on or around its layers, in one dtype on one device."""
    kind = type(model)
    if not kind.__module__.startswith("transformers.models."):
        return False
    modules = list(model.modules())
    own = (kind.__module__, *ACTIVATIONS)
    if any(type(m) not in PLAIN_MODULES and type(m).__module__ not in own for m in modules):
        return False  # an adapter, another quantisation
    if any(m._forward_pre_hooks or is_replaced(m) or any(map(is_foreign, m._forward_hooks.values())) for m in modules):
        return False
    parameters = list(model.parameters())
    if len({(p.dtype, p.device) for p in parameters}) != 1 or not all(type(p) is nn.Parameter and p.numel() for p in parameters):
        return False  # spread over devices or processes
    return parameters[0].device.type != "meta"


def is_replaced(module: nn.Module) -> bool:
    """Whether a module has a forward of its own; one that training put there changes nothing of how the model speaks."""
    forward = vars(module).get("forward")
    return forward is not None and not getattr(forward, "speaks_as_before", False)


def is_foreign(hook: Callable) -> bool:
    """Whether a hook may change what a layer gives; those that transformers leaves behind to collect hidden states do not."""
    return getattr(hook, "__module__", None) != "transformers.utils.output_capturing"


def bind_weights(model: PreTrainedModel, kernel: MakeKernel = linear_kernel) -> Decoder:
    """Return the model's layers as functions of its own weights, which are not copied; `kernel` makes their products."""
    watched = [*model.parameters(), *(b for name, b in model.named_buffers() if name.endswith("inv_freq"))]
    parts = parts_of(model)
    weight = parts.embed.weight.detach()
    return Decoder(
        parts=parts,
        embed=(lambda ids, positions: parts.embed(ids)) if parts.positions is None else (lambda ids, positions: parts.embed(ids) + parts.positions(positions)),
        rotation=None if parts.rotary is None else Rotation(parts.rotary, weight),
        blocks=[_block(layer, parts.one_is_added, kernel) for layer in parts.layers],
        norm=norm_map(parts.norm, parts.one_is_added),
        head=_capped(linear_kernel([parts.head]), parts.softcap),
        heads=parts.heads,
        kv_heads=parts.kv_heads,
        width=parts.width,
        watched=watched,
    )


def _block(parts: LayerParts, one_is_added: bool, kernel: MakeKernel) -> Block:
    norm = lambda module: None if module is None else norm_map(module, one_is_added)
    return Block(
        parts=parts,
        attention_norm=norm(parts.attention_norm),
        qkv=kernel(parts.qkv),
        head_norms=None if parts.head_norms is None else tuple(map(_heads_norm, parts.head_norms)),
        out=kernel([parts.out]),
        after_attention=norm(parts.after_attention),
        feed_norm=norm(parts.feed_norm),
        feed=_feed(parts, kernel),
        after_feed=norm(parts.after_feed),
    )


def _heads_norm(module: nn.Module) -> Map:
    """Return a norm of heads, [total, heads, width], of each by itself or where its weight is as wide, of all at once."""
    norm, count = rms_norm(module), len(module.weight)
    return lambda x: norm(x.reshape(len(x), -1, count)).view(x.shape)


def _feed(parts: LayerParts, kernel: MakeKernel) -> Map:
    if parts.experts is not None:
        return routed(parts.router, parts.experts)
    grow, act, shrink = kernel(parts.grow), activation(parts.activation), kernel([parts.shrink])
    return gated(grow, act, shrink) if parts.gated else lambda x: shrink(act(grow(x)))


def routed(router: nn.Module, experts: nn.Module) -> Map:
    """Return the feed-forward layer of many experts, by transformers' own modules, which know each device's way to many products of a few rows."""

    def feed(x: Tensor) -> Tensor:
        _, shares, chosen = router(x)
        return experts(x, chosen, shares)

    return feed


def gated(gate_and_up: LinearKernel, act: Map, down: LinearKernel) -> Map:
    """Return the feed-forward layer of two branches, one of which opens and shuts the other."""

    def feed(x: Tensor) -> Tensor:
        gate, up = gate_and_up(x).chunk(2, dim=-1)
        return down(act(gate).mul_(up))

    return feed


def activation(module: nn.Module) -> Map:
    """Return the activation as a function, which may write over what it is given; those that are torch's own without a module's detour."""
    if type(module) is nn.ReLU:
        return torch.relu_
    return F.silu if type(module).__name__ in ("SiLU", "SiLUActivation") else module


def _capped(head: LinearKernel, bound: float | None) -> Map:
    """Return the head with Gemma 2's soft bound on its logits, or as it is."""
    return head if bound is None else lambda x: torch.tanh(head(x) / bound) * bound


def norm_map(module: nn.Module, one_is_added: bool) -> Map:
    """Return a layer norm or a root mean square norm over the last dimension, with the module's own weights."""
    return layer_norm(module) if type(module) is nn.LayerNorm else rms_norm(module, one_is_added)


def layer_norm(module: nn.LayerNorm) -> Map:
    """Return the layer norm over the last dimension, with the module's own weight and bias."""
    weight, bias = module.weight.detach(), module.bias.detach()
    return lambda x: F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)


def rms_norm(module: nn.Module, one_is_added: bool = False) -> Map:
    """Return the root mean square norm over the last dimension; Gemma keeps its weight less one."""
    weight = module.weight.detach()
    eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
    if one_is_added:
        return lambda x: _rms_in_float32(x, eps, 1.0 + weight.float())
    if weight.dtype in (torch.float64, torch.float16):  # rounds where transformers rounds; in float16 x * weight may overflow
        return lambda x: weight * _rms_in_float32(x, eps, None)
    if weight.device.type != "cpu":
        return lambda x: F.rms_norm(x, weight.shape, weight, eps)
    root, least = math.sqrt(len(weight)), torch.tensor(math.sqrt(eps))

    def on_cpu(x: Tensor) -> Tensor:  # half the time of torch's, which is made of eight operations
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * weight).div_(torch.hypot(length.div_(root), least))

    return on_cpu


def _rms_in_float32(x: Tensor, eps: float, weight: Tensor | None) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed if weight is None else normed * weight).to(x.dtype)
