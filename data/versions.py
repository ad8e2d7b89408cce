"""The versions of the libraries with which Seodang is known to work, said where a newer one breaks what hangs on its inside."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

# By their first two numbers; the first is the lowest that pyproject.toml allows.
KNOWN_TO_WORK = {
    "torch": ("2.13", "2.14"),
    "transformers": ("5.23", "5.24"),
    "trl": ("1.16",),
    "peft": ("0.21",),
    "accelerate": ("1.15",),
    "datasets": ("5.2",),
}
# What a name, an argument or a module that is no longer there ends in.
BREAKS = (AttributeError, ImportError, TypeError, NotImplementedError)


def untried() -> str:
    """The installed libraries of other versions than those known to work, in a sentence with the remedy; nothing where there are none."""
    found = [(name, installed, known) for name, known in KNOWN_TO_WORK.items() if (installed := installed_version(name)) and not _is_of(installed, known)]
    if not found:
        return ""
    told = ", ".join(f"{name} {installed} is installed (known to work: {', '.join(known)})" for name, installed, known in found)
    remedy = " ".join(f"'{name}=={known[-1]}.*'" for name, _, known in found)
    return f"{told}: if this comes of the other version, pip install {remedy}"


def installed_version(name: str) -> str:
    """The version of a package; nothing where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _is_of(installed: str, known: tuple[str, ...]) -> bool:
    return any(installed == each or installed.startswith(f"{each}.") for each in known)


@contextmanager
def versions_named() -> Iterator[None]:
    """Add to an error that a library's other version may have caused which versions are known to work (a note, PEP 678)."""
    try:
        yield
    except BREAKS as error:
        told = untried()
        if told and told not in getattr(error, "__notes__", ()):
            error.add_note(told)
        raise
