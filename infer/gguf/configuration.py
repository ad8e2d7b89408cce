"""A GGUF file's architecture as transformers' configuration: the reverse of `metadata.py`, for files that llama.cpp's own tools wrote too.

What llama.cpp takes for granted of an architecture is said here; names of values are those of its gguf-py/gguf/constants.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ...data.errors import UserError
from .reading import ENDS, GgufFile

Values = dict[str, Any]
ROPE_FREQUENCIES = "rope_freqs.weight"
# tokens that end a turn, where a file's template writes them and its values do not name them, as llama.cpp looks for them
TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")
CONTEXTS = (8192, 4096, 2048, 16384, 32768)  # at which a llama3 rotation may begin, the usual one first


def config_of(file: GgufFile) -> PretrainedConfig:
    """Return the configuration of the model in a file.

    Raises UserError for an architecture that is not among `KINDS`, for values that are not there, and for those by which transformers computes something else.
    """
    arch = file.values.get("general.architecture")
    if arch not in KINDS:
        raise UserError(f"{file.path} holds a model of the architecture {arch!r}, of which no GGUF file is read: {', '.join(sorted(KINDS))} are")
    told = _Told(file, arch)
    if told.get("expert_count", 0):
        raise UserError(f"{file.path} holds a model of experts, of which no GGUF file is read: use its folder of safetensors")
    ends = _ends(file)
    config = AutoConfig.for_model(
        arch,
        **KINDS[arch](told),
        vocab_size=file.shape("token_embd.weight")[0],
        tie_word_embeddings="output.weight" not in file.names,
        bos_token_id=file.values.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=file.values.get("tokenizer.ggml.padding_token_id"),
    )
    if ROPE_FREQUENCIES in file.names:
        config.rope_parameters = _as_llama3(file, config)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[arch]]
    config.name_or_path = str(file.path)
    return config


class _Told:
    """What a file says of its architecture."""

    def __init__(self, file: GgufFile, arch: str):
        self.file, self.arch = file, arch

    def get(self, name: str, absent: Any = None) -> Any:
        return self.file.values.get(f"{self.arch}.{name}", absent)

    def needed(self, name: str) -> Any:
        if (value := self.get(name)) is None:
            raise UserError(f"{self.file.path} says no {self.arch}.{name}: it is damaged, or written by something else than llama.cpp; fetch it again")
        if isinstance(value, list):
            if len(set(value)) > 1:
                raise UserError(f"{self.file.path} has a {self.arch}.{name} for each layer, of which transformers has one: use its folder of safetensors")
            value = value[0]
        return value

    def has(self, name: str) -> bool:
        return name in self.file.names


def _decoder(told: _Told) -> Values:
    """What all families with rotary embeddings have."""
    heads, width = told.needed("attention.head_count"), told.needed("embedding_length")
    return {
        "hidden_size": width,
        "intermediate_size": told.needed("feed_forward_length"),
        "num_hidden_layers": told.needed("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": told.needed("attention.head_count_kv") if told.get("attention.head_count_kv") is not None else heads,
        "head_dim": _head_dim(told),
        "rms_norm_eps": told.needed("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": told.needed("context_length"),
        "rope_parameters": _rope(told),
    }


def _head_dim(told: _Told) -> int:
    return told.get("attention.key_length") or told.needed("embedding_length") // told.needed("attention.head_count")


def _rope(told: _Told) -> Values:
    """How positions turn; raises UserError for ways that transformers has not."""
    base = {"rope_theta": told.get("rope.freq_base", 10000.0)}
    kind, factor = told.get("rope.scaling.type", "none"), told.get("rope.scaling.factor", told.get("rope.scale_linear", 1.0))
    if kind == "none" and factor != 1.0:
        kind = "linear"
    turned = told.get("rope.dimension_count")
    if turned not in (None, _head_dim(told)) and told.arch != "phi3":
        raise UserError(f"{told.file.path} turns {turned} numbers of a head's {_head_dim(told)}, and transformers' {told.arch} all of them: use its folder of safetensors")
    if kind in ("none", "linear") or factor == 1.0:
        return base | ({"rope_type": "linear", "factor": factor} if factor != 1.0 else {"rope_type": "default"})
    others = [name for name in ("attn_factor", "yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor") if told.get(f"rope.scaling.{name}", 1.0) != 1.0]
    if kind != "yarn" or others:
        what = f"rope.scaling.{others[0]}" if others else f"positions that turn by {kind}"
        raise UserError(f"{told.file.path} has {what}, which is not read from a GGUF file: use its folder of safetensors")
    return base | {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": told.needed("rope.scaling.original_context_length")}


def _as_llama3(file: GgufFile, config: PretrainedConfig) -> Values:
    """The llama3 rotation whose factors of frequencies a file holds; raises UserError where there is none."""
    factors = torch.from_numpy(file.tensor(ROPE_FREQUENCIES))
    base, greatest = config.rope_parameters, float(factors.max())
    plain = ROPE_INIT_FUNCTIONS["linear"](_turning(config, {**base, "rope_type": "linear", "factor": 1.0}), "cpu")[0]
    for context in CONTEXTS:
        told = {**base, "rope_type": "llama3", "factor": round(greatest, 4), "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": context}
        turned, _ = ROPE_INIT_FUNCTIONS["llama3"](_turning(config, told), "cpu")
        if torch.allclose(plain / turned, factors, rtol=1e-4):
            return told
    raise UserError(f"{file.path} changes its frequencies ({ROPE_FREQUENCIES}) otherwise than Llama 3 does: use its folder of safetensors")


def _turning(config: PretrainedConfig, told: Values) -> PretrainedConfig:
    """A copy of a configuration with another rotation."""
    other = type(config).from_dict(config.to_dict())
    other.rope_parameters = told
    return other


def _llama(told: _Told) -> Values:
    return _decoder(told) | {"attention_bias": told.has("blk.0.attn_q.bias"), "mlp_bias": told.has("blk.0.ffn_up.bias")}


def _qwen2(told: _Told) -> Values:
    own = _decoder(told)
    if own["head_dim"] * own["num_attention_heads"] != own["hidden_size"]:
        raise UserError(f"{told.file.path} has heads of {own['head_dim']}, and transformers' qwen2 shares its width among them: use its folder of safetensors")
    return own | {"use_sliding_window": False}


def _qwen3(told: _Told) -> Values:
    return _decoder(told) | {"attention_bias": False, "use_sliding_window": False}


def _gemma(told: _Told) -> Values:
    return _decoder(told) | {"hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh"}


def _gemma2(told: _Told) -> Values:
    own = _decoder(told)
    widest = own["num_hidden_layers"] == 46  # by which llama.cpp tells the one of 27 billion
    return own | {
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": told.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": told.get("final_logit_softcapping", 30.0),
        "sliding_window": told.get("attention.sliding_window", 4096),
        "query_pre_attn_scalar": own["hidden_size"] // own["num_attention_heads"] if widest else own["head_dim"],
        "layer_types": ["full_attention" if number % 2 else "sliding_attention" for number in range(own["num_hidden_layers"])],
    }


def _phi3(told: _Told) -> Values:
    if told.has("rope_factors_long.weight") or told.has("rope_factors_short.weight"):
        raise UserError(f"{told.file.path} is a Phi-3 with a context of its own (longrope), which is not read from a GGUF file: use its folder of safetensors")
    own = _decoder(told)
    del own["head_dim"]
    part = told.get("rope.dimension_count", _head_dim(told)) / _head_dim(told)
    return own | {
        "rope_parameters": {**own["rope_parameters"], "partial_rotary_factor": part},
        "original_max_position_embeddings": own["max_position_embeddings"],
        "sliding_window": told.get("attention.sliding_window") or None,
    }


def _gpt2(told: _Told) -> Values:
    return {
        "n_positions": told.needed("context_length"), "n_embd": told.needed("embedding_length"), "n_layer": told.needed("block_count"),
        "n_inner": told.needed("feed_forward_length"), "n_head": told.needed("attention.head_count"),
        "layer_norm_epsilon": told.needed("attention.layer_norm_epsilon"), "activation_function": "gelu_new",
    }  # fmt: skip


KINDS: dict[str, Callable[[_Told], Values]] = {
    "llama": _llama, "qwen2": _qwen2, "qwen3": _qwen3, "gemma": _gemma, "gemma2": _gemma2, "phi3": _phi3, "gpt2": _gpt2,
}  # fmt: skip


def _ends(file: GgufFile) -> list[int]:
    """The ids that end a text: those that the file names, and those that end a turn in its template."""
    named = [file.values[key] for end in ENDS if (key := f"tokenizer.ggml.{end}") in file.values]
    template, tokens = file.values.get("tokenizer.chat_template") or "", file.values.get("tokenizer.ggml.tokens") or []
    written = [tokens.index(token) for token in TURN_ENDS if token in template and token in tokens]
    return list(dict.fromkeys(named + written))
