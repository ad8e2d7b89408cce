"""Whether a trunk is loaded with a pooler: only where the checkpoint has one, which a masked language model's has not."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import MODEL_MAPPING, PreTrainedConfig

from .damage import read_json


def pooler_argument(place: str, config: PreTrainedConfig) -> dict[str, Any]:
    """What `AutoModel.from_pretrained` has to be told of a checkpoint whose files hold no pooler, where its architecture can do without."""
    trunk = MODEL_MAPPING.get(type(config), None)
    takes = trunk is not None and "add_pooling_layer" in inspect.signature(trunk.__init__).parameters
    return {"add_pooling_layer": False} if takes and not may_hold_pooler(Path(place)) else {}


def may_hold_pooler(folder: Path) -> bool:
    """Whether a checkpoint's weights have a pooler among them, or cannot be looked at."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        names = read_json(index).get("weight_map", {})
    elif whole.is_file():
        try:
            with safe_open(whole, "pt") as file:
                names = file.keys()
        except SafetensorError:  # which is told when the weights are loaded
            return True
    else:
        return True
    return any("pooler." in name for name in names)
