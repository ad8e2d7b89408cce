"""The runner for a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from ...data.errors import UserError
from ...data.versions import untried, versions_named
from .architecture import attention_is_replaceable, carries_state, refuse_both_ways_under_window, refuse_unsupported, transformers_model
from .by_length import BY_LENGTH, hangs_on_length
from .contract import Runner
from .direct import DirectRunner
from .direct_encoder_decoder import DirectEncoderDecoder
from .encoder_decoder import EncoderDecoderRunner
from .encoder_decoder_layers import supports_direct_encoder_decoder
from .layers import supports_direct
from .model_lock import locked
from .native_runner import NativeRunner, failure, kept_from, speaks_natively
from .padded import PaddedRunner
from .paradigm import is_bidirectional, is_encoder
from .probe import agree, own_logits, probe, probe_ids, probe_with_sources, tolerance
from .ragged import RaggedRunner
from .recomputing import RecomputingRunner
from .recurrent import RecurrentRunner
from .stateful import StatefulRunner

# by whether the direct and the native runner were to be had, and whether the model attends in both directions
_CHOSEN: WeakKeyDictionary[PreTrainedModel, dict[tuple[bool, bool, bool], type[Runner]]] = WeakKeyDictionary()
KEPT_IN = (None, "auto", "int8")  # what keys and values may be kept in: the model's own dtype, or 8 bits
_CHOSEN_CACHE = "kv_cache_dtype"  # the attribute of a model that says what was chosen for it


def set_kv_cache_dtype(model: nn.Module, kv_cache_dtype: str | None) -> None:
    """Have whatever speaks or scores with a model from now on keep keys and values in 8 bits ("int8"), or in the model's own dtype ("auto" or None).

    Half of bfloat16's memory, a quarter of float32's. It is for models that run natively on a CPU: `open_runner`, and so `generate`, `score` and
    `LiveEngine`, refuse any other. Raises UserError for another word, and for an encoder.
    """
    check_kv_cache_dtype(kv_cache_dtype)
    inner = transformers_model(model)
    if kv_cache_dtype == "int8" and is_encoder(inner.config):
        raise UserError(f"kv_cache_dtype=int8 is for models that speak, and {inner.config.model_type} is an encoder, which keeps nothing: leave it out")
    setattr(inner, _CHOSEN_CACHE, None if kv_cache_dtype == "auto" else kv_cache_dtype)


def check_kv_cache_dtype(kv_cache_dtype: str | None) -> None:
    """Raise UserError for a word that is none of those that say how a cache is kept."""
    if kv_cache_dtype not in KEPT_IN:
        raise UserError(f"kv_cache_dtype={kv_cache_dtype!r} is unknown: choose auto or int8")


def kv_cache_dtype_of(model: nn.Module) -> str | None:
    """Return "int8" where a model's keys and values are to be kept in 8 bits, else None."""
    return getattr(model, _CHOSEN_CACHE, None)


@versions_named()
def open_runner(model: nn.Module) -> Runner:
    """Return the fastest runner that gives the model's own logits, by a probe of a few tokens when a model is first opened.

    Native on CPUs for those of them that `native` covers, direct for the families of `layers`, probed under versions of the libraries that are not known to work, ragged where all memory is attention that lets itself be replaced, padded where it is attention of
    another kind, one slot at a time where layers carry a state, and without a memory where none fits. Encoder-decoders have two of
    their own (`open_encoder_decoder`), whose slots are opened on their source, and those whose decoder carries a state a third. Keys and values are kept
    as `set_kv_cache_dtype` has chosen for the model. Raises UserError for an architecture that none of them fits, and where a cache in 8 bits is
    wanted of a runner that is not native.
    """
    inner = transformers_model(model)
    runner, kv_cache_dtype = open_fastest(inner), kv_cache_dtype_of(inner)
    return runner if kv_cache_dtype is None else over_8_bits(runner, kv_cache_dtype)


def over_8_bits(runner: Runner, kv_cache_dtype: str) -> NativeRunner:
    """Return a runner of the same kind whose cache is in 8 bits; raises UserError, with what keeps it from that, for one that is not native."""
    if (reason := kept_from(runner)) is None:
        with locked(runner.model):
            reason = failure(runner.model, kv_cache_dtype)
    if reason is not None:
        raise UserError(f"kv_cache_dtype={kv_cache_dtype} needs the native step, which this model does without here ({reason}): leave it out")
    return type(runner)(runner.model, kv_cache_dtype)


