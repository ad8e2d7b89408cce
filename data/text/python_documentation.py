"""Prose that every Python brings along: its language reference and the docstrings of its standard library, to try pretraining on.

They are part of Python, (c) Python Software Foundation, under the PSF License Version 2; nothing of them is copied into this package.
"""

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

LICENCE = "PSF License Version 2, (c) Python Software Foundation"
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings", "ensurepip", "site-packages", "dist-packages", "__pycache__"}
SHORT = 60  # characters of a paragraph that may come again
SHORTEST = 400  # characters of a document: what modules say in less is no prose


def python_documentation() -> Iterator[tuple[str, str]]:
    """Names and texts of documents: the topics of the language reference, and all docstrings of each module of the standard library.

    A paragraph that stands in several places, as many do in the reference, stands in the first of them alone: no document tells what another says.
    """
    seen: set[str] = set()
    for name, texts in chain(_topics(), _modules()):
        paragraphs = [paragraph for text in texts for paragraph in text.split("\n\n")]
        new = [paragraph for paragraph in dict.fromkeys(paragraphs) if len(paragraph) < SHORT or paragraph.strip() not in seen]
        seen.update(paragraph.strip() for paragraph in new)
        document = "\n\n".join(new)
        if len(document) >= SHORTEST:
            yield name, document


def _topics() -> Iterator[tuple[str, list[str]]]:
    """The language reference as `help()` shows it; nothing where a distribution has left it out."""
    if importlib.util.find_spec("pydoc_data") is None or importlib.util.find_spec("pydoc_data.topics") is None:
        return
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        yield f"help({name!r})", [text.strip()]


def _modules() -> Iterator[tuple[str, list[str]]]:
    """The docstrings of each module's file, which is read and not run."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root)
        if LEFT_OUT.isdisjoint(place.parts):
            try:
                tree = ast.parse(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, SyntaxError):  # a template, or a file that is no Python of this version
                continue
            found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)))
            yield ".".join(place.with_suffix("").parts), [text.strip() for text in found if text]
