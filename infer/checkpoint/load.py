"""Open a checkpoint: a folder, a GGUF file, a hub name, an adapter on its base, or one of the embedded default models."""

import logging
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...data.errors import UserError
from ...data.hub import check_hub_name
from ..architectures import lstm, transformer  # noqa: F401  # they tell transformers of themselves
from ..diffusion.compat import bind
from ..kernels.device import choose_device, choose_dtype
from ..kernels.fused_projections import fuse_projections
from ..runners.native.grouped_linear import missing_kernels
from ..runners.open import check_kv_cache_dtype, set_kv_cache_dtype
from ..runners.paradigm import has_classifier_head, has_tagger_head, is_encoder, masked_lm_class, refuse_continuous
from .adapter_head import head_of
from .adapter_paradigm import declare_as_beside
from .calibration_text import Calibration, calibration_rows, check_choice
from .conversion_cache import converted, in_packs
from .damage import check_texts, read_json, refuse_mismatched, torn_file
from .default_encoder import NAME as DEFAULT_ENCODER
from .default_encoder import default_encoder
from .default_model import default_model, shipped_gguf
from .few_bits_folder import few_bits_of, is_mapped, read_few_bits
from .gguf_file import gguf_model, gguf_tokenizer, is_gguf
from .manifest import read_manifest, verify, warn_of_other_template
from .pooler import pooler_argument
from .published_diffusion import published, published_tokenizer, stored_config
from .quantise import BITS, is_quantised, quantise
from .quiet import silence_old_names, without_load_report
from .without_weights import is_config_file, loads_without_weights, model_of_shapes

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"
SENTENCE_ENCODER = "modules.json"  # beside what makes vectors of texts, as sentence-transformers says it; a head has no part in that
POOLER = "pooler."  # a classifier's, though it stands in the trunk: masked language modelling has none


