"""The head that an adapter's folder brings with it, a classifier's or a tagger's: what its labels are called, for which peft's own configuration has no words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedConfig, PreTrainedTokenizerBase

from .damage import read_json

HEAD = "classifier_config.json"  # beside an adapter
HEADS = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}  # by what peft calls what an adapter is for
WEIGHTS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")
BESIDE = ("label_all_subwords",)  # what a configuration has been given that transformers knows nothing of


@dataclass(frozen=True)
class AdapterHead:
    """The class of models with such a head, what their configuration has to be told of it, and what it is told beside that."""

    model_class: Any
    arguments: dict[str, Any]
    beside: dict[str, Any]

    def declare(self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the config of the base, which knows nothing of the head, say what the head needs."""
        vars(config).update(self.beside)
        config.pad_token_id = tokenizer.pad_token_id  # behind which a head looks for the last token; the base has another


def head_of(adapter: str) -> AdapterHead | None:
    """The head that an adapter's folder holds; None without one."""
    path = Path(adapter) / "adapter_model.safetensors"
    task = read_json(Path(adapter) / "adapter_config.json").get("task_type") if path.is_file() else None
    if task not in HEADS:
        return None
    if (Path(adapter) / HEAD).is_file():
        told = read_json(Path(adapter) / HEAD)
        return AdapterHead(HEADS[task], head_from(told), {name: told[name] for name in BESIDE if name in told})
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        heads = [name for end in WEIGHTS for name in names if name.endswith(end)]
        return AdapterHead(HEADS[task], {"num_labels": file.get_slice(heads[0]).get_shape()[0]}, {}) if heads else None


def head_to(config: PreTrainedConfig) -> dict:
    """What a classifier's configuration says of its labels, as JSON holds it."""
    beside = {name: getattr(config, name) for name in BESIDE if hasattr(config, name)}
    return {"problem_type": config.problem_type, "id2label": config.id2label, **_pooling(getattr(config, "classifier_pooling", None)), **beside}


def head_from(told: dict) -> dict:
    """The same as a configuration takes it."""
    names = {int(place): name for place, name in told["id2label"].items()}
    return {
        "problem_type": told["problem_type"], "id2label": names, "label2id": {name: place for place, name in names.items()},
        **_pooling(told.get("classifier_pooling")),
    }  # fmt: skip


def _pooling(told: str | None) -> dict:
    return {} if told is None else {"classifier_pooling": told}
