"""A C file as a shared library for the machine that it runs on: which compiler, how it is asked, and once for all processes."""

import atexit
import hashlib
import importlib.util
import itertools
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from . import library_cache

# Without -ffast-math, which would let a compiler sum in an order of its own, and take infinities for impossible.
FLAGS = ("-O3", "-std=c11", "-ffp-contract=fast", "-fno-math-errno", "-shared", "-pthread")
FLAGS += () if os.name == "nt" else ("-fPIC",)  # which Windows has no other than, and some compilers refuse there
NAMES = ("cc", "clang", "gcc")
LIMIT, LIMIT_OF_ZIG = 120.0, 240.0  # seconds: a few, but on a crowded machine; zig makes its own C library first
REMEDY = "install gcc or clang, or run pip install 'seodang[native]'"

logger = logging.getLogger(__name__)
_held: dict[str, Path] = {}  # what could not be cached, by key, as long as this process lasts


class NotBuilt(Exception):
    """There is no library, for the reason given in one line."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler: its command, the file that changes where it is updated, and how it is called in messages."""

    command: tuple[str, ...]
    file: str
    name: str
    limit: float = LIMIT

    @property
    def identity(self) -> str:
        """What tells it from another, without running it, which costs more than all else where a library is cached."""
        status = os.stat(self.file)
        return repr((self.command, os.path.realpath(self.file), status.st_size, status.st_mtime_ns))


def built(source: Path, march: str | None = None, limit: float | None = None) -> Path:
    """Return the path of the shared library of a C file, compiled for this machine, or cached by an earlier process.

    `march` is the compiler's `-march`: $SEODANG_NATIVE_MARCH where it is not given, else "native". The compiler is $CC alone where that is set,
    else the first of cc, clang, gcc and the package ziglang's that compiles the file; each may take `limit` seconds. What is cached hangs on the
    text of all C files beside the source, the flags, the compiler and the CPU. Where the cache cannot be used, the library lies in a private
    folder, removed when the process ends. Raises NotBuilt where there is no compiler, none compiles the file in time, or nothing can be written.
    """
    try:
        march = march or os.environ.get("SEODANG_NATIVE_MARCH") or "native"
        known = [(compiler, key_of(source, march, compiler)) for compiler in compilers()]
        folder = library_cache.open_cache()
        for _, key in known:
            if path := _held_or_cached(folder, key):
                return path
        return _build(source, march, known, folder, limit)
    except OSError as error:
        raise NotBuilt(f"{source.name} cannot be compiled: {error}") from None


def forget(path: Path) -> None:
    """Remove a library that cannot be loaded, so that the next call of `built` compiles it again."""
    library_cache.remove(path)


def compilers() -> list[Compiler]:
    """Return the C compilers that are there, in the order in which they are tried; raises NotBuilt where there is none, or $CC names none."""
    if given := os.environ.get("CC", "").strip():
        return [_named(given)]
    found = {}
    for name in NAMES:
        if program := shutil.which(name):
            path = os.path.abspath(program)
            found.setdefault(os.path.realpath(path), Compiler((path,), path, name))  # cc is often one of the others
    package = importlib.util.find_spec("ziglang")
    if package and package.origin and sys.executable:
        found[package.origin] = Compiler((sys.executable, "-m", "ziglang", "cc"), package.origin, "zig cc", LIMIT_OF_ZIG)
    if not found:
        raise NotBuilt(f"no C compiler is there ({', '.join(NAMES)}): {REMEDY}")
    return list(found.values())


def _named(given: str) -> Compiler:
    """The compiler that $CC names, with its arguments."""
    remedy = "name a C compiler that is there, or unset CC"
    try:
        words = shlex.split(given, posix=os.name == "posix")
    except ValueError as error:
        raise NotBuilt(f"CC is {given!r} ({error}): {remedy}") from None
    if not (program := shutil.which(words[0])):
        raise NotBuilt(f"CC is {given!r}, but there is no program {words[0]!r}: {remedy}")
    path = os.path.abspath(program)
    return Compiler((path, *words[1:]), path, f"{given!r}, which CC names,")


def key_of(source: Path, march: str, compiler: Compiler) -> str:
    """Return the name, less the digest of its content, of the library that this compiler makes of the source on this machine."""
    texts = [path.read_bytes() for path in sorted(source.parent.glob("*.[ch]"))]  # the source may include those beside it
    parts = [source.name, *(hashlib.sha256(text).hexdigest() for text in texts), *FLAGS, march, compiler.identity, cpu()]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    return f"{re.sub('[^A-Za-z0-9_]', '_', source.stem)}-{digest}"


