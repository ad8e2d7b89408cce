"""What a checkpoint says of its own decoding, its generation_config: read, and brought together with what the caller says."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

from ...data.errors import UserError
from ..checkpoint.default_model import is_converted, shipped_gguf
from ..checkpoint.gguf_file import is_gguf
from ..checkpoint.load import adapter_base, is_adapter, resolve
from ..checkpoint.published_diffusion import stored_config
from ..diffusion.orders import ORIGIN
from ..filters.registry import FILTERS
from ..filters.spec import nothing
from ..requests import options as declared
from ..requests.options import vocabulary
from ..runners.architecture import transformers_model
from ..runners.paradigm import Diffusion, diffusion_of
from ..strategies.registry import OWNED, choose
from .compat import translated
from .params import OPTIONS, WARPING, SamplingParams

# fields of a generation_config about caches, outputs, compilation, memory and token ids; the ids that end an answer are the model's own, and
# scores that are nan, which remove_invalid_values hides, end their prompt here
CONFIG_PASSED_OVER = (
    "use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory", "output_attentions",
    "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate", "return_legacy_cache", "compile_config",
    "disable_compile", "continuous_batching_config", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "is_assistant",
    "transformers_version", "_from_model_config", "remove_invalid_values",
)  # fmt: skip
# what a field of a generation_config must be to ask for nothing
CONFIG_NEUTRAL = {
    "use_mtp": (False,), "watermarking_config": (), "constraints": ([],), "forced_decoder_ids": (),
    "assistant_lookbehind": (10,), "target_lookbehind": (10,), "assistant_ensemble_weight": (),
    "speculation_type": (), "trust_remote_code": (False,),
}  # fmt: skip
LOOKING_BACK = {name for spec in FILTERS.values() if spec.looks_back is not nothing for name in declared.options_of(spec.options)}  # settings that diffusion has no place for
CONFIG = vocabulary(SamplingParams, declared.CONFIG)
WITHOUT = "params=SamplingParams(...), or --checkpoint_settings false, does without them"
OLD_DEFAULT = 20  # the max_length that old versions wrote into config.json unasked


def checkpoint_params(model: nn.Module, **changes: Any) -> SamplingParams:
    """Return the settings that hold where the caller gives none: those of the model's own generation_config; greedy where that has none.

    It is what the checkpoint's files say, without the defaults of transformers' class. `changes` are the caller's, by our names, and win.
    Raises UserError for a field that we cannot honour.
    """
    config = own_config(model)
    return SamplingParams(**changes) if config is None else params_beside(config, changes, diffusion_of(transformers_model(model).config))


def own_config(model: nn.Module) -> GenerationConfig | None:
    """Return the generation_config that a model was loaded with, None where it has none."""
    return getattr(transformers_model(model), "generation_config", None)


def config_in(path: str | os.PathLike) -> GenerationConfig | None:
    """Return the generation_config of a checkpoint that is not loaded, as `own_config` would; None where it has none."""
    place = model_in(path)
    if is_gguf(place):
        return GenerationConfig.from_model_config(stored_config(place))
    for how in ({}, {"config_file_name": "config.json", "_from_model_config": True}):
        with suppress(OSError, ValueError):  # one that contradicts itself is told when the model is loaded
            return GenerationConfig.from_pretrained(place, **how)
    return None


def diffusion_in(path: str | os.PathLike) -> Diffusion | None:
    """Return what a checkpoint that is not loaded says of itself, where it is a diffusion model; raises UserError for what it cannot mean."""
    config = known_config(path)
    return None if config is None else diffusion_of(config)


def known_config(path: str | os.PathLike) -> PreTrainedConfig | None:
    """Return the configuration of a checkpoint that is not loaded, an adapter's base; None where there is none of ours, which is told when it is loaded."""
    try:
        return stored_config(model_in(path))
    except UserError:
        raise
    except (OSError, ValueError, StrictDataclassError):
        return None


def model_in(path: str | os.PathLike) -> str:
    """The folder, the GGUF file, or the name on the hub, of a whole model; of an adapter its base's; of the default model before it was converted its file."""
    if os.fspath(path) == "default" and not is_converted() and (shipped := shipped_gguf()) is not None:
        return str(shipped)
    place = resolve(path)
    return resolve(adapter_base(place)) if is_adapter(place) else place


def params_beside(config: GenerationConfig, changes: Mapping[str, Any], diffusion: Diffusion | None = None) -> SamplingParams:
    """Return a checkpoint's settings, of a diffusion model or another, with the caller's changes.

    Raises UserError for a field that we cannot honour, with the remedy.
    """
    choose(SamplingParams(**changes), diffusion)  # a mistake in these is the caller's, and told as one
    try:
        return beside(config, changes, diffusion)
    except UserError as error:
        raise UserError(f"the checkpoint's own settings do not hold here: {error} ({WITHOUT})") from None


@contextmanager
def blamed_on(params: SamplingParams) -> Iterator[None]:
    """Let a UserError that names one of a checkpoint's settings say whose it is."""
    try:
        yield
    except UserError as error:
        if any(f"{name}=" in str(error) for name in params.given):
            raise UserError(f"{error}. It is a setting of the checkpoint's ({WITHOUT})") from None
        raise


