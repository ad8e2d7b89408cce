"""What a transformers model is, as far as a runner must know."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...data.errors import UserError
from ..text.vocabulary import check_ids
from .model_lock import locked
from .paradigm import is_bidirectional, refuse_encoder

LAYERS_WITH_ATTENTION_ALONE = {"full_attention", "sliding_attention"}
MEMORIES = ("cache", "past_key_values", "cache_params", "state")  # what architectures call it; since transformers 5.24 nearly all the first


@dataclass(frozen=True)
class Capabilities:
    """What a runner can do; a strategy that needs more refuses before its first pass."""

    all_positions: bool = True  # logits at every new position, not the last alone
    truncate: bool = True
    fork: bool = True
    hidden_states: bool = False
    mask_holes: bool = False
    adapters: bool = False  # slots of one pass may run with different ones
    parts: bool = True  # a prompt may go in by parts at no more cost
    both_ways: bool = False  # a slot's new positions may all see one another
    rewrites: bool = False  # new positions may take the place of some in the midst of a slot


class ModelOutput(NamedTuple):
    """What a pass gives: logits, [sum(keep), vocab], and by layer the hidden states of all new positions, [sum(len(ids)), hidden]."""

    logits: Tensor
    states: dict[int, Tensor]


def check_pass(slots: Sequence[int], ids: Sequence[Sequence[int]], keep: Sequence[int], vocab_size: int) -> None:
    """Raise UserError for a pass that no runner can take: on a GPU an id beyond the vocabulary would cost the process."""
    if not len(slots) == len(ids) == len(keep):
        raise UserError(f"{len(slots)} slots, {len(ids)} lists of ids and {len(keep)} numbers of logits: give one of each a slot")
    if len(set(slots)) < len(slots):
        raise UserError(f"the slots {list(slots)} name one twice: put all its ids in one list")
    for slot, new, kept in zip(slots, ids, keep):
        if not len(new):
            raise UserError(f"slot {slot} has no new ids: leave it out of the pass")
        if not 0 <= kept <= len(new):
            raise UserError(f"slot {slot} is to keep the logits of {kept} positions, but has {len(new)} new ids: ask for 0 to {len(new)}")
        check_ids(new, vocab_size, f"slot {slot}")


def refuse_source(config: PreTrainedConfig, source_ids: Sequence[int]) -> None:
    """Raise UserError where a decoder's slot is given a source, which an encoder would read."""
    if len(source_ids):
        raise UserError(f"{config.model_type} is a decoder, which reads no source: put its {len(source_ids)} ids in front of the others")


def check_cut(slot: int, length: int, had: int) -> None:
    """Raise UserError for a length that a slot cannot be cut to."""
    if not 0 <= length <= had:
        raise UserError(f"slot {slot} has {had} positions in the cache and cannot be cut to {length}: give 0 to {had}")


def check_rewrite(slot: int, at: int, count: int, had: int) -> None:
    """Raise UserError for new ids that are to take the place of more than a slot has."""
    if at + count > had:
        raise UserError(f"slot {slot} has {had - at} positions from {at} on, whose place {count} new ids are to take: give so many at most")


def transformers_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model inside the wrappers of peft and of distributed training; raises UserError where there is none, or for prompt tuning."""
    while not isinstance(model, PreTrainedModel):
        peft = getattr(model, "active_peft_config", None)
        if peft is not None and peft.is_prompt_learning:
            raise UserError(f"the adapter is of type {peft.peft_type.value}, which puts tokens of its own before the prompt: use LoRA")
        inner = model.get_base_model() if hasattr(model, "get_base_model") else getattr(model, "module", None)
        if inner is None:
            raise UserError(f"expected a transformers model, got {type(model).__name__}")
        model = inner
    return model


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raise UserError for models that speak neither from left to right nor, as their configuration would say, by diffusion."""
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise UserError(f"{config.model_type} is an encoder-decoder model, which has a runner of its own: use open_runner")
    refuse_encoder(model.config)
    both_ways = getattr(config, "use_bidirectional_attention", None) in (True, "all")  # "vision": among an image's positions alone (Gemma 4)
    if both_ways or getattr(config, "is_causal", True) is False and not is_bidirectional(model.config):
        raise UserError(f"{config.model_type} attends in both directions and cannot continue a text: use a causal model")
    if model.get_output_embeddings() is None:
        raise UserError(f"{type(model).__name__} has no language model head: load it as a causal language model")