def _held_or_cached(folder: Path | None, key: str) -> Path | None:
    path = library_cache.find(folder, key) if folder else None
    if path is None and key in _held:
        path = library_cache.find(_held[key].parent, key)
    return path


def _build(source: Path, march: str, known: list[tuple[Compiler, str]], folder: Path | None, limit: float | None) -> Path:
    """Have the first compiler that can compile the source; raises NotBuilt with what the first of them said."""
    scratch = Path(tempfile.mkdtemp(prefix="seodang-native-"))
    atexit.register(_remove_own, scratch, os.getpid())
    told = []
    for compiler, key in known:
        try:
            content = compiled(source, march, compiler, scratch, limit or compiler.limit)
        except NotBuilt as error:
            logger.debug("%s", error)
            told.append(error)
            continue
        name = library_cache.file_name(key, content)
        path = library_cache.keep(folder, name, content) if folder else None
        if path is None:
            _held[key] = path = scratch / name
            path.write_bytes(content)
            path.chmod(0o700)
        else:
            _remove_own(scratch, os.getpid())
        return path
    _remove_own(scratch, os.getpid())
    raise told[0]


def _remove_own(folder: Path, process: int) -> None:
    """Remove a folder, but not on behalf of the process that this one was forked from."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def compiled(source: Path, march: str, compiler: Compiler, scratch: Path, limit: float) -> bytes:
    """Return the content of the library that a compiler makes of the source, working in the folder `scratch`.

    Where "native" is no `-march` to this compiler it is tried as `-mcpu`, as some for Arm have it, then left out. Raises NotBuilt with a line of
    what the compiler said.
    """
    target = scratch / "library"
    choices = [["-march=native"], ["-mcpu=native"], []] if march == "native" else [[f"-march={march}"]]
    for choice in choices:
        target.unlink(missing_ok=True)
        said = run([*compiler.command, *FLAGS, *choice, "-o", str(target), str(source.resolve()), "-lm"], scratch, limit)
        if said is None:
            raise NotBuilt(f"{compiler.name} did not compile {source.name} within {limit:g} seconds")
        if said == "" and (content := target.read_bytes() if target.is_file() else b""):
            return content
        if not re.search(r"\bm(arch|cpu)\b", said):  # an error of the source would be the same again, and one of the assembler hide itself
            break
    raise NotBuilt(f"{compiler.name} cannot compile {source.name}: {said or 'it wrote no library'}")


def run(command: list[str], scratch: Path, limit: float) -> str | None:
    """Run a compiler silently; return "" where it succeeds, a line of what it said where it fails, None where it takes more than `limit` seconds."""
    zig = {name: str(scratch / "zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}  # else 50 MB in the user's home
    environment = {**zig, **os.environ, "LC_ALL": "C", "TMPDIR": str(scratch)}
    with open(scratch / "said", "w+b") as output:  # a pipe would be held open by what a killed compiler has started
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True)
        except OSError as error:  # no program of this machine's, say
            return line_of(str(error))
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                _stop(process)
        output.seek(0)
        return "" if status == 0 else line_of(output.read(1 << 20).decode(errors="replace")) or f"it ended with status {status}"


def _stop(process: subprocess.Popen) -> None:
    """Kill a compiler with all that it has started."""
    with suppress(OSError):  # it has ended in this moment
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def line_of(output: str) -> str:
    """The line of a compiler's output that says most: its first error, else its first line, at most 200 characters and all of them printable."""
    lines = ["".join(c if c.isprintable() else " " for c in line).strip() for line in output.splitlines()]
    first = next((line for line in lines if "error:" in line), next(filter(None, lines), ""))
    return first[:200]


@cache
def cpu() -> str:
    """What tells this machine's CPU, and the instructions that it is allowed here, from others."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            first = list(itertools.takewhile(str.strip, lines))  # up to the blank line behind the first core
    except OSError:
        first = []
    told = ("model name", "flags", "Features", "CPU implementer", "CPU part", "cpu", "isa")
    features = {name: value for name, value in torch.cpu.get_capabilities().items() if isinstance(value, str) or value is True}
    return repr((sys.platform, platform.machine(), sorted(features.items()), [line for line in first if line.partition(":")[0].strip() in told]))
