"""What a GGUF file says of an architecture: sizes, norms, rotary embeddings, windows and caps, by llama.cpp's names."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from ....data.errors import UserError
from ...gguf.families import Family

Values = dict[str, Any]  # int is written as UINT32, float as FLOAT32, a list as an array
REMEDY = "export without --gguf"


def architecture(config: PretrainedConfig, family: Family) -> tuple[Values, list[str]]:
    """Return the values of a configuration by their keys in the file, and what of it llama.cpp leaves out, a sentence each.

    Raises UserError for rotary embeddings and windows that llama.cpp has not.
    """
    if family.arch == "gpt2":
        return _named("gpt2", _gpt2(config)), []
    values: Values = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_dim(config),
        "attention.value_length": head_dim(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": head_dim(config),
        "vocab_size": config.vocab_size,
        **_rope(config, family),
    }
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None):
            values[name] = float(getattr(config, name))
    notes = []
    if family.period is not None:
        values |= _window(config, family.period)
    elif (window := window_of(config)) is not None and window < config.max_position_embeddings:
        values["context_length"] = window
        notes.append(f"llama.cpp has no sliding window for {config.model_type}: its context ends at {window} tokens, within which nothing differs")
    return _named(family.arch, values), notes


def head_dim(config: PretrainedConfig) -> int:
    """Return the width of a head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def window_of(config: PretrainedConfig) -> int | None:
    """Return how many tokens a windowed layer sees; None where all layers see all."""
    if getattr(config, "layer_types", None) is not None and "sliding_attention" not in config.layer_types:
        return None
    return getattr(config, "sliding_window", None)


def rope_factors(config: PretrainedConfig, family: Family) -> Tensor | None:
    """Return by what each rotary frequency is divided, [head_dim / 2]; None where llama.cpp finds that out by the values alone."""
    if not family.ropes or _parameters(config)["rope_type"] != "llama3":
        return None
    turned, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    base = float(_parameters(config)["rope_theta"])
    return (base ** -(2 * turned.new_tensor(range(len(turned))).double() / head_dim(config)) / turned.double()).float()


def _named(arch: str, values: Values) -> Values:
    return {f"{arch}.{name}": value for name, value in values.items()}


def _gpt2(config: PretrainedConfig) -> Values:
    return {
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        "vocab_size": config.vocab_size,
    }


def _parameters(config: PretrainedConfig, layer_type: str = "full_attention") -> Values:
    """What a configuration says of its rotary embeddings, where these differ of one type of layers."""
    told = config.rope_parameters
    return told[layer_type] if layer_type in told else told


def _rope(config: PretrainedConfig, family: Family) -> Values:
    told = _parameters(config)
    kind, base = told["rope_type"], float(told["rope_theta"])
    if kind not in family.ropes:
        known = ", ".join(family.ropes)
        raise UserError(f"llama.cpp has no rotary embedding of the kind {kind} for {config.model_type} ({known}): {REMEDY}")
    if told.get("partial_rotary_factor", 1.0) != 1.0:
        part = told["partial_rotary_factor"]
        raise UserError(f"llama.cpp turns whole heads of {config.model_type}, this one has partial_rotary_factor {part}: {REMEDY}")
    values: Values = {"rope.freq_base": base}
    if kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": kind, "rope.scaling.factor": float(told["factor"])}
    if kind == "yarn":
        values["rope.scaling.original_context_length"] = _yarn_context(config, told)
    if "sliding_attention" in config.rope_parameters:
        windowed = _parameters(config, "sliding_attention")
        if windowed["rope_type"] != "default":
            raise UserError(f"llama.cpp does not scale the rotary embedding of windows, this one has the kind {windowed['rope_type']}: {REMEDY}")
        values["rope.freq_base_swa"] = float(windowed["rope_theta"])
    return values


def _yarn_context(config: PretrainedConfig, told: Values) -> int:
    """The length that yarn begins at. Raises UserError where the configuration's yarn is not what llama.cpp makes of factor and length."""
    _, scaling = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    other = [name for name, value in usual.items() if told.get(name) not in (None, value)]
    if not math.isclose(scaling, 0.1 * math.log(told["factor"]) + 1, rel_tol=1e-6):
        other.append("attention_factor")
    if other:
        raise UserError(f"llama.cpp's yarn has no {other[0]} of one's own: {REMEDY}")
    return told.get("original_max_position_embeddings") or config.max_position_embeddings


def _window(config: PretrainedConfig, usual: int) -> Values:
    """The window, and each how many layers see the whole text; raises UserError where that is no rule."""
    windowed = [kind == "sliding_attention" for kind in config.layer_types]
    for period in (usual, *range(1, len(windowed) + 2)):
        if windowed == [number % period < period - 1 for number in range(len(windowed))]:
            return {"attention.sliding_window": config.sliding_window, "attention.sliding_window_pattern": period}
    raise UserError(f"llama.cpp lets each so many layers see the whole text, and layer_types is {config.layer_types}: {REMEDY}")
