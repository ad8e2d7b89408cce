"""README and the pages that it sends to: what they tell to type runs as it stands, on a tiny model in place of the default one; figures stand where README says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from seodang.data.form_pairs import main as form_pairs

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r'^```(\w*)(?: title="(not run: [^"\n]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
PAGES = ["data-reference", "training", "speaking", "python"]  # later ones ask what earlier ones trained
IN_TURN = [["README.md"], pytest.param([f"docs/{name}.md" for name in PAGES], marks=pytest.mark.full)]


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text):
    """A document without its fences."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


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


@pytest.fixture
def typed(clone, quickly):
    """`typed(line)`: run a line of a document."""

    def run(line: str) -> None:
        line = line.partition("    #")[0].strip()
        if line.startswith("python -m seodang.data.form_pairs "):
            form_pairs(path := clone / line.split()[-1])
            path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:40]), encoding="utf-8")  # a few will do
        else:
            quickly(line)

    return run


@pytest.mark.parametrize("names", IN_TURN, ids=["README", "pages"])
def test_what_a_document_tells_to_type_runs(names, typed):
    for name in names:
        ran = 0
        for language, excuse, body in FENCE.findall(text_of(name)):
            if excuse or language not in ("bash", "python"):
                continue
            ran += 1
            if language == "python":
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(compile(body, name, "exec"), {"__name__": "__main__"})
                assert printed.getvalue().strip(), body
            else:
                for line in body.splitlines():
                    typed(line)
        assert ran, name


def test_every_fence_says_what_it_is():
    """A fence that the pattern does not see would not be run."""
    for name in ("README.md", "docs/server-reference.md", *(f"docs/{page}.md" for page in PAGES)):
        text = text_of(name)
        assert 2 * len(FENCE.findall(text)) == len(re.findall("^```", text, re.MULTILINE)), name
        for language, excuse, body in FENCE.findall(text):
            assert language in ("bash", "python") or not re.search(r"^(seodang|make|python) ", body, re.MULTILINE), body


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
    words = [word for line in prose(text).splitlines() if not line.startswith("|") for word in line.split()]
    assert len(words) < 4 * 200 and len(text.splitlines()) <= 200


def test_both_languages_say_the_same():
    english, korean = text_of("README.md"), text_of("README.ko.md")
    fences = lambda text: [(language, re.sub(r"#.*", "", body)) for language, _, body in FENCE.findall(text) if language]
    assert fences(english) == fences(korean)
    levels = lambda text: re.findall(r"^(#+) ", prose(text), re.MULTILINE)
    assert levels(english) == levels(korean)
    links = lambda text: [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("README")]
    assert links(english) == links(korean)
    tables = lambda text: [line.count(" | ") for line in prose(text).splitlines() if line.startswith("|")]
    assert tables(english) == tables(korean)
    figures = lambda text: sorted(re.findall(r"\d+(?:[.,]\d+)*", prose(text)))
    assert figures(english) == figures(korean)
    code = lambda text: sorted(re.findall(r"`[^`\n]+`", prose(text)))
    assert code(english) == code(korean)
