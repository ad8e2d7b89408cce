"""Where Seodang keeps what it has made once and can make again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/seodang, or ~/.cache/seodang: converted models, compiled libraries; raises RuntimeError where there is no home."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seodang"
