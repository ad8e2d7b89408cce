"""A small model of one of transformers' architectures, from nothing: its config by a few sizes, or by a file, and random weights."""

import difflib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from ...data.errors import UserError
from ...infer.architectures.lstm import LSTMConfig
from ...infer.architectures.transformer import TransformerConfig
from ...infer.checkpoint.without_weights import loads_without_weights, shapes_by

DECODER, ENCODER, ENCODER_DECODER = "decoder", "encoder", "encoder-decoder"
SUGGESTED = "llama, qwen3, gpt2 (decoders), bert, modernbert (encoders), t5, bart (both)"
NAMES = {  # of each size, what architectures call it
    "hidden_size": ("hidden_size", "d_model"), "layers": ("num_hidden_layers", "num_layers"), "heads": ("num_attention_heads",),
    "key_value_heads": ("num_key_value_heads",), "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"), "head_size": ("head_dim",),
    "positions": ("max_position_embeddings", "n_positions"),
}  # fmt: skip
OF_BOTH_SIDES = {  # what encoder-decoders call it: all that a config has are set
    "hidden_size": ("d_model",), "layers": ("num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers"),
    "heads": ("num_heads", "encoder_attention_heads", "decoder_attention_heads"), "key_value_heads": (), "head_size": ("d_kv",),
    "intermediate": ("d_ff", "encoder_ffn_dim", "decoder_ffn_dim"), "positions": ("max_position_embeddings",),
}  # fmt: skip
# The others bring what a size does not say: experts, windows, local attention, an attention of several streams, a second tokenizer, sound.
ENCODER_DECODERS = (
    "bart", "blenderbot", "blenderbot-small", "m2m_100", "marian", "mbart", "mt5", "mvp", "pegasus", "plbart", "t5", "umt5", TransformerConfig.model_type, LSTMConfig.model_type,
)  # fmt: skip
BEHIND_PADDING = ("camembert", "data2vec-text", "esm", "ibert", "longformer", "luke", "mpnet", "xmod")  # and all whose name says roberta
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
ENDS = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