def open_fastest(inner: PreTrainedModel) -> Runner:
    """Return the fastest runner of a model, over a cache in its own dtype; raises UserError where none fits."""
    if inner.config.is_encoder_decoder:
        return RecurrentRunner(inner) if inner._is_stateful else open_encoder_decoder(inner)
    with locked(inner):  # as it is between passes
        direct, both_ways = supports_direct(inner), is_bidirectional(inner.config)
        native = direct and speaks_natively(inner)
        chosen, key = _CHOSEN.setdefault(inner, {}), (direct, native, both_ways)
        if key not in chosen:
            known = direct and not both_ways and not untried()  # the tests have told with these versions what a probe of three passes would tell again
            kinds = list(candidates(inner, direct, native))
            chosen[key] = kinds[0] if known else choose(inner, kinds)
        return chosen[key](inner)


def open_encoder_decoder(model: PreTrainedModel) -> EncoderDecoderRunner:
    """Return the direct runner for the families of `encoder_decoder_layers`, probed as decoders are, else the one that runs the model as it is."""
    with locked(model):
        direct = supports_direct_encoder_decoder(model)
        chosen, key = _CHOSEN.setdefault(model, {}), (direct, False, False)
        if key not in chosen:
            chosen[key] = DirectEncoderDecoder if direct and (not untried() or answers_alike(model)) else EncoderDecoderRunner
        return chosen[key](model)


def answers_alike(model: PreTrainedModel) -> bool:
    """Whether the direct runner gives the model's own logits; says in a warning what keeps it from them."""
    device = model.get_input_embeddings().weight.device
    try:
        with torch.autocast(device.type, enabled=False):
            probe_with_sources(DirectEncoderDecoder(model))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a library that has moved raises
        warnings.warn(f"{model.config.model_type} runs slower than it may ({reason(error)}); {untried()}", stacklevel=3)
        return False
    return True


def choose(model: PreTrainedModel, candidates: Sequence[type[Runner]]) -> type[Runner]:
    """Return the first of the candidates that gives the model's own logits; raises UserError, with what kept each from it, where none does."""
    refuse_unsupported(model)
    if is_bidirectional(model.config):
        refuse_both_ways_under_window(model.config.get_text_config())
    kind = model.config.get_text_config().model_type
    device = model.get_input_embeddings().weight.device
    if device.type == "meta":  # other weights may be there, where accelerate keeps them elsewhere until they are needed
        raise UserError(f"the embeddings of {kind} are on the meta device, which holds no values: load them, or keep them out of what is offloaded")
    with torch.autocast(device.type, enabled=False):
        try:
            ids = probe_ids(model.config.get_text_config().vocab_size)
            want = own_logits(model, ids)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever an architecture raises that wants more than ids
            how = "use a causal language model of text, in a dtype and on a device that it runs in"
            raise UserError(f"{kind} makes no logits of token ids alone ({reason(error)}): {how}") from None
        kept_from = []
        for candidate in candidates:
            try:
                probe(candidate(model), ids, want)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # whatever an architecture raises that this runner does not fit
                kept_from.append(f"{candidate.__name__}: {reason(error)}")
                continue
            if issubclass(candidate, RecomputingRunner):
                warnings.warn(f"{kind} has no memory that Seodang can use: each token costs a pass over its whole text", stacklevel=3)
            if kept_from and (versions := untried()):  # a library that has moved may have cost the faster one
                warnings.warn(f"{kind} runs through {candidate.__name__}, slower than it may ({'; '.join(kept_from)}); {versions}", stacklevel=3)
            return candidate
        if not is_bidirectional(model.config) and not agree(own_logits(model, [own[:-2] for own in ids]).flatten(0, 1), want[:, :-2].flatten(0, 1), tolerance(model, want)):
            remedy = "use a causal model (in some, is_decoder in its config.json)"
            raise UserError(f"{kind} attends in both directions and cannot continue a text: {remedy}")
    raise UserError(f"{kind} does not fit any runner ({'; '.join(kept_from)}): use another architecture")


def candidates(model: PreTrainedModel, direct: bool, native: bool) -> Iterator[type[Runner]]:
    """Yield the runners that may fit, the fastest first; where layers carry a state, none that cuts or pads it."""
    kinds: list[type[Runner]] = [NativeRunner] * native + [DirectRunner] * direct
    if not carries_state(model):
        kinds += [RaggedRunner, PaddedRunner] if attention_is_replaceable(model) else [PaddedRunner]
    for kind in [*kinds, StatefulRunner, RecomputingRunner]:
        yield BY_LENGTH[kind] if hangs_on_length(model.config.get_text_config()) else kind


def reason(error: Exception) -> str:
    """What an error says, in a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
