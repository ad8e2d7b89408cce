"""What is wrong with a checkpoint's files, in one line: torn, absent, or of other shapes than its configuration says."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from ...data.errors import UserError

TEXTS = ("config.json", "generation_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json", "adapter_config.json")
Mismatch = tuple[str, Sequence[int], Sequence[int]]  # a tensor's name, its shape in the file, and by the configuration


def read_json(path: Path) -> dict[str, Any]:
    """Return what a file of a checkpoint holds; raises UserError for one that is torn or no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged, no JSON can be read from it ({error}): restore the file or use another checkpoint") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object: restore the file or use another checkpoint")
    return content


def check_texts(folder: Path) -> None:
    """Raise UserError for a folder's configuration or index that is torn, and for an index that names a file which is not there."""
    for name in TEXTS:
        if (folder / name).is_file():
            content = read_json(folder / name)
            absent = sorted(part for part in set(content.get("weight_map", {}).values()) if not (folder / part).is_file())
            if absent:
                more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
                raise UserError(f"{folder / absent[0]}{more} is missing, though {name} lists it: restore the file or use another checkpoint")


def torn_file(folder: Path) -> str | None:
    """Name the first file of weights that is torn, and say how; None where all can be read."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{path} is damaged ({looks_like(path) or error})"
    return None


def looks_like(path: Path) -> str | None:
    """Say what a file is that should hold weights, where its beginning tells."""
    with path.open("rb") as file:
        begin = file.read(64)
    if not begin:
        return "it is empty"
    if begin.startswith(b"version https://git-lfs"):
        return "it is a pointer of git-lfs, the weights were not fetched: run git lfs pull"
    return "it is a web page" if begin.lstrip().lower().startswith((b"<!doctype", b"<html")) else None


def refuse_mismatched(place: str, model: PreTrainedModel, mismatched: Collection[Mismatch]) -> None:
    """Raise UserError for tensors of other shapes than the configuration's: the first by name, both shapes, and which value would fit it."""
    if not mismatched:
        return
    name, own, wanted = min(mismatched, key=lambda each: each[0])
    more = f", and {len(mismatched) - 1} more differ" if len(mismatched) > 1 else ""
    if fit := fitting_value(model, mismatched):
        remedy = f'set "{fit[0]}": {fit[1]} in config.json, or restore the file'
    elif other := other_vocabulary(model, {each[0] for each in mismatched}):
        remedy = f"resize {other} as well, which fits (model.resize_token_embeddings does both), or restore the file"
    else:
        remedy = "restore the file or its config.json"
    raise UserError(f"{place}: the tensor {name} has the shape {list(own)} in its file, but {list(wanted)} by config.json{more}: {remedy}")


def fitting_value(model: PreTrainedModel, mismatched: Collection[Mismatch]) -> tuple[str, int] | None:
    """Return the value of the configuration, and what it would have to be, with which all tensors are of their file's shape; None where there is none."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()} | {name: torch.Size(own) for name, own, _ in mismatched}
    _, own, wanted = min(mismatched, key=lambda each: each[0])
    there, here = next(((a, b) for a, b in zip(own, wanted) if a != b), (1, 1))
    values = {name: value for name, value in model.config.to_dict().items() if type(value) is int and value > 0 and value * there % here == 0}
    for name in sorted(values, key=lambda name: (values[name] != here, name != "vocab_size")):
        config = copy.deepcopy(model.config)
        try:
            setattr(config, name, values[name] * there // here)
            with torch.device("meta"):
                tried = type(model)(config).state_dict()
        except Exception:  # the configuration's own checks, or a layer that cannot be made of it
            continue
        if {name: tensor.shape for name, tensor in tried.items()} == shapes:
            return name, getattr(config, name)
    return None


def other_vocabulary(model: PreTrainedModel, mismatched: set[str]) -> str | None:
    """Name the embedding or head whose shape is the configuration's, where the other's is not; None where both are one, or neither is, or both are."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = {f"{name}.weight" for name, module in model.named_modules() if any(module is end for end in ends)}
    return min(names - mismatched, default=None) if names & mismatched else None