@dataclass(frozen=True)
class Sizes:
    """How large a model of an architecture is. Raises UserError for sizes that do not go together."""

    hidden_size: int = 256
    layers: int = 6
    heads: int = 4
    key_value_heads: int | None = None  # as many as heads; fewer share keys and values (GQA)
    intermediate: int | None = None  # of the feed-forward layers; by default in the architecture's own proportion to hidden_size

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and value < 1:
                raise UserError(f"{each.name} must be at least 1, got {value}")
        if self.hidden_size % self.heads:
            fitting = [self.hidden_size // self.heads * self.heads, -(-self.hidden_size // self.heads) * self.heads]
            near = " or ".join(str(size) for size in fitting if size)
            raise UserError(f"hidden_size {self.hidden_size} cannot be shared out among {self.heads} heads: make it a multiple of {self.heads}, {near} say")
        if self.hidden_size // self.heads % 2:
            size = self.hidden_size // self.heads
            raise UserError(f"hidden_size {self.hidden_size} gives each of {self.heads} heads {size} numbers, rotary positions need an even number: change one of them")
        if self.key_value_heads is not None and self.heads % self.key_value_heads:
            raise UserError(f"key_value_heads {self.key_value_heads} must divide heads {self.heads}")


def kind_of(model_type: str) -> str:
    """What an architecture is trained to do: DECODER continues a text, ENCODER fills in masked tokens, ENCODER_DECODER writes what is hidden of a text."""
    if model_type in ENCODER_DECODERS or model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and CONFIG_MAPPING[model_type].is_encoder_decoder:
        return ENCODER_DECODER
    return ENCODER if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else DECODER


def small_config(architecture: str, sizes: Sizes, tokenizer: PreTrainedTokenizerBase, positions: int, tied: bool = True) -> PreTrainedConfig:
    """The config of a model of an architecture, a model_type of transformers, for a tokenizer's vocabulary and rows of so many tokens.

    An encoder-decoder has as many layers on each side. What the sizes do not say is as transformers has it. Raises UserError for an architecture that
    there is not, that is none of text alone, or that has no such size.
    """
    refuse_sizes(architecture, sizes)
    known, both = _by_default(architecture), kind_of(architecture) == ENCODER_DECODER
    given = {
        "hidden_size": sizes.hidden_size, "layers": sizes.layers, "heads": sizes.heads, "key_value_heads": sizes.key_value_heads or sizes.heads,
        "head_size": sizes.hidden_size // sizes.heads, "intermediate": sizes.intermediate or _in_proportion(known, sizes.hidden_size), "positions": _positions(architecture, tokenizer, positions),
    }  # fmt: skip
    named = {name: value for size, value in given.items() for name in _names_of(known, size, both)}
    named |= {"tie_word_embeddings": tied, **of_tokenizer(tokenizer)}
    if both:
        named |= _ends_of(known, tokenizer)
    with _config_errors(f"architecture {architecture}"):
        config = AutoConfig.for_model(architecture, **named)
    if config.tie_word_embeddings and not tied:
        raise UserError(f"architecture {architecture} always shares the head's weights with the embedding: leave tie_embeddings out")
    return config


def config_of_file(path: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config that `read_config` reads, for a tokenizer's vocabulary. Raises UserError for one that does not hold together."""
    left_out = (*IDS, *ENDS, "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
    said = {name: value for name, value in read_config(path).items() if name not in left_out}
    with _config_errors(f"--config_file {path}"):
        ends = _ends_of(AutoConfig.for_model(said["model_type"]), tokenizer) if kind_of(said["model_type"]) == ENCODER_DECODER else {}
        return AutoConfig.for_model(**(said | of_tokenizer(tokenizer) | ends))


def read_config(path: str) -> dict[str, Any]:
    """What a config.json says, or the one in a folder, of which nothing else is read. Raises UserError for what is no config of transformers'."""
    place = Path(os.path.expanduser(path))
    place = place / "config.json" if place.is_dir() else place
    if not place.is_file():
        raise UserError(f"--config_file {path}: there is no {'config.json in it' if Path(path).is_dir() else 'such file'}")
    try:
        said = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--config_file {path} is not JSON: {error}") from None
    if not isinstance(said, dict) or not isinstance(said.get("model_type"), str):
        raise UserError(f"--config_file {path} names no model_type: give one, {SUGGESTED}")
    return said


def refuse_architecture(name: str) -> None:
    """Raise UserError for an architecture that transformers does not have, or that is no decoder or encoder of text, or both, that is trained here."""
    if name in ENCODER_DECODERS:
        return
    if name not in CONFIG_MAPPING_NAMES:
        near = difflib.get_close_matches(name, [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_MASKED_LM_MAPPING_NAMES, *ENCODER_DECODERS], n=1)
        raise UserError(f"architecture {name!r} is not known: " + (f"did you mean {near[0]}?" if near else f"try {SUGGESTED}"))
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and name not in MODEL_FOR_MASKED_LM_MAPPING_NAMES and kind_of(name) != ENCODER_DECODER:
        raise UserError(f"architecture {name} neither continues a text nor fills one in: try {SUGGESTED}")
    with quiet_ids():
        other = kind_of(name) == ENCODER_DECODER or AutoConfig.for_model(name).is_encoder_decoder
    if other:
        raise UserError(f"architecture {name} is an encoder-decoder, of which these are trained from nothing here: {', '.join(ENCODER_DECODERS)}")


def refuse_sizes(architecture: str, sizes: Sizes) -> None:
    """Raise UserError for an architecture as `refuse_architecture` does, and for one that a few sizes do not say, or that has no such size."""
    refuse_architecture(architecture)
    known, both = _by_default(architecture), kind_of(architecture) == ENCODER_DECODER
    if missing := [size for size in ("hidden_size", "layers", *(["heads"] if both else [])) if not _names_of(known, size, both)]:
        raise UserError(f"architecture {architecture} has no {missing[0]} in its config: write a config.json for it, and name it with --config_file")
    if sizes.key_value_heads is not None and not _names_of(known, "key_value_heads", both):
        raise UserError(f"architecture {architecture} has as many heads of keys and values as others: leave key_value_heads out")


def _by_default(architecture: str) -> PreTrainedConfig:
    """The config that an architecture has by itself."""
    with quiet_ids():
        return AutoConfig.for_model(architecture)


def untrained(config: PreTrainedConfig, seed: int, dtype: torch.dtype, device: torch.device, kind: type | None = None) -> PreTrainedModel:
    """A model by a config with random weights, as the architecture draws them, that depend on the seed; in evaluation mode on its device.

    `kind` is the class of transformers that builds it, by default the one that the architecture is trained as. Raises UserError for a config that no
    model can be built by.
    """
    set_seed(seed)
    classes = {DECODER: AutoModelForCausalLM, ENCODER: AutoModelForMaskedLM, ENCODER_DECODER: AutoModelForSeq2SeqLM}
    build = kind or classes[kind_of(config.model_type)]
    with _config_errors(f"a model of the architecture {config.model_type}"):
        if loads_without_weights():
            return shapes_by(config, build, dtype)
        model = build.from_config(config, dtype=dtype)
    return model.to(device).eval()


def _names_of(config: PreTrainedConfig, size: str, both: bool) -> list[str]:
    """What an architecture's config calls a size, on both sides where there are two; nothing where it has none such."""
    there = [name for name in (OF_BOTH_SIDES if both else NAMES)[size] if hasattr(config, name)]
    return there if both else there[:1]


def _in_proportion(known: PreTrainedConfig, hidden: int) -> int:
    """The size of the feed-forward layers, to `hidden` as in the architecture's own default, rounded to eights."""
    names = [*_names_of(known, "intermediate", False), *_names_of(known, "intermediate", True)]
    own = getattr(known, next(iter(names), ""), None) or 4 * known.hidden_size
    return max(8 * round(own * hidden / known.hidden_size / 8), 8)


def _ends_of(known: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """What an answer of an encoder-decoder begins with, and must end with: the tokenizer's token of the role that the architecture's own has.

    That is the padding in T5 and its kin, whose config may leave it open, and the end of the text in BART and mBART, where it stands behind a target.
    """
    own, roles = getattr(known, "decoder_start_token_id", None), ("pad_token_id", "eos_token_id", "bos_token_id")
    role = next((role for role in roles if own is not None and getattr(known, role, None) == own), "pad_token_id" if hasattr(known, "d_kv") else "eos_token_id")
    start = next((id for each in (role, *roles) if (id := getattr(tokenizer, each, None)) is not None), None)
    if start is None:
        raise UserError("the tokenizer has neither padding nor an end of text, one of which an answer of an encoder-decoder begins with: use another tokenizer")
    forced = {"forced_eos_token_id": tokenizer.eos_token_id} if getattr(known, "forced_eos_token_id", None) is not None else {}
    return {"decoder_start_token_id": start, **forced}


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The size of the vocabulary and the ids of special tokens: None for one that it lacks, where every config has an entry."""
    ids = {name: getattr(tokenizer, name, None) for name in IDS}
    return {"vocab_size": len(tokenizer), **{name: id for name, id in ids.items() if id is not None or name in IDS[:3]}}


def _positions(architecture: str, tokenizer: PreTrainedTokenizerBase, positions: int) -> int:
    """How many positions a table must have for rows of so many tokens: RoBERTa and its kin count from behind the padding's id."""
    behind = "roberta" in architecture or architecture in BEHIND_PADDING
    return positions + behind * ((tokenizer.pad_token_id or 0) + 1)


@contextmanager
def _config_errors(what: str) -> Iterator[None]:
    """Raise a UserError in place of what transformers says of a config that does not hold together."""
    try:
        with quiet_ids():
            yield
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError, RuntimeError, StrictDataclassError) as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise UserError(f"{what} cannot be built: {lines[-1].strip()}") from None


@contextmanager
def quiet_ids() -> Iterator[None]:
    """Keep transformers from warning that an architecture's default ids are beyond a vocabulary that is small: the tokenizer's own are put in."""
    logger = logging.getLogger("transformers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
