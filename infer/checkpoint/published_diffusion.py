"""Published diffusion checkpoints without their own code: Dream is a Qwen2 whose attention is not causal, LLaDA such a Llama under other names."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    AutoConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
)

from ...data.errors import UserError
from ..runners.paradigm import Diffusion, declare, diffusion_of
from .gguf_file import gguf_config, is_gguf

logger = logging.getLogger(__name__)

# What is in their config.json: the value where the key is missing, and the values with which the arithmetic is that of Qwen2 and of Llama.
DREAM_DEMANDS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "hidden_act": ("silu", ("silu",)),
    "attention_bias": (True, (True,)),
    "use_sliding_window": (False, (False,)),
    "use_mrope": (False, (False,)),
    "block_size": (None, (None,)),  # answers written block by block
}
LLADA_DEMANDS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "block_type": ("sequential", ("llama",)),
    "activation_type": ("swiglu", ("silu",)),
    "layer_norm_type": ("default", ("rms",)),
    "layer_norm_with_affine": (True, (True,)),
    "bias_for_layer_norm": (None, (None, False)),
    "include_bias": (False, (False,)),
    "include_qkv_bias": (False, (False,)),
    "attention_layer_norm": (False, (False,)),
    "multi_query_attention": (None, (None, False)),
    "rope": (False, (True,)),
    "rope_scaling": (None, (None,)),
    "alibi": (False, (False,)),
    "scale_logits": (False, (False,)),
    "input_emb_norm": (False, (False,)),
    "block_group_size": (1, (1,)),
    "block_size": (None, (None,)),
}
# What else is there and changes nothing of what a forward computes.
HARMLESS = frozenset(
    """
    model_type architectures auto_map transformers_version torch_dtype dtype use_cache _name_or_path _attn_implementation_autoset bos_token_id
    eos_token_id pad_token_id mask_token_id attention_dropout residual_dropout embedding_dropout initializer_range sliding_window max_window_layers
    init_cutoff_factor init_device init_fn init_std precision flash_attention rope_full_precision alibi_bias_max attention_layer_norm_with_affine
    train_max_sequence_length
    """.split()
)
# LLaDA's names of tensors, by parts, and Llama's. The head has the name of a layer's last product, and is renamed first.
LLADA_NAMES = {
    r"^model\.transformer\.ff_out": "lm_head", r"^model\.transformer\.wte": "model.embed_tokens", r"^model\.transformer\.ln_f": "model.norm",
    r"^model\.transformer\.blocks": "model.layers", r"\.q_proj": ".self_attn.q_proj", r"\.k_proj": ".self_attn.k_proj", r"\.v_proj": ".self_attn.v_proj",
    r"\.attn_out": ".self_attn.o_proj", r"\.attn_norm": ".input_layernorm", r"\.ff_norm": ".post_attention_layernorm",
    r"\.ff_proj": ".mlp.gate_proj", r"\.up_proj": ".mlp.up_proj", r"\.ff_out": ".mlp.down_proj",
}  # fmt: skip


@dataclass(frozen=True)
class Published:
    """A published checkpoint in terms of transformers' own classes; `names` are patterns of the file's names of tensors, and what stands for them."""

    place: str
    config: PreTrainedConfig
    tokenizer_class: type[PreTrainedTokenizerBase]
    unknown: tuple[str, ...]  # keys of config.json of which nothing is known
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """What `from_pretrained` of the config's class has to be told."""
        return {"config": self.config, "key_mapping": dict(self.names) or None}

    def settled(self, model: PreTrainedModel, report: Mapping[str, Any]) -> dict[str, Any]:
        """Let a loaded model be saved under the names of its class; return what the loading reported, missing tensors by the names of the file.

        What of the config is not known is told. Raises UserError for tensors of another shape than config.json says, and for those that the model
        has no use for.
        """
        if self.unknown:
            logger.warning("%s: config.json says %s, which is not known of its kind and was passed over", self.place, ", ".join(self.unknown))
        if self.names:
            del model._weight_conversions  # by which save_pretrained would go back to the names of the file
        if mismatched := sorted(report["mismatched_keys"], key=lambda each: each[0]):
            name, there, wanted = mismatched[0]
            said = f"has the shape {list(there)} in its file, but {list(wanted)} by config.json{_more(mismatched)}"
            raise UserError(f"{self.place}: the tensor {self.own_name(name)} {said}: restore the file or its config.json")
        head = set() if model.get_output_embeddings() is not None else {"lm_head.weight"}
        if unexpected := sorted(set(report["unexpected_keys"]) - head):
            said = f"{self.own_name(unexpected[0])}{_more(unexpected)}, which is in no {self.config.model_type}"
            raise UserError(f"{self.place} holds the tensor {said}: it computes something else, and cannot be loaded as one")
        return {**report, "missing_keys": [self.own_name(name) for name in report["missing_keys"]], "unexpected_keys": []}

    def own_name(self, name: str) -> str:
        """Return what a tensor is called in the file."""
        for pattern, ours in self.names.items():
            theirs = pattern.removeprefix("^").replace("\\", "")
            if re.search(re.escape(ours) + r"(?!\w)", name):
                name = name.replace(ours, theirs)
        return name


def published(place: str | os.PathLike) -> Published | None:
    """Return what a folder's or a hub name's Dream or LLaDA checkpoint comes to; None where config.json says another kind, or cannot be read.

    Raises UserError for a setting with which it computes something else, by name.
    """
    try:
        raw, _ = PreTrainedConfig.get_config_dict(os.fspath(place))
    except (OSError, ValueError):
        return None  # what is wrong shows where the checkpoint is loaded
    made = KINDS.get(str(raw.get("model_type")))
    return None if made is None else made(os.fspath(place), raw)


