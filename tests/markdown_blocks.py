"""The code of Markdown files: what stands in fences, which of it runs, and the command lines in it."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
RUN = ("bash", "python")  # what can be run; the rest is to be read
FENCE = re.compile(r"^```(\S*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: where its fence stands, its language, its title and what is in it."""

    where: str
    language: str
    title: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether a test of the documents runs it: code whose title does not name a reason or another test."""
        return self.language in RUN and not self.title.startswith(("not run: ", "run by "))

    @property
    def commands(self) -> list[list[str]]:
        """The command lines as words, without comments; lines that end in a backslash, or within quotes, go on."""
        lines, begun = [], ""
        for line in self.text.splitlines():
            begun = f"{begun}{line}\n"
            if line.endswith("\\"):
                begun = begun.removesuffix("\\\n")
                continue
            try:
                words = shlex.split(begun, comments=True)
            except ValueError:  # a quotation that is still open
                continue
            lines, begun = lines + [words] * bool(words), ""
        assert not begun, f"{self.where}: no command line: {begun}"
        return lines


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [Block(f"{page}:{text[: found.start()].count(chr(10)) + 1}", *found.groups(default="")) for found in FENCE.finditer(text)]


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
