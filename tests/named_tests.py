"""The tests that a page names, as `tests/.../test_x.py::test_y`."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def named_in(text):
    """The tests that a text names, each as its file and its function."""
    return re.findall(r"`(tests/\S+\.py)::(\w+)`", text)


def absent(text):
    """Those of the tests that a text names which are not there."""
    return [
        f"{file}::{test}"
        for file, test in named_in(text)
        if not (ROOT / file).is_file() or not re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