def stored_config(place: str | os.PathLike) -> PreTrainedConfig:
    """Return a checkpoint's configuration, without running code that lies beside it; a GGUF file's by its values."""
    if is_gguf(place):
        return gguf_config(place)
    found = published(place)
    return AutoConfig.from_pretrained(place) if found is None else found.config


def published_tokenizer(found: Published) -> PreTrainedTokenizerBase:
    """Return a published checkpoint's tokenizer, which knows its mask token by name; raises what transformers does where it cannot be read."""
    tokenizer = found.tokenizer_class.from_pretrained(found.place)
    tokenizer.init_kwargs.pop("auto_map", None)  # that of code which is not needed
    mask_id = diffusion_of(found.config).mask_token_id
    if tokenizer.mask_token_id != mask_id:
        token = tokenizer.convert_ids_to_tokens(mask_id) if mask_id < len(tokenizer) else None
        if token is None:
            raise UserError(f"{found.place}: its tokenizer has no token for the mask's id {mask_id} (of {len(tokenizer)}): restore its files")
        tokenizer.mask_token = token
    return tokenizer


def _dream(place: str, raw: Mapping[str, Any]) -> Published:
    said = _Said(place, raw, "DreamModel", DREAM_DEMANDS)
    width, heads = said.needed("hidden_size"), said.needed("num_attention_heads")
    if said.get("head_dim", width // heads) != width // heads:
        raise UserError(f"{place}: head_dim={raw['head_dim']} in config.json is no Dream's, whose heads share hidden_size={width}")
    config = Qwen2Config(
        vocab_size=said.needed("vocab_size"),
        hidden_size=width,
        intermediate_size=said.needed("intermediate_size"),
        num_hidden_layers=said.needed("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=said.get("num_key_value_heads", heads),
        max_position_embeddings=said.get("max_position_embeddings", 32768),
        rms_norm_eps=said.get("rms_norm_eps", 1e-6),
        rope_parameters={"rope_type": "default", **said.get("rope_scaling", {}), "rope_theta": said.get("rope_theta", 10000.0)},
        tie_word_embeddings=said.get("tie_word_embeddings", False),
        **said.alike("Qwen2ForCausalLM"),
    )
    declare(config, Diffusion(mask_token_id=said.get("mask_token_id", 151666), shift=1))
    return Published(place, config, Qwen2Tokenizer, said.unknown)


def _llada(place: str, raw: Mapping[str, Any]) -> Published:
    said = _Said(place, raw, "LLaDAModelLM", LLADA_DEMANDS)
    width, heads = said.needed("d_model"), said.needed("n_heads")
    config = LlamaConfig(
        vocab_size=said.get("embedding_size", said.needed("vocab_size")),
        hidden_size=width,
        intermediate_size=said.get("mlp_hidden_size", said.get("mlp_ratio", 4) * width),
        num_hidden_layers=said.needed("n_layers"),
        num_attention_heads=heads,
        num_key_value_heads=said.get("n_kv_heads", heads),
        max_position_embeddings=said.get("max_sequence_length", 1024),
        rms_norm_eps=said.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": said.get("rope_theta", 10000.0)},
        tie_word_embeddings=said.get("weight_tying", True),
        **said.alike("LlamaForCausalLM"),
    )
    declare(config, Diffusion(mask_token_id=said.needed("mask_token_id"), shift=0))
    return Published(place, config, PreTrainedTokenizerFast, said.unknown, LLADA_NAMES)


KINDS: dict[str, Callable[[str, Mapping[str, Any]], Published]] = {"Dream": _dream, "llada": _llada}  # by model_type


class _Said:
    """What a config.json says, with the value that their own code takes where a key is missing or null.

    Raises UserError for architectures and settings with which no model of transformers computes the same.
    """

    def __init__(self, place: str, raw: Mapping[str, Any], architecture: str, demands: Mapping[str, tuple[Any, tuple[Any, ...]]]):
        self.place, self.raw, self.asked = place, raw, set(HARMLESS)
        named = self.get("architectures", [architecture])
        if named != [architecture]:
            raise UserError(f"{place}: architectures={named} in config.json is not known, only {architecture} is: it may compute something else")
        for name, (absent, accepted) in demands.items():
            value = self.get(name, absent)
            if value not in accepted:
                wanted = " or ".join(map(repr, accepted))
                raise UserError(f"{place}: {name}={value!r} in config.json is not supported, only {wanted} is: the model computes something else")

    def get(self, name: str, absent: Any) -> Any:
        self.asked.add(name)
        return absent if self.raw.get(name) is None else self.raw[name]

    def needed(self, name: str) -> Any:
        if self.get(name, None) is None:
            raise UserError(f"{self.place}: config.json says no {name}: restore the file")
        return self.raw[name]

    def alike(self, architecture: str) -> dict[str, Any]:
        """Return what they call as transformers does."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "attention_dropout", "initializer_range")
        told = {name: self.raw[name] for name in names if name in self.raw}
        return {**told, "dtype": self.get("dtype", self.raw.get("torch_dtype")), "architectures": [architecture]}

    @property
    def unknown(self) -> tuple[str, ...]:
        """Keys that nobody has asked for by now."""
        return tuple(sorted(name for name, value in self.raw.items() if name not in self.asked and value is not None))


def _more(names: list[Any]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
