"""A classifier: a trunk with a head on CLS, on the mean or on the last token, as its architecture has it."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ...data.errors import UserError
from ...infer.encoders.unpadded import trunk_of

POOLINGS = ("auto", "cls", "mean", "last")


def set_pooling(model: PreTrainedModel, pooling: str) -> None:
    """Have the head read what `pooling` says, where the architecture's config can say it; "auto" leaves it as it is.

    Raises UserError, naming the architecture, where its head reads something else and cannot be told: the folder would not be what it was trained as.
    """
    if pooling not in POOLINGS:
        raise UserError(f"pooling must be {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}, got {pooling!r}")
    own = pooling_of(model)
    if pooling in ("auto", own):
        return
    if not hasattr(model.config, "classifier_pooling") or pooling == "last":
        raise UserError(f"the head of {model.config.model_type} reads {own}, and its config has no word for {pooling}: leave --pooling out, or take ModernBERT for cls or mean")
    model.config.classifier_pooling = pooling


def pooling_of(model: PreTrainedModel) -> str:
    """What the head reads: cls, mean, or last."""
    if isinstance(getattr(model, "score", None), nn.Module):  # the name that transformers gives the head of decoders alone
        return "last"
    return getattr(model.config, "classifier_pooling", "cls")


def head_names(model: PreTrainedModel) -> list[str]:
    """The names of the modules that a language model's checkpoint has not: those beside the trunk, and the trunk's pooler."""
    trunk = trunk_of(model)
    beside = [name for name, child in model.named_children() if child is not trunk and any(True for _ in child.parameters())]
    return [*beside, *(["pooler"] if getattr(trunk, "pooler", None) is not None else [])]


def head_layers(model: PreTrainedModel) -> list[str]:
    """The full names of the linear layers of these: they are trained whole, and need no adapter."""
    names = head_names(model)
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and set(name.split(".")) & set(names)]


def renew_head(model: PreTrainedModel) -> None:
    """Fill the head beside the trunk with new random numbers, as the architecture begins one."""
    trunk = trunk_of(model)
    for child in model.children():
        if child is trunk:
            continue
        for part in (*child.modules(), *child.parameters()):  # transformers passes over what it once filled or loaded
            part._is_hf_initialized = False
        with torch.no_grad():
            child.apply(model._init_weights)
