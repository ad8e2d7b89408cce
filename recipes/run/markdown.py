"""Markdown in the terminal, drawn as it grows: what is finished stays, what is still being written is drawn anew with each word."""

from __future__ import annotations

import re
import unicodedata
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

FENCE = re.compile(r" {0,3}(```+|~~~+)")


class GrowingMarkdown:
    """A context manager; `add` takes the next words. Where it is left, all of the text stands there."""

    def __init__(self, console: Console):
        self._console, self._text = console, ""
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._live.update("", refresh=True)
        self._live.stop()
        if self._text.strip():
            self._console.print(Markdown(self._text))

    def add(self, words: str) -> None:
        """Draw further words; what a terminal would take for a command is left out."""
        self._text += shown(words)
        end = finished(self._text)
        if end:
            self._live.update("")
            self._console.print(Markdown(self._text[:end]))
            self._text = self._text[end:]
        lines = self._text.splitlines()[-max(self._console.height - 2, 1) :]  # the end of what is longer than the window
        self._live.update(Markdown("\n".join(lines)), refresh=True)


def finished(text: str) -> int:
    """Return where the last block begins that may go on: before it stand whole paragraphs, lists and pieces of code, each with its blank line."""
    at = end = 0
    fence = None
    for line in text.splitlines(keepends=True):
        at += len(line)
        if found := FENCE.match(line):
            mark = found[1]
            if fence is None:
                fence = mark
            elif mark[0] == fence[0] and len(mark) >= len(fence) and not line.strip().strip(mark[0]):
                fence = None
        elif fence is None and not line.strip() and text[:at].strip():
            end = at
    rest = text[end:]
    # a list or a quotation goes on behind a blank line: it would be counted anew
    return 0 if re.match(r"\s*$|\s*([-*+>]|\d+[.)])\s?", rest) and end else end


def shown(words: str) -> str:
    """A text without characters that control a terminal, but for line breaks and tabs."""
    return "".join(each for each in words if each in "\n\t" or unicodedata.category(each) != "Cc")
