"""The common decoders as plain functions over their own weights: Llama, Mistral, Qwen2, Qwen3, Gemma, Gemma 2, GPT-2."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..kernels.linear_kernel import LinearKernel, linear_kernel
from ..kernels.quantised_linear import Linear4, Linear8, OutputSlice
from ..kernels.rotary import Rotation
from .native.grouped_linear import GroupedLinear4, GroupedLinear8

ROTARY = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM"}
FAMILIES = ROTARY | {"GPT2LMHeadModel"}
STATIC_ROTATIONS = {"default", "linear", "llama3", "yarn"}  # the others turn by the length of the longest slot
PLAIN_MODULES = {nn.Linear, nn.Embedding, nn.ModuleList, nn.LayerNorm, nn.Dropout, Conv1D, Linear4, Linear8, GroupedLinear4, GroupedLinear8, OutputSlice}
ACTIVATIONS = {"transformers.activations", "torch.nn.modules.activation"}

Map = Callable[[Tensor], Tensor]
MakeKernel = Callable[[Sequence[nn.Module]], LinearKernel]


@dataclass
class Block:
    """One layer; the maps take and give [total, features]."""

    attention_norm: Map
    qkv: LinearKernel
    head_norms: tuple[Map, Map] | None
    out: LinearKernel
    after_attention: Map | None
    feed_norm: Map
    feed: Map
    after_feed: Map | None
    scale: float
    window: int | None
    softcap: float | None


@dataclass
class Decoder:
    """A whole model."""

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
    rotary = model.model.rotary_emb
    attention = model.model.layers[0].self_attn
    return rotary.rope_type in STATIC_ROTATIONS and 2 * rotary.inv_freq.numel() == attention.head_dim


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
    if type(model).__name__ not in ROTARY:
        return _gpt2(model, watched, kernel)
    config, trunk = model.config, model.model
    gemma = type(model).__name__.startswith("Gemma")
    return Decoder(
        embed=lambda ids, positions: trunk.embed_tokens(ids),
        rotation=Rotation(trunk.rotary_emb, trunk.embed_tokens.weight.detach()),
        blocks=[_rotary_block(layer, config, gemma, kernel) for layer in trunk.layers],
        norm=rms_norm(trunk.norm, gemma),
        head=_capped(linear_kernel([model.lm_head]), getattr(config, "final_logit_softcapping", None)),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        width=trunk.layers[0].self_attn.head_dim,
        watched=watched,
    )


def _rotary_block(layer: nn.Module, config: PreTrainedConfig, gemma: bool, kernel: MakeKernel) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    sandwich = hasattr(layer, "pre_feedforward_layernorm")  # Gemma 2 has norms on both sides
    second = layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm
    in_all_layers = config.sliding_window if config.model_type == "mistral" else None
    norms = (rms_norm(attention.q_norm), rms_norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
    return Block(
        attention_norm=rms_norm(layer.input_layernorm, gemma),
        qkv=kernel([attention.q_proj, attention.k_proj, attention.v_proj]),
        head_norms=norms,
        out=kernel([attention.o_proj]),
        after_attention=rms_norm(layer.post_attention_layernorm, gemma) if sandwich else None,
        feed_norm=rms_norm(second, gemma),
        feed=gated(kernel([mlp.gate_proj, mlp.up_proj]), activation(mlp.act_fn), kernel([mlp.down_proj])),
        after_feed=rms_norm(layer.post_feedforward_layernorm, gemma) if sandwich else None,
        scale=attention.scaling,
        window=getattr(attention, "sliding_window", in_all_layers),
        softcap=getattr(attention, "attn_logit_softcapping", None),
    )


def _gpt2(model: PreTrainedModel, watched: list[Tensor], kernel: MakeKernel) -> Decoder:
    trunk = model.transformer
    attention = trunk.h[0].attn
    return Decoder(
        embed=lambda ids, positions: trunk.wte(ids) + trunk.wpe(positions),
        rotation=None,
        blocks=[_gpt2_block(layer, kernel) for layer in trunk.h],
        norm=layer_norm(trunk.ln_f),
        head=linear_kernel([model.lm_head]),
        heads=attention.num_heads,
        kv_heads=attention.num_heads,
        width=attention.head_dim,
        watched=watched,
    )


def _gpt2_block(layer: nn.Module, kernel: MakeKernel) -> Block:
    grow, act, shrink = kernel([layer.mlp.c_fc]), activation(layer.mlp.act), kernel([layer.mlp.c_proj])
    return Block(
        attention_norm=layer_norm(layer.ln_1),
        qkv=kernel([layer.attn.c_attn]),
        head_norms=None,
        out=kernel([layer.attn.c_proj]),
        after_attention=None,
        feed_norm=layer_norm(layer.ln_2),
        feed=lambda x: shrink(act(grow(x))),
        after_feed=None,
        scale=layer.attn.scaling,
        window=None,
        softcap=None,
    )


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
