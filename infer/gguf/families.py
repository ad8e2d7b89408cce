"""The families that llama.cpp computes as transformers does: what each is called in a GGUF file, and what its configuration must say for that."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from ...data.errors import UserError
from ..runners.paradigm import BIDIRECTIONAL, diffusion_of

LAYERED = re.compile(r"(?:model\.layers|transformer\.h)\.(\d+)\.(.+)")
ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
SANDWICHED = {
    **LAYER, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
GPT2_ENDS = {"transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm", "lm_head": "output"}
GPT2_LAYER = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def as_it_is(tensor: Tensor, name: str, config: PretrainedConfig) -> Tensor:
    """Return a tensor that llama.cpp reads as transformers does."""
    return tensor


def rotary_pairs(tensor: Tensor, name: str, config: PretrainedConfig) -> Tensor:
    """Return queries' and keys' rows, [heads * head_dim, ...], in pairs.

    transformers turns a head's row i with row i + head_dim / 2, llama.cpp's `llama` row 2i with row 2i + 1.
    """
    if name not in ("attn_q", "attn_k"):
        return tensor
    heads = config.num_attention_heads if name == "attn_q" else config.num_key_value_heads
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def pairs_apart(tensor: Tensor, name: str, config: PretrainedConfig) -> Tensor:
    """The reverse of `rotary_pairs`; rows of any kind, for whole rows change places."""
    if name not in ("attn_q", "attn_k"):
        return tensor
    heads = config.num_attention_heads if name == "attn_q" else config.num_key_value_heads
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def plus_one(tensor: Tensor, name: str, config: PretrainedConfig) -> Tensor:
    """Return a norm's weight as what it multiplies by: Gemma keeps how far from one that is."""
    return tensor + 1 if name.endswith("norm") else tensor


def minus_one(tensor: Tensor, name: str, config: PretrainedConfig) -> Tensor:
    """The reverse of `plus_one`."""
    return tensor - 1 if name.endswith("norm") else tensor


def transposed(tensor: Tensor, name: str, config: PretrainedConfig) -> Tensor:
    """Return a product's weight as [out, in], which GPT-2 keeps as [in, out]."""
    return tensor.t() if name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down") and tensor.dim() == 2 else tensor


@dataclass(frozen=True)
class Family:
    """What a family is called in the file, and its tensors; `must` has the values of the configuration that llama.cpp takes for granted."""

    arch: str
    change: Callable[[Tensor, str, PretrainedConfig], Tensor] = as_it_is
    must: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ends: Mapping[str, str] = field(default_factory=lambda: ENDS)
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    ropes: tuple[str, ...] = ("default", "linear", "yarn")  # of transformers' kinds
    period: int | None = None  # of its layers each this many sees the whole text, the others a window; None: llama.cpp knows no window


SILU, GELU = {"hidden_act": ("silu",)}, ("gelu_pytorch_tanh", "gelu_new")
NO_BIAS = {"attention_bias": (False,)}
GEMMA = {**NO_BIAS, "tie_word_embeddings": (True,), "use_bidirectional_attention": (None, False)}
GEMMA2 = {**GEMMA, "hidden_activation": GELU}
FAMILIES = {
    "llama": Family("llama", rotary_pairs, SILU, ropes=("default", "linear", "yarn", "llama3")),
    "mistral": Family("llama", rotary_pairs, SILU, ropes=("default", "linear", "yarn", "llama3")),
    "qwen2": Family("qwen2", must=SILU),
    "qwen3": Family("qwen3", must={**SILU, **NO_BIAS}),
    "gemma": Family("gemma", plus_one, {**GEMMA, "hidden_act": GELU}),
    "gemma2": Family("gemma2", plus_one, GEMMA2, layer=SANDWICHED, period=2),
    "gemma3_text": Family("gemma3", plus_one, {**GEMMA2, "attn_logit_softcapping": (None,)}, layer=SANDWICHED, period=6),
    "gpt2": Family(
        "gpt2", transposed, ends=GPT2_ENDS, layer=GPT2_LAYER, ropes=(),
        must={
            "activation_function": GELU, "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,),
        },
    ),
}  # fmt: skip


def left_to_right_alone(config: PretrainedConfig) -> str | None:
    """Return what of a model is lost where it speaks left to right, "" where nothing is; None for one that only fills in masks."""
    diffusion = diffusion_of(config)
    if diffusion is None:
        return ""
    causal = diffusion.autoregressive and diffusion.attention != BIDIRECTIONAL
    return "the diffusion canvas does not go along: llama.cpp lets the model speak left to right alone" if causal else None


def family_of(config: PretrainedConfig) -> Family:
    """Return how a model of this configuration goes into a GGUF file.

    Raises UserError for a family without a mapping, and for a configuration that llama.cpp would compute otherwise.
    """
    kind = config.model_type
    if kind not in FAMILIES:
        raise UserError(f"there is no GGUF mapping for {kind}: it is there for {', '.join(sorted(FAMILIES))}; export without --gguf")
    family = FAMILIES[kind]
    if left_to_right_alone(config) is None:
        raise UserError(f"this {kind} fills in masks, and llama.cpp has no canvas for that: export without --gguf")
    heads = [name for name in config.architectures or () if not name.endswith(("ForCausalLM", "LMHeadModel"))]
    if heads:
        raise UserError(f"a GGUF file has no place for the head of {heads[0]}: export without --gguf")
    must = dict(family.must)
    if family.arch == "qwen2":
        must["head_dim"] = (None, config.hidden_size // config.num_attention_heads)
    if family.arch == "gemma2" and not (config.attn_logit_softcapping and config.final_logit_softcapping):
        raise UserError("llama.cpp always caps the logits of gemma2, and this configuration does not: export without --gguf")
    if family.period is not None:
        widest = config.num_hidden_layers == {"gemma2": 46, "gemma3": 62}[family.arch]  # by which llama.cpp tells the 27B ones
        must["query_pre_attn_scalar"] = (config.hidden_size // config.num_attention_heads if widest else config.head_dim,)
    for name, allowed in must.items():
        value = getattr(config, name, allowed[0])
        if value not in allowed:
            wanted = " or ".join(map(repr, allowed))
            raise UserError(f"llama.cpp computes {kind} with {name} {wanted}, this configuration has {value!r}: export without --gguf")
    return family


def held_as(module: str, family: Family) -> tuple[str | None, str]:
    """What the file calls a module, and before it its layer; None of one that it does not know."""
    if (found := LAYERED.fullmatch(module)) is None:
        return family.ends.get(module), ""
    return family.layer.get(found[2]), f"blk.{found[1]}."
