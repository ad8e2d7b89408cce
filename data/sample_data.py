"""The small sets of triplets that come with Seodang, for the demo, the tests and a first try."""

from pathlib import Path

from .errors import UserError

FOLDER = Path(__file__).parent / "samples"
COPIED = ("data/samples/", "recipes/")  # what begins so is copied by `seodang setup --examples`, if it is there


def sample_names() -> list[str]:
    """Every sample's name: a set is `geography`, what is held out of it `geography_heldout`."""
    return sorted(path.stem for path in FOLDER.glob("*.jsonl"))


def sample_path(name: str) -> Path:
    """The JSON Lines file of one sample, named with its ending or without: "geography" to .../samples/geography.jsonl.

    Raises UserError listing the samples where there is none of that name.
    """
    stem = name.removesuffix(".jsonl")
    if stem not in sample_names():
        raise UserError(f"there is no sample named {name!r}: choose one of {', '.join(sample_names())}")
    return FOLDER / f"{stem}.jsonl"


def setup_hint(name: str) -> str:
    """What to do about a file that is not where a command looks for it, where it comes with Seodang and the documents name it so; else nothing."""
    comes_along = name.endswith((".jsonl", ".yaml")) and name.startswith(COPIED) and (FOLDER.parents[1] / name).is_file()
    return ": it comes with Seodang, and `seodang setup --examples .` puts it here" if comes_along else ""