def context_limit(model: PreTrainedModel) -> int | None:
    """Return how many positions one row of a pass of the model's own can have beside others, or None where nothing bounds them.

    Under longrope it is the length of the first training: beyond it, one long row changes the rotation of all that are with it.
    """
    config = model.config.get_text_config()
    first = [rope.get("original_max_position_embeddings") for rope in rope_settings(config) if rope.get("rope_type") == "longrope"]
    return min(filter(None, [positions_of(config), *first]), default=None)


def first_position(model: PreTrainedModel) -> int:
    """The position of a text's first token: behind the padding's own in RoBERTa, MPNet and their kin, which have fewer positions by that many, else 0."""
    embeddings = getattr(model.base_model, "embeddings", None)
    counts_behind = any(hasattr(embeddings, name) for name in ("create_position_ids_from_input_ids", "create_position_ids_from_inputs_embeds"))
    padding = getattr(embeddings, "padding_idx", None)
    return padding + 1 if counts_behind and padding is not None else 0


def text_limit(model: PreTrainedModel) -> int | None:
    """How many tokens a text that is read at once may have, those around it counted; None where nothing bounds them."""
    context = context_limit(model)
    return None if context is None else context - first_position(model)


def rope_settings(config: PreTrainedConfig) -> list[dict]:
    """Return what the configuration says of rotary positions: one dictionary, or one a kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [each for each in rope.values() if isinstance(each, dict)]


def decoding_limit(model: PreTrainedModel) -> int | None:
    """Return how many positions a slot can have that turns by its own length, or None where nothing bounds them.

    Under longrope all that the configuration gives, under dynamic scaling `factor` times as many as the model was trained with.
    """
    config = model.config.get_text_config()
    limit = positions_of(config)
    factors = [rope.get("factor", 1) for rope in rope_settings(config) if rope.get("rope_type") == "dynamic"]
    return int(limit * min(factors)) if factors and limit is not None else limit


def positions_of(config: PreTrainedConfig) -> int | None:
    """Return how many positions the configuration gives, under whichever name."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
    return next((limit for name in names if isinstance(limit := getattr(config, name, None), int) and limit > 0), None)


def refuse_masking_under_window(config: PreTrainedConfig) -> None:
    """Raise UserError where a sliding window would be counted in what is left of a slot with hidden positions."""
    if attends_in_window(config):
        raise UserError(
            f"{config.model_type} attends in a sliding window of {config.sliding_window} positions, in which Seodang cannot leave some out: "
            "drop hide and attention_mask, or use a model without a window"
        )


def refuse_both_ways_under_window(config: PreTrainedConfig) -> None:
    """Raise UserError where positions that see one another would lie in a sliding window, which says nothing of what stands behind."""
    if attends_in_window(config):
        raise UserError(
            f"{config.model_type} attends in a sliding window of {config.sliding_window} positions, where Seodang lets none see what follows it: "
            "use a model without a window"
        )


def attends_in_window(config: PreTrainedConfig) -> bool:
    """Whether some layer sees the newest positions alone."""
    return bool(getattr(config, "sliding_window", None)) and bool(getattr(config, "use_sliding_window", True))


def carries_state(model: PreTrainedModel) -> bool:
    """Whether a layer remembers by other means than keys and values of every position."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    return bool(getattr(model, "_is_stateful", False)) or not kinds <= LAYERS_WITH_ATTENTION_ALONE


def memory_name(model: PreTrainedModel) -> str:
    """What the model's forward calls the memory that is handed from step to step; raises UserError where it takes none."""
    accepts = inspect.signature(type(model).forward).parameters
    name = next((name for name in MEMORIES if name in accepts), None)
    if name is None:
        raise UserError(f"{model.config.model_type} has no memory that could be handed from step to step: use another architecture")
    return name


def attention_is_replaceable(model: PreTrainedModel) -> bool:
    """Whether every attention layer goes through transformers' AttentionInterface."""
    return model._supports_attention_backend and model._can_set_attn_implementation()


def scaled(config: PreTrainedConfig, logits: Tensor) -> Tensor:
    """Return what the architecture makes of its head's output, [n, vocab]: a scale in Granite and Cohere, a soft bound in Gemma 2."""
    logits = logits * (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    bound = getattr(config, "final_logit_softcapping", None)
    return logits if bound is None else torch.tanh(logits / bound) * bound


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Compute without dropout, and put each module's training mode back; other threads wait for it."""
    with locked(model):
        training = [module for module in model.modules() if module.training] if model.training else []
        for module in training:
            module.training = False
        try:
            yield
        finally:
            for module in training:
                module.training = True