def load(
    path: str | os.PathLike,
    *,
    device: str = "auto",
    dtype: str = "auto",
    weights: str | None = None,
    kv_cache_dtype: str | None = None,
    adapter: str | os.PathLike | None = None,
    calibration: Calibration | None = None,
    bits: float | None = None,
    model_class: type | None = None,
    **model_arguments: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model, in evaluation mode on its device, and its tokenizer.

    `path` is a checkpoint folder, a GGUF file, a hub name, "default" or "default-encoder"; a folder that holds an adapter brings its base model with it. Files are checked
    against the folder's manifest first. A checkpoint that lacks tensors is refused, unless they are a head's that it never had (a classifier's on a language model's weights);
    one of masked language modelling is new only where `model_class` asks for it. After `load_without_weights` the model has shapes alone.
    `model_class` is a causal language model's, for an encoder-decoder's checkpoint AutoModelForSeq2SeqLM, for an encoder's AutoModelForMaskedLM, for one of
    sentence-transformers AutoModel, for a classifier's (a reward model) AutoModelForSequenceClassification, for a tagger's AutoModelForTokenClassification, unless another is given;
    an adapter with such a head brings its labels. `weights="int8"` or `"int4"` keeps the linear layers in 8 or 4 bits, for speaking and scoring on the CPU; an adapter is merged
    first. What comes of a folder is kept in the cache (`conversion_cache`); one that was exported so is mapped into memory. 4 bits can be chosen by a `calibration`, a file of plain
    text or texts, which takes minutes; with `bits` a weight above 5 the matrices that lose most keep 8. A GGUF file's stay in their own blocks on a CPU, unless a dtype or an
    adapter asks for floats. `kv_cache_dtype="int8"` has whatever speaks or scores with the model keep keys and values in 8 bits (`set_kv_cache_dtype`), on the CPU too, an adapter
    merged. Raises UserError for a path, device, dtype, weights or cache that cannot be had, for two adapters, and for files that are missing or changed.
    """
    check_kv_cache_dtype(kv_cache_dtype)
    _check_weights(weights, device, dtype)
    check_choice(weights, calibration, bits)
    otherwise = calibration is not None or model_class is not None or bool(model_arguments)  # than as its own class, rounded without a text
    shipped = shipped_gguf() if (path, weights, adapter) == ("default", "int4", None) and not otherwise and missing_kernels() is None else None
    place = resolve(path) if shipped is None else str(shipped)
    if is_adapter(place):
        if adapter is not None:
            raise UserError(f"{path} is an adapter already: give its base model as the model, or drop adapter={adapter}")
        place, adapter = resolve(adapter_base(place)), place
    if (saved := few_bits_of(place)) is not None:
        _refuse_beside(place, saved, weights, adapter, otherwise)
    _check_weights(saved, device, dtype)
    _refuse_continuous(place, getattr(model_class, "config_class", None))
    if saved is not None or weights is not None:
        device, dtype = "cpu", "float32"  # to quantise in, so that nothing is rounded twice
    _check_cache(kv_cache_dtype, where := choose_device(device))
    weights_dtype, reason = choose_dtype(dtype, where)
    logger.info("%s in %s on %s (%s)", path, weights_dtype, where, reason)
    if loads_without_weights():
        return model_of_shapes(place, model_class or _model_class(place), weights_dtype, model_arguments), load_tokenizer(place)
    head = None if adapter is None else head_of(resolve(adapter))
    if head is not None:
        model_class, model_arguments = model_class or head.model_class, {**head.arguments, **model_arguments}
    if shipped is not None:
        model = in_packs(shipped, lambda: gguf_model(place, weights_dtype, in_blocks=True))
    elif is_gguf(place):
        if model_class is not None or model_arguments:
            raise UserError(f"{place} holds a language model and no other: make a folder of it (`seodang export {place} FOLDER`), and give that")
        model = gguf_model(place, weights_dtype, dtype == "auto" and where.type == "cpu" and adapter is None, weights)
    elif saved is not None:
        model = read_few_bits(place)
    elif weights is not None and adapter is None and not otherwise and os.path.isdir(place):
        check_texts(Path(place))
        model = converted(Path(place), weights, lambda: _load_weights(place, None, weights_dtype, {}, brings_head=False))
    else:
        model = _load_weights(place, model_class, weights_dtype, model_arguments, brings_head=head is not None)
    tokenizer = _read_tokenizer(resolve(adapter) if adapter is not None and has_tokenizer(resolve(adapter)) else place)
    _warn_of_tokenizer(place if adapter is None else resolve(adapter), model, tokenizer)
    if adapter is not None:
        model = _load_adapter(model, resolve(adapter))
    if head is not None:
        head.declare(model.config, tokenizer)
    if adapter is not None and (weights is not None or kv_cache_dtype == "int8"):  # neither runs beside what peft puts into the layers
        model = merge_adapter(model, adapter)
    if weights is not None and not is_quantised(model):
        quantise(model, weights, calibration if calibration is None else calibration_rows(tokenizer, model, calibration), bits)
    if not getattr(model, "hf_device_map", None) and not is_mapped(model):
        model = model.to(where)
        fuse_projections(model)
    bind(model)
    if kv_cache_dtype is not None:
        set_kv_cache_dtype(model, kv_cache_dtype)
    return model.eval(), tokenizer


def _check_cache(kv_cache_dtype: str | None, device: torch.device) -> None:
    """Raise UserError for a cache that a device does not have."""
    if kv_cache_dtype not in (None, "auto") and device.type != "cpu":
        raise UserError(f"kv_cache_dtype={kv_cache_dtype} is there on the CPU, got device={device}: choose device cpu, or leave kv_cache_dtype out")


def _check_weights(weights: str | None, device: str, dtype: str) -> None:
    """Raise UserError for `weights` that are unknown, and for a device and a dtype that these do not have."""
    if weights is None:
        return
    if weights not in BITS:
        raise UserError(f"weights={weights!r} is unknown: choose int8 or int4, or leave it out")
    if device not in ("auto", "cpu"):
        raise UserError(f"weights={weights} computes on the CPU, got device={device!r}: choose cpu, or leave weights out")
    if dtype not in ("auto", "bfloat16"):
        raise UserError(f"weights={weights} computes in bfloat16, got dtype={dtype!r}: leave dtype out")


def _refuse_beside(place: str, saved: str, weights: str | None, adapter: str | os.PathLike | None, otherwise: bool) -> None:
    """Raise UserError for what a folder of a model in few bits cannot be loaded with."""
    if weights not in (None, saved):
        raise UserError(f"{place} holds weights in {saved}, got weights={weights}: leave weights out, or load the model that it was made of")
    if adapter is not None:
        remedy = f"`seodang export ADAPTER FOLDER --weights {saved}` merges it into the floats, and a server runs it beside them (--adapters)"
        raise UserError(f"an adapter cannot be merged into weights in {saved}, as {place} holds them: {remedy}")
    if otherwise:
        raise UserError(f"{place} holds weights in {saved}, for a language model that speaks and scores: load the model that it was made of")


def load_tokenizer(path: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a checkpoint folder, or one that holds nothing else, of a GGUF file, of a hub name or "default", of an adapter without one that of its base.

    Raises UserError where none can be read.
    """
    if os.path.isdir(path) and has_tokenizer(path) and not (Path(path) / "config.json").is_file():
        return _read_tokenizer(path)
    place = resolve(path)
    _refuse_continuous(place)
    return _read_tokenizer(resolve("default") if loads_without_weights() and is_config_file(place) else place)


def _refuse_continuous(place: str, wanted: type | None = None) -> None:
    """Refuse a folder of continuous diffusion by its name, unless a class with its very configuration is `wanted`: it is no language model like others."""
    config = Path(place) / "config.json"
    kind = read_json(config).get("model_type") if config.is_file() else None
    if wanted is None or wanted.model_type != kind:
        refuse_continuous(kind, place)


def _read_tokenizer(path: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or a hub name, as `load_tokenizer` does, whatever model is beside it."""
    place = os.fspath(path)
    if is_adapter(place) and not has_tokenizer(place):
        place = resolve(adapter_base(place))
    if is_gguf(place):
        return gguf_tokenizer(place)
    found = published(place)
    try:
        return AutoTokenizer.from_pretrained(place) if found is None else published_tokenizer(found)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"no tokenizer could be read from {str(path)!r}: {_first_line(error)}") from None
    except ImportError as error:
        if "sentencepiece" not in str(error).lower():
            raise
        raise UserError(f'the tokenizer of {str(path)!r} is read by SentencePiece\'s library: pip install "seodang[translation]"') from None


def resolve(path: str | os.PathLike) -> str:
    """Turn "default" and "default-encoder" into their folders; pass a GGUF file and a hub name on as they are.

    Raises UserError for a path that is neither a folder nor such a file nor a name that can be had from the hub, and for a folder whose writing was cut short. Its
    files are checked where they are loaded.
    """
    name = os.fspath(path)
    if name == "default":
        return str(default_model())
    if name == DEFAULT_ENCODER:
        return str(default_encoder())
    if os.path.isdir(name):
        folder = Path(name)
        read_manifest(folder)
        if not any((folder / each).is_file() for each in ("config.json", ADAPTER_CONFIG, SENTENCE_ENCODER)):
            files = sorted(folder.glob("*.gguf"))
            remedy = f"name a file in it, as {files[0]}" if files else "name a checkpoint's own folder"
            raise UserError(f"{name} holds no model (neither config.json nor {ADAPTER_CONFIG}): {remedy}")
        return name
    if is_gguf(name) or loads_without_weights() and is_config_file(name):
        return name
    if is_config_file(name):
        use = "`seodang pretrain --config_file` builds one by it from nothing, and --dry_run of a training command plans for it without weights"
        raise UserError(f"model {name!r} is a configuration, which has no weights: {use}; give the checkpoint's folder to start from weights")
    if os.path.exists(name):
        raise UserError(f"model {name!r} is neither a folder nor a GGUF file: give a checkpoint's folder, a hub name such as Qwen/Qwen3-0.6B, or default")
    check_hub_name(name)
    return name


def is_adapter(place: str | os.PathLike) -> bool:
    """Whether a folder holds an adapter and not a whole model; what its manifest does not list does not count."""
    folder = Path(place)
    listed = (read_manifest(folder) or {}).get("files")
    adapter, whole = ((folder / name).is_file() and (listed is None or name in listed) for name in (ADAPTER_CONFIG, "config.json"))
    return adapter and not whole


def adapter_base(place: str | os.PathLike) -> str:
    """Return the base model, a folder or a hub name, that an adapter's configuration names; raises UserError where it names none."""
    base = read_json(Path(place) / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not base:
        raise UserError(f"{Path(place) / ADAPTER_CONFIG} names no base_model_name_or_path: load the base and pass this as adapter")
    return base


def has_tokenizer(place: str | os.PathLike) -> bool:
    """Whether a folder holds a tokenizer."""
    return (Path(place) / "tokenizer_config.json").is_file()


def _model_class(place: str):
    """Return the class of language models that the checkpoint's configuration calls for."""
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError, StrictDataclassError):
        return AutoModelForCausalLM  # what is wrong shows when the weights are loaded
    if has_classifier_head(config):
        return AutoModelForSequenceClassification
    if has_tagger_head(config):
        return AutoModelForTokenClassification
    if (Path(place) / SENTENCE_ENCODER).is_file():
        return AutoModel
    if is_encoder(config):
        return AutoModelForMaskedLM
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def _load_weights(place: str, model_class, dtype: torch.dtype, model_arguments: dict, brings_head: bool) -> PreTrainedModel:
    if os.path.isdir(place):
        verify(Path(place))
        check_texts(Path(place))
    found, chosen = published(place), model_class is not None
    asked = {"ignore_mismatched_sizes": True, **model_arguments}  # refused below, by name
    if found is None:
        model_class = model_class or _model_class(place)
    else:
        model_class, asked = model_class or AutoModelForCausalLM, found.arguments | asked
    try:
        pooler = pooler_argument(place, stored_config(place)) if model_class is AutoModel else {}
        with without_load_report():
            model, report = model_class.from_pretrained(place, dtype=dtype, output_loading_info=True, **pooler, **asked)
    except OSError as error:
        raise UserError(f"model {place!r} could not be read: {_first_line(error)}") from None
    except (ValueError, StrictDataclassError) as error:
        raise UserError(f"model {place!r} could not be built: {_first_line(error)}") from None
    except (SafetensorError, UnpicklingError, EOFError) as error:
        what = torn_file(Path(place)) or f"the weights of {place} are damaged ({type(error).__name__})"
        raise UserError(f"{what}: restore the file or use another checkpoint") from None
    if found is not None:
        report = found.settled(model, report)
    if not model_arguments.get("ignore_mismatched_sizes"):
        refuse_mismatched(place, model, report["mismatched_keys"])
    _refuse_missing(place, model, sorted(report["missing_keys"]), sorted(report["unexpected_keys"]), chosen, brings_head)
    return model


def _refuse_missing(place: str, model: PreTrainedModel, missing: list[str], unexpected: list[str], chosen: bool, brings_head: bool) -> None:
    """Refuse tensors that were filled with random numbers, save a head that the checkpoint never claimed to have; say which the model does not use.

    An encoder's head of masked language modelling must have been `chosen` by the caller, who is to train it; one that an adapter brings is not told of.
    """
    saved_as = stored_config(place).architectures or []
    new_head = type(model).__name__ not in saved_as
    trunk = model.base_model_prefix + "."
    lost = [name for name in missing if not new_head or name.startswith(trunk) and not name.startswith(trunk + POOLER)]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise UserError(f"{place} lacks the tensor {lost[0]}{more}: the checkpoint is incomplete, restore it or use another")
    if missing and not chosen and masked_lm_class(model.config) is type(model):
        whose = f"a {saved_as[0]}" if saved_as else "an encoder"
        remedy = f"use one saved as {type(model).__name__}, or train its head with `seodang mlm`"
        raise UserError(f"{place} holds {whose} without a masked-language head ({missing[0]} would be made of random numbers): {remedy}")
    if missing and not brings_head:
        logger.warning("%s is new in %s and starts untrained", ", ".join(missing), type(model).__name__)
    if unexpected and not new_head:
        logger.warning("%s holds %d tensors that %s does not use, %s first", place, len(unexpected), type(model).__name__, unexpected[0])


def _warn_of_tokenizer(place: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say so where the tokenizer has ids that the model has no embedding for (texts that need them are refused where they come), or another chat template."""
    warn_of_other_template(Path(place), tokenizer.chat_template)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        logger.warning("%s: its tokenizer has %d ids, its model embeddings for %d: a text that needs the others is refused", place, len(tokenizer), rows)


def _load_adapter(model: PreTrainedModel, place: str) -> PreTrainedModel:
    from peft import PeftModel

    if os.path.isdir(place):
        verify(Path(place))
    silence_old_names()
    declare_as_beside(place, model.config)
    try:
        return PeftModel.from_pretrained(model, place)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"adapter {place!r} does not fit the model: {_first_line(error)}") from None


def merge_adapter(model: nn.Module, place: str | os.PathLike) -> PreTrainedModel:
    """Return a model with its adapter, of this place, in its weights, one without as it is; raises UserError for an adapter of a kind that cannot be there."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    kind = model.peft_config[model.active_adapter].peft_type.value
    try:
        return model.merge_and_unload()
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{place} is an adapter of the kind {kind}, which no weights can hold ({error}): take one that peft merges, as LoRA") from None


def _first_line(error: Exception) -> str:
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return lines[-1].strip() if isinstance(error, StrictDataclassError) else lines[0]  # whose first says which validator it was
