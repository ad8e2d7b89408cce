"""What `seodang --version --verbose` tells: everything of the machine and its libraries that a report of a fault should hold, and nothing of its user."""

import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from seodang.data.files.cache_folder import cache_folder
from seodang.data.prepared.workers import cores
from seodang.data.versions import KNOWN_TO_WORK, installed_version, untried
from seodang.infer.checkpoint import default_encoder, default_model
from seodang.infer.kernels.device import choose_device, choose_dtype
from seodang.infer.runners.native.compiler import NotBuilt, compilers
from seodang.infer.runners.native.library import OFF

LIBRARIES = (*KNOWN_TO_WORK, "tokenizers", "safetensors", "llguidance", "numpy")
FEATURES = ("avx2", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "dotprod", "bf16", "i8mm", "sve")  # by which kernels differ
SET = (OFF, "SEODANG_NATIVE_MARCH", "CC", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HF_HOME", "XDG_CACHE_HOME", "LC_ALL", "LANG")


def report(own: str) -> str:
    """The report of Seodang of its `own` version, a line of each thing; the user's home folder is written ~, and no other value of the environment is shown than those of `SET`."""
    home = str(Path.home()) if os.environ.get("HOME") else None
    lines = [f"{name:<16}{text}" for name, text in facts(own)]
    return "\n".join(line if home in (None, "/") else line.replace(home, "~") for line in lines)


def facts(own: str) -> Iterator[tuple[str, str]]:
    """Each thing with its name."""
    yield "seodang", f"{own} in {Path(__file__).parents[2]}"
    yield "python", f"{platform.python_version()} ({platform.python_implementation()}) at {sys.executable}"
    yield "platform", f"{platform.platform()}, text in {sys.getfilesystemencoding()}"
    yield "cpu", f"{cpu_name()}, {cores()} cores; {' '.join(cpu_features()) or 'no features known'}"
    yield "memory", memory()
    device = choose_device("auto")
    dtype, reason = choose_dtype("auto", device)
    yield "device", f"auto is {device}, dtype auto is {str(dtype).removeprefix('torch.')} ({reason}), {torch.get_num_threads()} threads"
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        yield "gpu", f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda or torch.version.hip}"
    yield "native step", native_step()
    yield "libraries", ", ".join(f"{name} {installed_version(name) or 'absent'}" for name in LIBRARIES)
    yield "known to work", untried() or "these versions"
    present, absent = extras()
    yield "extras", ", ".join(present) or "none"
    yield "absent", "; ".join(f"{name} ({', '.join(lacking)})" for name, lacking in absent.items()) or "none"
    yield "default model", str(cache_folder() / default_model.NAME) if default_model.is_converted() else fetched(default_model.PACKAGE, default_model.GGUF, "seodang setup")
    yield "default encoder", fetched(default_encoder.PACKAGE, default_encoder.CONFIG, "seodang setup --encoder")
    yield "environment", " ".join(f"{name}={os.environ[name]}" for name in SET if name in os.environ) or "nothing of note"


def cpu_name() -> str:
    """The CPU's name, as the system has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            named = next((line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "CPU part"))), "")
    except OSError:
        named = ""
    return named or platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """What of `FEATURES` this CPU has."""
    found = torch.cpu.get_capabilities()
    return [name for name in FEATURES if found.get(name)]


def memory() -> str:
    """How much memory there is, and is free."""
    import psutil

    found = psutil.virtual_memory()
    return f"{found.total / 2**30:.1f} GiB, {found.available / 2**30:.1f} free"


def native_step() -> str:
    """What compiles the native step, or why it is not used. Nothing is compiled."""
    if os.environ.get(OFF) == "0":
        return f"off ({OFF}=0)"
    try:
        first = compilers()[0]
    except NotBuilt as error:
        return f"none: {error}"
    return f"compiled by {first.name} ({first.file}); --verbose says whether a model's steps run by it"


def fetched(package: str, name: str, remedy: str) -> str:
    """Where an installed package has a file, or what installs it."""
    place = default_model.packaged(package, name)
    return str(place) if place else f"not there: {remedy}"


def extras() -> tuple[list[str], dict[str, list[str]]]:
    """The extras of which all is installed, and of each other one what is not, or is of another version than asked; by what the installed package says of itself."""
    wanted: dict[str, list[Requirement]] = {}
    try:
        lines = requires("seodang") or []
    except PackageNotFoundError:
        return [], {"seodang itself is not installed": ["it runs out of a folder"]}
    for each in map(Requirement, lines):
        names = [word.strip("\"' )") for word in str(each.marker or "").split("extra == ")[1:]]
        if names and each.marker.evaluate({"extra": names[0]}) and canonicalize_name(each.name) != "seodang":
            wanted.setdefault(names[0], []).append(each)
    lacking = {
        name: [each.name for each in needed if not (have := installed_version(each.name)) or not each.specifier.contains(have, prereleases=True)]
        for name, needed in sorted(wanted.items())
    }
    return [name for name, left in lacking.items() if not left], {name: left for name, left in lacking.items() if left}
