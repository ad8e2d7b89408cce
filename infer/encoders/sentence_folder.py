"""A folder as sentence-transformers writes it: an encoder, and beside it files that say how vectors are made of its hidden states."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import cached_file

from ...data.errors import UserError
from ..checkpoint.damage import read_json
from .readout import ACTIVATIONS, MODES, Dense, Normalise, Readout

MODULES, TRANSFORMER, SENTENCES, POOLING = "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "config.json"
OLD_MODES = {  # in files before version 5.3, in the order in which several stand behind one another
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens": "weightedmean", "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip
TYPES = "sentence_transformers.models."  # what every version reads


def is_sentence_folder(place: str | os.PathLike) -> bool:
    """Whether a checkpoint, a folder or a hub name, says how vectors are made of it as sentence-transformers does."""
    return found(place, MODULES) is not None


def trunk_folder(place: str | os.PathLike) -> str:
    """Where the encoder itself lies: the folder, or one in it."""
    path = str(_modules(place)[0][1])
    if path and not os.path.isdir(place):
        raise UserError(f"{place} has its encoder in a folder of its own, {path}: load it to a folder first, and name that")
    return os.path.join(place, path) if path else os.fspath(place)


def read_readout(place: str | os.PathLike) -> Readout:
    """How vectors are made, as the files of a sentence-transformers folder or hub name say.

    A module `Normalize` has no file and needs no folder. Raises UserError, by name, for a module or a setting that Seodang does not have.
    """
    (_, trunk), *others = _modules(place)
    settings = _config(place, trunk, TRANSFORMER)
    words = _config(place, "", SENTENCES)
    pooling, steps = None, []
    for kind, path in others:
        if kind == "Pooling" and pooling is None:
            pooling = _config(place, path, POOLING)
        elif kind == "Normalize" and pooling is not None:
            steps.append(Normalise())
        elif kind == "Dense" and pooling is not None:
            steps.append(_dense(place, path))
        elif kind != "Dropout":  # of training alone
            raise UserError(f"{place}: {MODULES} names a module {kind!r} at {path or 'its place'}, which Seodang does not have: use another model")
    if pooling is None:
        raise UserError(f"{place}: {MODULES} names no Pooling, so no vector of a whole text comes of it: use another model")
    return Readout(
        modes=_modes(place, pooling),
        steps=tuple(steps),
        max_length=settings.get("max_seq_length"),
        lower=bool(settings.get("do_lower_case")),
        prompts=words.get("prompts") or {},
        default_prompt=words.get("default_prompt_name"),
        counts_prompt=pooling.get("include_prompt", True),
    )


def write_readout(folder: Path, readout: Readout, hidden: int) -> None:
    """Write into an encoder's folder how vectors are made of its states, as sentence-transformers 2 and newer reads it; no Dense layer is written."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *(("Normalize", f"{2 + place}_Normalize") for place in range(len(readout.steps)))]
    _write(folder / MODULES, [{"idx": place, "name": str(place), "path": path, "type": TYPES + kind} for place, (kind, path) in enumerate(kinds)])
    _write(folder / TRANSFORMER, {"max_seq_length": readout.max_length, "do_lower_case": readout.lower})
    _write(folder / "1_Pooling" / POOLING, {"word_embedding_dimension": hidden, **{old: mode in readout.modes for old, mode in OLD_MODES.items()}})
    for _, path in kinds[2:]:
        (folder / path).mkdir(exist_ok=True)
        _write(folder / path / POOLING, {})  # nothing to say; a manifest lists files, and an empty folder would be lost on the way
    words = {"prompts": dict(readout.prompts), "default_prompt_name": readout.default_prompt, "similarity_fn_name": "cosine"}
    _write(folder / SENTENCES, {"__version__": {}, **words})


def found(place: str | os.PathLike, name: str) -> Path | None:
    """A file of a folder, or of a hub name that the cache has; None without."""
    if os.path.isdir(place):
        path = Path(place) / name
        return path if path.is_file() else None
    if os.path.isfile(place):  # a GGUF file
        return None
    path = cached_file(os.fspath(place), name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
    return None if path is None else Path(path)


def _modules(place: str | os.PathLike) -> list[tuple[str, str]]:
    """The modules by kind and path, the encoder first. Raises UserError for a list that does not begin by one."""
    path = found(place, MODULES)
    listed: Any = json.loads(path.read_text(encoding="utf-8")) if path is not None else None
    try:
        modules = [(each["type"].rpartition(".")[2], each["path"]) for each in listed]
    except (TypeError, KeyError, AttributeError):
        modules = []
    if not modules or modules[0][0] != "Transformer":
        first = modules[0][0] if modules else "nothing"
        raise UserError(f"{place}: {MODULES} begins by {first}, where Seodang reads a Transformer: use another model")
    return modules


def _config(place: str | os.PathLike, folder: str, name: str) -> dict[str, Any]:
    path = found(place, os.path.join(folder, name))
    return read_json(path) if path is not None else {}


def _modes(place: str | os.PathLike, pooling: Mapping[str, Any]) -> tuple[str, ...]:
    """The modes of a pooling's file, old or new; the mean where none is said, as sentence-transformers has it."""
    told = pooling.get("pooling_mode") or tuple(mode for old, mode in OLD_MODES.items() if pooling.get(old)) or "mean"
    modes = (told,) if isinstance(told, str) else tuple(told)
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise UserError(f"{place}: its Pooling has a mode {unknown[0]!r}, which Seodang does not have: use another model")
    return modes


def _dense(place: str | os.PathLike, folder: str) -> Dense:
    """A Dense module. Raises UserError for what one of sentence-transformers' may have besides a layer and its activation."""
    config, weights = _config(place, folder, POOLING), found(place, os.path.join(folder, "model.safetensors"))
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh").rpartition(".")[2]
    name = config.get("module_input_name", "sentence_embedding")
    if activation not in ACTIVATIONS or config.get("use_residual") or name != "sentence_embedding" or config.get("module_output_name", name) not in (None, name):
        raise UserError(f"{place}: its module {folder} is a Dense with {activation} and settings that Seodang does not have: use another model")
    if weights is not None:
        with safe_open(weights, "pt") as file:
            tensors = {each: file.get_tensor(each) for each in file.keys()}  # noqa: SIM118
    elif (old := found(place, os.path.join(folder, "pytorch_model.bin"))) is not None:
        tensors = torch.load(old, map_location="cpu", weights_only=True)
    else:
        raise UserError(f"{place}: its module {folder} has no weights (model.safetensors): restore them, or use another model")
    return Dense(tensors["linear.weight"], tensors.get("linear.bias"), activation)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
