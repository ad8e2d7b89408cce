"""Which modules of the common decoders are which of their parts: every family has names of its own for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

GEMMA = {"GemmaForCausalLM", "Gemma2ForCausalLM"}
WITHOUT_NORMS_BEFORE = {"Olmo2ForCausalLM"}
ROTARY = GEMMA | WITHOUT_NORMS_BEFORE | {
    "LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Phi3ForCausalLM", "SmolLM3ForCausalLM",
}  # fmt: skip
FAMILIES = ROTARY | {"GPT2LMHeadModel"}


@dataclass
class LayerParts:
    """One layer; a part that a family has not is None."""

    attention_norm: nn.Module | None
    qkv: list[nn.Module]  # linear layers of queries, keys and values, or one of all three
    head_norms: tuple[nn.Module, nn.Module] | None  # of queries and keys: each head's, or where they are as wide, of all heads at once
    out: nn.Module
    after_attention: nn.Module | None
    feed_norm: nn.Module | None
    router: nn.Module | None
    experts: nn.Module | None  # in place of `grow` and `shrink`, behind the router
    grow: list[nn.Module]  # linear layers of the gate and of what it opens, one of both, or where there is no gate, of what is activated
    gated: bool
    activation: nn.Module
    shrink: nn.Module | None
    after_feed: nn.Module | None
    scale: float
    window: int | None = None
    softcap: float | None = None
    turns: bool = True  # whether queries and keys turn with their positions

    @property
    def linears(self) -> list[nn.Module]:
        """The linear layers of attention and of a feed-forward layer without experts."""
        return [module for module in (*self.qkv, self.out, *self.grow, self.shrink) if module is not None]


@dataclass
class ModelParts:
    """A whole model."""

    embed: nn.Embedding
    positions: nn.Embedding | None  # learned ones
    rotary: nn.Module | None
    layers: list[LayerParts]
    norm: nn.Module
    one_is_added: bool  # to the weights of norms
    head: nn.Module
    heads: int
    kv_heads: int
    width: int  # of a head
    softcap: float | None  # of logits


def parts_of(model: PreTrainedModel) -> ModelParts:
    """Return the parts of a model of one of `FAMILIES`."""
    if type(model).__name__ not in ROTARY:
        return _gpt2(model)
    config, trunk = model.config, model.model
    return ModelParts(
        embed=trunk.embed_tokens,
        positions=None,
        rotary=trunk.rotary_emb,
        layers=[_layer(model, i) for i in range(len(trunk.layers))],
        norm=trunk.norm,
        one_is_added=type(model).__name__ in GEMMA,
        head=model.lm_head,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        width=trunk.layers[0].self_attn.head_dim,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _layer(model: PreTrainedModel, number: int) -> LayerParts:
    layer = model.model.layers[number]
    attention = layer.self_attn
    norms = {"attention_norm": "input_layernorm", "feed_norm": "post_attention_layernorm"}
    if type(model).__name__ in WITHOUT_NORMS_BEFORE:
        norms = {"after_attention": "post_attention_layernorm", "after_feed": "post_feedforward_layernorm"}
    elif hasattr(layer, "pre_feedforward_layernorm"):  # on both sides, in Gemma 2
        norms |= {"after_attention": "post_attention_layernorm", "feed_norm": "pre_feedforward_layernorm", "after_feed": "post_feedforward_layernorm"}
    named = {place: getattr(layer, norms[place]) if place in norms else None for place in ("attention_norm", "after_attention", "feed_norm", "after_feed")}
    return LayerParts(
        qkv=_linears(attention, ("qkv_proj",), ("q_proj", "k_proj", "v_proj")),
        head_norms=(attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None,
        out=attention.o_proj,
        scale=attention.scaling,
        window=_window(model, number),
        softcap=getattr(attention, "attn_logit_softcapping", None),
        turns=bool(getattr(attention, "use_rope", True)),
        **named,
        **_feed_forward(layer.mlp),
    )


def _feed_forward(mlp: nn.Module) -> dict[str, Any]:
    if hasattr(mlp, "experts"):
        return {"router": mlp.gate, "experts": mlp.experts, "grow": [], "gated": True, "activation": mlp.experts.act_fn, "shrink": None}
    grow = _linears(mlp, ("gate_up_proj",), ("gate_proj", "up_proj"))
    activation = mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn
    return {"router": None, "experts": None, "grow": grow, "gated": True, "activation": activation, "shrink": mlp.down_proj}


def _linears(owner: nn.Module, *names: tuple[str, ...]) -> list[nn.Module]:
    """The linear layers of the first of these groups that a module has."""
    group = next(group for group in names if hasattr(owner, group[0]))
    return [getattr(owner, name) for name in group]


def _window(model: PreTrainedModel, number: int) -> int | None:
    """How many keys a query of a layer sees, by what its mask is made from; None where it sees all."""
    config = model.config
    if config.model_type in ("mistral", "phi3"):  # in all layers alike
        return config.sliding_window
    if config.model_type == "smollm3":
        return config.sliding_window if config.layer_types[number] == "sliding_attention" else None
    return getattr(model.model.layers[number].self_attn, "sliding_window", None)


def _gpt2(model: PreTrainedModel) -> ModelParts:
    trunk = model.transformer
    attention = trunk.h[0].attn
    return ModelParts(
        embed=trunk.wte,
        positions=trunk.wpe,
        rotary=None,
        layers=[_gpt2_layer(layer) for layer in trunk.h],
        norm=trunk.ln_f,
        one_is_added=False,
        head=model.lm_head,
        heads=attention.num_heads,
        kv_heads=attention.num_heads,
        width=attention.head_dim,
        softcap=None,
    )


def _gpt2_layer(layer: nn.Module) -> LayerParts:
    return LayerParts(
        attention_norm=layer.ln_1,
        qkv=[layer.attn.c_attn],
        head_norms=None,
        out=layer.attn.c_proj,
        after_attention=None,
        feed_norm=layer.ln_2,
        router=None,
        experts=None,
        grow=[layer.mlp.c_fc],
        gated=False,
        activation=layer.mlp.act,
        shrink=layer.mlp.c_proj,
        after_feed=None,
        scale=layer.attn.scaling,
        turns=False,
    )
