"""A LoRA adapter's folder, as peft writes it, read to run beside the weights of a model that others use without it."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from pickle import UnpicklingError

import torch
from peft import LoraConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.errors import UserError
from ..kernels.low_rank import Adapter, LowRank, width_of
from ..runners.architecture import transformers_model
from .damage import read_json
from .load import ADAPTER_CONFIG, has_tokenizer, is_adapter, load_tokenizer
from .manifest import verify

PREFIX = "base_model.model."  # before the names of the model's own modules
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
OTHER_KINDS = (  # of what peft calls LoRA: more than two matrices beside a layer that is left as it is
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "modules_to_save", "monteclora_config", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
)  # fmt: skip
CHANGE_WEIGHTS = ("pissa", "corda", "olora", "loftq", "lora_ga")  # ways to begin that take from the weights what the matrices begin with
REMEDY = "merge it into a model of its own (seodang export) and serve that"


def read_adapter(place: str | os.PathLike, name: str, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Adapter:
    """Return the LoRA adapter that a folder holds, over the model, in its dtype and on its device; `name` is what it is called.

    Its manifest, where it has one, is checked first. Raises UserError for a folder that holds none, or one of another model, of another kind
    than two matrices a linear layer, that changes the head or the embeddings, or that was trained with another vocabulary or chat template.
    """
    folder, inner = Path(place), transformers_model(model)
    if not is_adapter(folder):
        raise UserError(f"{folder} holds no adapter ({ADAPTER_CONFIG}, and no config.json): give a folder that a training with lora wrote")
    verify(folder)
    if any(hasattr(type(module), "merged_adapters") for module in inner.modules()):
        raise UserError(f"the model has an adapter of its own, beside which {name!r} does not run: merge that one into it first (seodang export)")
    config = config_of(folder)
    refuse_other_texts(folder, name, tokenizer)
    weight, layers = inner.get_input_embeddings().weight, {}
    with torch.no_grad():
        for module, pair in matrices(folder).items():
            layer, widths = layer_of(inner, module, folder), (pair[0].shape[1], pair[1].shape[0])
            if widths != (wanted := width_of(layer)):
                raise UserError(f"{folder} is an adapter of another model: {module} has {widths} inputs and outputs there, here {wanted}")
            layers[layer] = low_rank(pair, config, module, weight)
    return Adapter(name, layers)


def config_of(folder: Path) -> LoraConfig:
    """Return what an adapter's configuration says; raises UserError for one of another kind."""
    said = read_json(folder / ADAPTER_CONFIG)
    if said.get("peft_type") != "LORA":
        raise UserError(f"{folder} holds an adapter of type {said.get('peft_type')}, which does not run beside the weights: {REMEDY}")
    others = [name for name in OTHER_KINDS if said.get(name)]
    if said.get("bias", "none") != "none" or said.get("lora_bias"):
        others.append("bias")
    if str(said.get("init_lora_weights")).lower().startswith(CHANGE_WEIGHTS):
        others.append(f"init_lora_weights={said['init_lora_weights']}")
    if others:
        raise UserError(f"{folder} was trained with {others[0]}, which does not run beside the weights: {REMEDY}")
    try:
        config = LoraConfig.from_pretrained(folder)
        for patterns in (config.rank_pattern, config.alpha_pattern):
            get_pattern_key(patterns.keys(), "")
        numbers = [config.r, config.lora_alpha, *config.rank_pattern.values(), *config.alpha_pattern.values()]
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"{folder / ADAPTER_CONFIG} says what peft does not read ({error}): restore the folder or use another adapter") from None
    if wrong := [value for value in numbers if not isinstance(value, int | float) or value == 0 or not math.isfinite(value)]:
        raise UserError(f"{folder / ADAPTER_CONFIG} has {wrong[0]!r} as a rank or an alpha, which are finite numbers and not 0: use another adapter")
    return config


def matrices(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return an adapter's matrices, [rank, in] and [out, rank], by the names of the model's modules; raises UserError for any other tensor."""
    if not any((folder / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):  # which peft would look for elsewhere
        raise UserError(f"{folder} holds no weights ({SAFETENSORS_WEIGHTS_NAME}): restore the folder or use another adapter")
    try:
        tensors = load_peft_weights(str(folder), device="cpu")
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError, EOFError) as error:
        raise UserError(f"the weights of {folder} could not be read ({str(error).splitlines()[0]}): restore the folder or use another adapter") from None
    others = [name for name in tensors if not (name.startswith(PREFIX) and name.endswith((DOWN, UP)))]
    if others:
        raise UserError(f"{folder} holds {others[0]}, which is no matrix beside a linear layer: {REMEDY}")
    names = sorted({name.removesuffix(DOWN).removesuffix(UP) for name in tensors})
    alone = [name for name in names if name + DOWN not in tensors or name + UP not in tensors]
    if alone or not names:
        raise UserError(f"{folder} lacks {f'one of the matrices of {alone[0]}' if alone else 'any matrix'}: restore the folder or use another adapter")
    if wrong := [name for name, tensor in tensors.items() if tensor.dim() != 2 or tensor.dtype not in DTYPES or not tensor.isfinite().all()]:
        kind = f"{str(tensors[wrong[0]].dtype).removeprefix('torch.')} {list(tensors[wrong[0]].shape)}"
        raise UserError(f"{folder} has {wrong[0]} as {kind}, where a matrix of finite floats belongs: restore the folder or use another adapter")
    return {name.removeprefix(PREFIX): (tensors[name + DOWN], tensors[name + UP]) for name in names}


def layer_of(model: PreTrainedModel, module: str, folder: Path) -> nn.Module:
    """Return the linear layer that a module's name means; raises UserError for one that the model has not, or that no adapter may change."""
    try:
        layer = model.get_submodule(module)
        width_of(layer)
    except AttributeError:
        raise UserError(f"{folder} is an adapter of another model: this {model.config.model_type} has no linear layer {module}") from None
    if layer in (model.get_output_embeddings(), model.get_input_embeddings()):
        raise UserError(f"{folder} changes {module}, which all answers share: {REMEDY}")
    return layer


def low_rank(pair: tuple[Tensor, Tensor], config: LoraConfig, module: str, like: Tensor) -> LowRank:
    """Return a layer's matrices, scaled as the configuration says for the module, with dtype and device of `like`."""
    down, up = pair
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), module), config.r)
    if not len(down) == up.shape[1] == rank:
        raise UserError(f"the adapter's matrices of {module} have rank {len(down)} and {up.shape[1]}, its configuration says {rank}: use another adapter")
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), module), config.lora_alpha)
    scale = alpha / (math.sqrt(rank) if config.use_rslora else rank)
    wide = torch.promote_types(up.dtype, torch.float32)
    return LowRank(down.to(like.device, like.dtype).contiguous(), (up.to(wide) * scale).to(like.device, like.dtype).contiguous().t())


def refuse_other_texts(folder: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the adapter was trained on other ids than the model's tokenizer gives, or on messages that were rendered otherwise."""
    if not has_tokenizer(folder):
        return
    own = load_tokenizer(folder)
    if own.get_vocab() != tokenizer.get_vocab():
        raise UserError(f"the adapter {name!r} was trained with another vocabulary than the model's ({len(own)} and {len(tokenizer)} tokens): {REMEDY}")
    if own.chat_template != tokenizer.chat_template:
        raise UserError(f"the adapter {name!r} was trained with another chat template than the model's: {REMEDY}")
