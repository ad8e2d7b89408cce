"""The examples of docs/contributing run as they stand, a page's blocks one after the other, and the documents beside them say what is there."""

import copy
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from seodang.data.formats import SHAPES
from seodang.infer.checkpoint import load as loading
from seodang.infer.strategies.registry import STRATEGIES

ROOT = Path(__file__).parents[1]
TABLES = {"shapes": SHAPES, "strategies": STRATEGIES}
PAGES = sorted((ROOT / "docs" / "contributing").glob("*.md"))


@pytest.fixture
def tiny_default(tiny, tiny_tokenizer, tmp_path, monkeypatch):
    """A tiny model that stands in for the default one; what a page registers is forgotten."""
    tiny("llama").save_pretrained(tmp_path / "default")
    tiny_tokenizer.save_pretrained(tmp_path / "default")
    monkeypatch.setattr(loading, "default_model", lambda: tmp_path / "default")
    monkeypatch.chdir(tmp_path)
    before = {name: copy.copy(table) for name, table in TABLES.items()}
    yield
    for name, table in TABLES.items():
        table.clear()
        table.update(before[name])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_as_it_stands(page, tiny_default):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert blocks
    names = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)  # noqa: S102


def test_contributing_names_each_page_and_every_path_that_it_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {page.stem for page in PAGES} == {"filter", "record-shape", "runner", "stage", "strategy"}
    for target in [*re.findall(r"\]\(([^)#]+)\)", text), *re.findall(r"`((?:docs|infer|train|data|recipes|tests|benchmarks)/[\w./-]*)`", text)]:
        assert (ROOT / target).exists(), target
    assert all(f"(docs/contributing/{page.name})" in text for page in PAGES)


def test_the_version_stands_alike_where_it_is_written():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == version and citation["license"] == "Apache-2.0" and citation["cff-version"] == "1.2.0" and citation["authors"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "docs/serving-security.md" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
