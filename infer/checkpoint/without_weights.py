"""Models of shapes alone, on torch's meta device: what a configuration says of them, so that their memory is known before there are weights."""

import copy
import os
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ...data.errors import UserError
from .published_diffusion import stored_config

FOUR_BITS = "nf4"  # what stands for bitsandbytes' configuration, which asks for the library
_BUILT: ContextVar[list[PreTrainedModel] | None] = ContextVar("built", default=None)


def load_without_weights() -> list[PreTrainedModel]:
    """From here on, in this context, have `load` give models on the meta device; returns the list that they are put into."""
    built: list[PreTrainedModel] = []
    _BUILT.set(built)
    return built


def loads_without_weights() -> bool:
    """Whether models are to be made of shapes alone."""
    return _BUILT.get() is not None


def is_config_file(path: str | os.PathLike) -> bool:
    """Whether a path is that of a model's configuration alone."""
    return os.path.isfile(path) and os.fspath(path).endswith(".json")


def model_of_shapes(place: str, model_class: Any, dtype: torch.dtype, arguments: dict[str, Any]) -> PreTrainedModel:
    """A model by the configuration of a folder, a hub name or a config.json, its parameters on the meta device; nothing computes.

    Of `arguments`, `quantization_config` keeps its linear layers, the head aside, in four bits, and the others are the configuration's.
    Raises UserError for a configuration that cannot be read or built.
    """
    try:
        config = copy.deepcopy(stored_config(place))
        refuse_few_bits(place, config)
        arguments = dict(arguments)
        in_four_bits = arguments.pop("quantization_config", None) is not None
        for name, value in arguments.items():
            setattr(config, name, value)
        model = shapes_by(config, model_class, torch.bfloat16 if in_four_bits else dtype)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise UserError(f"model {place!r} could not be built by its configuration: {str(error).strip().splitlines()[0]}") from None
    if in_four_bits:
        in_four_bit_layers(model)
    return model


def shapes_by(config: PreTrainedConfig, model_class: Any, dtype: torch.dtype) -> PreTrainedModel:
    """A model of shapes by a configuration, in evaluation mode, put among those that were built; raises what the class does for one that it cannot build."""
    with torch.device("meta"):
        model = model_class.from_config(config, dtype=dtype)
    model._apply = MethodType(_where_it_is, model)
    _BUILT.get().append(model)
    return model.eval()


def refuse_few_bits(place: str, config: PreTrainedConfig) -> None:
    """Raise UserError for a configuration of weights in few bits, save MXFP4 (gpt-oss), which is written out where it is trained."""
    told = getattr(config, "quantization_config", None)
    method = None if told is None else told.get("quant_method") if isinstance(told, dict) else getattr(told, "quant_method", told)
    if method == "mxfp4":
        del config.quantization_config
    elif method is not None:
        raise UserError(f"{place} holds weights in few bits ({method}), which are not trained: plan with the model that it was made of")


def _where_it_is(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
    """Let a module on the meta device stay where it is when it is to be moved: there is nothing to move, and torch refuses."""
    try:
        return type(self)._apply(self, fn, recurse)
    except NotImplementedError:
        return self


class FourBitLinear(nn.Linear):
    """Stands for bitsandbytes' Linear4bit: the weight of a frozen layer, which is written out in bfloat16 for each product."""

    BYTES = 0.5 + 4 / 64  # of a weight: NF4 and a float32 for each block of 64 (Dettmers et al. 2023, "QLoRA"; no double quantisation here)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out] in the dtype of x, computed in bfloat16."""
        weight = self.weight.detach().clone()  # what is written out, for as long as the product takes
        return nn.functional.linear(x.to(weight.dtype), weight, self.bias).to(x.dtype)


def in_four_bit_layers(model: PreTrainedModel) -> None:
    """Make the linear layers of a model on the meta device, its head aside, those of bitsandbytes' four bits; all else goes into float32, as peft has it."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if type(module) is nn.Linear and module is not head and module.out_features > 1:
            module.__class__ = FourBitLinear
    four_bits = {id(module.weight) for module in model.modules() if isinstance(module, FourBitLinear)}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if id(parameter) not in four_bits:
            parameter.data = parameter.data.float()


def weight_bytes(model: nn.Module) -> int:
    """How many bytes a model's parameters and buffers take, what is in four bits counted so; what several modules share counts once."""
    four_bits = {id(module.weight) for module in model.modules() if isinstance(module, FourBitLinear)}
    held = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return int(sum(each.numel() * (FourBitLinear.BYTES if key in four_bits else each.element_size()) for key, each in held.items()))
