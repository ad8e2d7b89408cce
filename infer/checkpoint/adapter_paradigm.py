"""What an adapter that speaks by diffusion says of itself: its folder holds no config.json, and that of its base knows nothing of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

from transformers import PreTrainedConfig

from ..runners.paradigm import KEY, Diffusion, declare, diffusion_of
from .damage import read_json

FILE = "diffusion.json"


def write_beside(folder: str | Path, diffusion: Diffusion) -> None:
    """Write it into an adapter's folder."""
    (Path(folder) / FILE).write_text(json.dumps(asdict(diffusion), indent=2) + "\n", encoding="utf-8")


def declare_as_beside(folder: str | Path, config: PreTrainedConfig) -> None:
    """Let the config of the base say what the adapter's folder says, where it says anything. Raises UserError for what it cannot mean."""
    path = Path(folder) / FILE
    if path.is_file():
        declare(config, diffusion_of(SimpleNamespace(**{KEY: read_json(path)})))
