"""docs/serving-security.md names a test for each promise, and each test that it names is there."""

import re

from named_tests import ROOT, absent, named_in

PAGE = (ROOT / "docs" / "serving-security.md").read_text(encoding="utf-8")


def test_each_promise_names_tests_that_are_there():
    promised, _, rest = PAGE.partition("\n## Not promised\n")
    promises = re.split(r"\n- ", promised)[1:]
    assert len(promises) > 15 and rest
    for promise in promises:
        assert named_in(promise) and not absent(promise), promise