def from_generation_config(config: GenerationConfig | Mapping[str, Any], **changes: Any) -> SamplingParams:
    """Return the settings of a checkpoint's own `generation_config`; `changes` are the caller's, by our names, and win.

    What is without effect in transformers is left out: temperature, top_k and the like where it does not sample, what is for another
    strategy than the one that runs, max_length beside max_new_tokens. So is what the changes rule out: sampling under a strategy that does
    none, and a length that their own contradicts. Fields of `CONFIG_PASSED_OVER` are not about what is said. A field of a checkpoint's that
    transformers does not know either (Qwen's chat_format) is warned of. Raises UserError for every other field that we cannot honour.
    """
    return beside(config, changes)


def beside(config: GenerationConfig | Mapping[str, Any], changes: Mapping[str, Any], diffusion: Diffusion | None = None) -> SamplingParams:
    """As `from_generation_config`, of a diffusion model or another."""
    written = dict(config) if isinstance(config, Mapping) else fields_known(config.to_dict())
    written = {name: value for name, value in written.items() if value is not None}
    if written.get("_from_model_config") and written.get("max_length") == OLD_DEFAULT:
        del written["max_length"]
    asked = {name: value for name, value in written.items() if name not in CONFIG or OPTIONS[CONFIG[name]].off != value}
    known = translated(asked, CONFIG, CONFIG_PASSED_OVER, CONFIG_NEUTRAL, "generation_config")
    if changes.get("target_lang"):  # which begins the answer, in the place of the checkpoint's
        known.pop("forced_bos_token_id", None)
    known = of_its_length(of_its_schedule(of_its_strategy(sampling_or_not(known, changes), changes, diffusion), changes), changes)
    return SamplingParams(**{**known, **changes})


def fields_known(written: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out, as transformers and vLLM do, the fields that these do not know; a warning names them, for one may be misspelt."""
    foreign = [name for name in written if not (name in CONFIG or name in CONFIG_NEUTRAL or name in CONFIG_PASSED_OVER)]
    if foreign:
        warnings.warn(f"the generation_config has {', '.join(foreign)}, passed over: transformers has nothing of that name", stacklevel=2)
    return {name: value for name, value in written.items() if name not in foreign}


def sampling_or_not(known: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what samples where nothing does, and `do_sample` where the caller's own temperature, top_k or the like says it."""
    by_changes = [name for name in WARPING if name in changes]
    samples = known.get("do_sample") if changes.get("do_sample") is None else changes["do_sample"]
    greedy = any(changes[name] == OPTIONS[name].greedy for name in by_changes)
    if greedy or not samples and not any(changes[name] for name in by_changes):
        known = without_sampling(known)
    if by_changes and "do_sample" not in changes:
        known = {name: value for name, value in known.items() if name != "do_sample"}
    return known


def without_sampling(known: dict[str, Any]) -> dict[str, Any]:
    """Leave out what samples, but for a setting that another one claims for itself (contrastive search's top_k)."""
    claimed = {each.claims for name, each in OPTIONS.items() if name in known and each.claims}
    return {name: value for name, value in known.items() if name not in WARPING or name in claimed}


def of_its_strategy(known: dict[str, Any], changes: Mapping[str, Any], diffusion: Diffusion | None) -> dict[str, Any]:
    """Leave out what is for other strategies than the one that the changes mean; where they mean none, than the one that all mean together.

    A diffusion model's config may be that of the model that it was made of: what looks back from a token has no place in it.
    """
    spec = choose(SamplingParams(**changes), diffusion)
    if spec.name == "sampling" and changes.get("strategy") is None:
        spec = choose(SamplingParams(**{**known, **changes}))
    elif not spec.samples:
        known = {name: value for name, value in without_sampling(known).items() if name not in (*WARPING, "do_sample")}
    if not spec.in_order(SamplingParams(**changes)):
        known = {name: value for name, value in known.items() if name not in LOOKING_BACK}
    return {name: value for name, value in known.items() if name not in OWNED or name in spec.honours}


def of_its_schedule(known: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of diffusion the number of steps where a rule of the caller's says how many tokens a pass makes certain, and an order that goes with none."""
    if changes.get("confidence_threshold") is None and changes.get("entropy_bound") is None:
        return known
    return {name: value for name, value in known.items() if name != "steps" and (name, value) != ("alg", ORIGIN)}


def of_its_length(known: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the lengths that others overrule: a number of new tokens those of the whole text, the caller's, or a template's, all that contradict it."""
    most = changes.get("max_new_tokens")
    ruled_out = set() if changes.get("template") is None else {"max_length", "max_new_tokens"}
    if most is not None or changes.get("max_length") is None and "max_new_tokens" in known:
        ruled_out.add("max_length")
    if changes.get("max_length") is not None and most is None:
        ruled_out.add("max_new_tokens")
    if most is not None:
        ruled_out.update(name for name in ("min_length", "min_new_tokens") if known.get(name, 0) > most)
    return {name: value for name, value in known.items() if name not in ruled_out}


def said(params: SamplingParams, changes: Mapping[str, Any]) -> str:
    """What a person is told of the settings that the caller has not given: "temperature 0.6, top_p 0.9"; nothing where there are none."""
    own = {name: value for name, value in params.given.items() if name not in changes}
    if any(name in own for name in WARPING):
        own.pop("do_sample", None)
    return ", ".join(f"{name} {value}" for name, value in own.items())
