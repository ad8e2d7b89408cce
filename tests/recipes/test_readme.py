"""README: what it tells to type runs as it stands, on a tiny model in place of the default one; figures stand where README says."""

import contextlib
import io
import re

import pytest
from markdown_blocks import ROOT, blocks, prose


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def section(text, heading):
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def table(text):
    """The cells of a text's only table, head first, without the line of dashes."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return [head, *rows]


@pytest.fixture
def clone(tmp_path, small_defaults, monkeypatch):
    """A folder as a fresh clone is, and the current one."""
    for name in ("data", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_readme_tells_to_type_runs(clone, quickly):
    ran = [block for block in blocks("README.md") if block.runs]
    assert len(ran) > 4
    for block in ran:
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(block.text, block.where, "exec"), {"__name__": "__main__"})
            assert printed.getvalue().strip(), block.text
        else:
            for line in block.text.splitlines():
                quickly(line.partition("    #")[0].strip())


def test_every_fence_of_readme_says_what_it_is():
    """A fence that is not seen would not be run."""
    found = blocks("README.md")
    assert 2 * len(found) == len(re.findall("^```", text_of("README.md"), re.MULTILINE))
    for block in found:
        assert block.language in ("bash", "python") or not re.search(r"^(seodang|make|python) ", block.text, re.MULTILINE), block.where


def test_figures_of_speed_stand_where_readme_says():
    head, *rows = table(section(text_of("README.md"), "Where speed stands"))
    assert head[2] == "ratio" and len(rows) > 10
    for *_, ratio, machine, link in rows:
        told = text_of(re.fullmatch(r"\[[\w.-]+\]\(([\w./-]+)\)", link)[1])
        assert machine.split(",")[0] in told, machine
        for figure in re.findall(r"\d+\.\d+", ratio):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", told), f"{figure} of {link}"


def test_links_of_readme_lead_somewhere():
    for name in ("README.md", "README.ko.md"):
        for link in re.findall(r"\]\(([^)#]+)", text_of(name)):
            assert (ROOT / link).exists(), f"{name}: {link}"


def test_readme_is_read_in_four_minutes():
    text = text_of("README.md")
    words = [word for line in prose("README.md").splitlines() if not line.startswith("|") for word in line.split()]
    assert len(words) < 4 * 200 and len(text.splitlines()) <= 200


def test_both_languages_say_the_same():
    english, korean = prose("README.md"), prose("README.ko.md")
    fences = lambda name: [(block.language, re.sub(r"#.*", "", block.text)) for block in blocks(name) if block.language]
    assert fences("README.md") == fences("README.ko.md")
    levels = lambda text: re.findall(r"^(#+) ", text, re.MULTILINE)
    assert levels(english) == levels(korean)
    links = lambda text: [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("README")]
    in_korean = {f"docs/{path.name}": f"docs/ko/{path.name}" for path in (ROOT / "docs" / "ko").glob("*.md")}
    assert [in_korean.get(link, link) for link in links(english)] == links(korean)
    tables = lambda text: [line.count(" | ") for line in text.splitlines() if line.startswith("|")]
    assert tables(english) == tables(korean)
    figures = lambda text: sorted(re.findall(r"\d+(?:[.,]\d+)*", text))
    assert figures(english) == figures(korean)
    code = lambda text: sorted(re.findall(r"`[^`\n]+`", text))
    assert code(english) == code(korean)
