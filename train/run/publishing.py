"""Whole models put in their place at once."""

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...infer.checkpoint.manifest import fingerprint, verify
from .checkpoints import publish_into, room_for, start_aside


def copy_model(source: Path, target: Path) -> None:
    """Copy a sealed checkpoint into a folder that may hold other things; its manifest comes last."""
    made = verify(source)
    with room_for(sum(each["bytes"] for each in made["files"].values()), target):
        written = start_aside(target) / "final"
        for name in made["files"]:
            (written / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, written / name)
        publish_into(written, target, **{name: value for name, value in made.items() if name not in ("format", "files")})


def save_merged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path, **facts: Any) -> None:
    """Save a model with its adapter merged into its weights as a whole checkpoint; the model is changed."""
    generation = model.generation_config
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    merged.generation_config = generation
    with room_for(sum(p.numel() * p.element_size() for p in merged.parameters()), target):
        written = start_aside(target) / "final"
        merged.save_pretrained(written)
        tokenizer.save_pretrained(written)
        publish_into(written, target, paradigm="causal", template=fingerprint(tokenizer.chat_template), **facts)
