"""docs/serving-security.md names a test for each promise, and each test that it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "serving-security.md").read_text(encoding="utf-8")


def test_each_promise_names_tests_that_are_there():
    promised, _, rest = PAGE.partition("\n## Not promised\n")
    promises = re.split(r"\n- ", promised)[1:]
    assert len(promises) > 15 and rest
    for promise in promises:
        named = re.findall(r"`(tests/\S+\.py)::(\w+)`", promise)
        assert named, promise
        for file, test in named:
            assert (ROOT / file).is_file() and re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), f"{file}::{test}"
