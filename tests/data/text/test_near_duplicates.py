"""Near-duplicates by datasketch's index, beside a comparison of every pair."""

import random
import sys

import pytest

from seodang.data.errors import UserError
from seodang.data.text.near_duplicates import NearDuplicates, alike, shingles


def test_shingles_are_runs_of_five_characters_of_the_words():
    assert shingles("To be,  OR!") == {"to be", "o be ", " be o", "be or"}
    assert shingles("나무!") == {"나무"} and shingles("?!") == {"?!"}
    assert alike(shingles("abcdef"), shingles("abcdefg")) == 2 / 3


def test_what_is_nearly_the_same_is_found_as_by_comparing_every_pair():
    pytest.importorskip("datasketch")
    draw, words = random.Random(0), "the city of river old market opens seven nine never garden school north east winter".split()
    texts = []
    for _ in range(80):
        text = draw.choices(words, k=14)
        texts += [" ".join(text), " ".join(draw.choice(words) if draw.random() < 0.08 else word for word in text)]
    known, found, expected = NearDuplicates(0.7), [], []
    for place, text in enumerate(texts):
        share, name = known.nearest(text)
        found.append(name if share >= 0.7 else None)
        best = max((alike(shingles(text), shingles(other)) for other in texts[:place]), default=0.0)
        expected.append(best >= 0.7)
        if share >= 0.7:
            assert share == alike(shingles(text), shingles(texts[int(name)])) == best
        known.add(str(place), text)
    assert 40 < sum(expected) < 80
    missed = sum(wanted and name is None for name, wanted in zip(found, expected, strict=True))
    assert missed <= 2 and not any(name and not wanted for name, wanted in zip(found, expected, strict=True))  # an index may miss, and finds nothing that is not


def test_without_datasketch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match=r"pip install 'seodang\[synthesise\]', or do without by --near_duplicates 0"):
        NearDuplicates(0.7)
