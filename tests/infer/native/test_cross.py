"""`step.c` for other machines: it compiles for Arm, macOS and Windows, and on Arm it computes what it does here, under qemu.

Wants zig (`pip install ziglang`, or on the path) and qemu's emulation of programs (Debian's qemu-user or qemu-user-static).
"""

import copy
import ctypes
import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seodang.infer.checkpoint.quantise import quantise
from seodang.infer.runners import lane_block
from seodang.infer.runners.native import compiler
from seodang.infer.runners.native.block_linear import GroupedLinear5, SuperLinear4, SuperLinear5, SuperLinear6
from seodang.infer.runners.native.grouped_linear import GroupedLinear4
from seodang.infer.runners.native.library import ROW, SOURCE, NativeModel
from seodang.infer.runners.native_runner import NativeRunner

ZIG = [sys.executable, "-m", "ziglang"] if importlib.util.find_spec("ziglang") else [found] if (found := shutil.which("zig")) else None
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
full = pytest.mark.full  # zig takes 5 seconds a machine, and for Windows a minute, in which it makes a C library
needs_zig = pytest.mark.skipif(ZIG is None, reason="zig is not here: pip install ziglang")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-aarch64 is not here: apt install qemu-user")
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused", "-Werror")  # unused: what another machine's instructions take the place of
DRIVER = Path(__file__).with_name("arm_driver.c")
CORES = ("cortex_a53", "cortex_a76")  # of Armv8, and of Armv8.2 with dot products, as zig calls them; qemu has hyphens


@pytest.fixture(scope="module")
def zig(tmp_path_factory):
    """`zig(target, *words)`: compile something as `compiler` does for its own machine; returns what was written, of which the compiler says nothing."""
    folder = tmp_path_factory.mktemp("zig")

    def compiled(target: str, *words: str, library: bool = True) -> Path:
        flags = [flag for flag in compiler.FLAGS if (library or flag != "-shared") and not ("windows" in target and flag == "-fPIC")]
        output = folder / f"{target}-{len(list(folder.iterdir()))}"
        said = compiler.run([*ZIG, "cc", "-target", target, *flags, *WARNINGS, *words, str(SOURCE), "-o", str(output), "-lm"], folder, 600)
        assert said == ""
        return output

    return compiled


@full
@needs_zig
@pytest.mark.parametrize("target, words, begins", [
    ("aarch64-linux-gnu.2.28", [], b"\x7fELF"),
    ("aarch64-linux-musl", ["-mcpu=generic+v8_2a+dotprod"], b"\x7fELF"),
    ("aarch64-macos", [], b"\xcf\xfa\xed\xfe"),
    ("x86_64-windows-gnu", ["-march=x86_64_v3"], b"MZ"),
])  # fmt: skip
def test_it_compiles_without_a_warning_for(zig, target, words, begins):
    content = zig(target, *words).read_bytes()
    assert content.startswith(begins)
    assert all(name in content for name in (b"seodang_step\0", b"seodang_built_for\0", b"seodang_use_team\0"))  # as ctypes looks for them


@pytest.mark.skipif(not shutil.which("gcc") or platform.machine() not in ("x86_64", "AMD64"), reason="no gcc for x86 is here")
def test_gcc_is_refused_where_what_it_makes_of_vectors_would_end_the_process(tmp_path):
    ask = lambda *words: compiler.run(["gcc", "-fsyntax-only", *words, str(SOURCE)], tmp_path, 60)
    assert "its bug 54412" in ask("-D_WIN32", "-mavx2")
    assert ask("-mavx2") == ask("-D_WIN32", "-mno-avx") == ""


TEXTS = [[5, 9, 17, 33, 5, 9, 40, 41], [3, 90], [*range(7, 120)] * 3, [64] * 13]  # their keys are one piece, or two
ODD = {"hidden_size": 54, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "intermediate_size": 75, "vocab_size": 131, "attention_bias": True}
MODELS = [("llama", {}), ("llama", ODD), ("mistral", {"num_key_value_heads": 1}), ("qwen3", {"num_attention_heads": 2})]
CACHE = "float32 over a cache in 8 bits"
# what the weights are kept in, and how far numbers may lie from those of this machine and from transformers' in float64
KEPT = [("float32", 1e-5, 1e-5), ("bfloat16", 0.2, 0.05), ("int8", 0.2, 0.3), (CACHE, 0.02, 0.2)]  # of the cache a number may round otherwise
CASES = [(*model, *kept) for kept in KEPT for model in MODELS if kept[0] != "int8" or model[0] == "llama" and model[1] is not ODD]
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 512}
BLOCKS = {"q_proj": SuperLinear4, "v_proj": SuperLinear6, "o_proj": GroupedLinear5, "down_proj": GroupedLinear4, "lm_head": SuperLinear6, "": SuperLinear5}
CASES.append(("llama", WIDE, "blocks", 0.2, 0.3))


@dataclass
class Call:
    """What a pass was asked, and what it answered here."""

    rows: list[int]
    turns: tuple[Tensor, Tensor]
    logits: Tensor
    states: dict[int, Tensor]

    @property
    def answers(self) -> list[Tensor]:
        return [self.logits, *self.states.values()]


@pytest.fixture
def calls(monkeypatch):
    """A list that comes to hold every native pass."""
    made, run = [], NativeModel.run

    def noted(self, rows, turns, logits, states):
        run(self, rows, turns, logits, states)
        made.append(Call(list(rows), turns, logits, states))

    monkeypatch.setattr(NativeModel, "run", noted)
    return made


def addresses(kind: type, at: int = 0) -> list[int]:
    """Where addresses stand in a ctypes structure or array, in bytes."""
    if issubclass(kind, ctypes.Structure):
        return [place for name, of, *_ in kind._fields_ for place in addresses(of, at + getattr(kind, name).offset)]
    if issubclass(kind, ctypes.Array):
        return [place for i in range(kind._length_) for place in addresses(kind._type_, at + i * ctypes.sizeof(kind._type_))]
    return [at] if issubclass(kind, (ctypes.c_void_p, ctypes._Pointer)) else []


class Image:
    """Memory as the driver reads it: pieces of this process's, in which addresses are places in the whole."""

    def __init__(self):
        self.content = bytearray()
        self.pieces: dict[int, tuple[int, int]] = {}  # by their address here: where they are in the whole, and their bytes
        self.pointers: list[tuple[int, int]] = []  # where an address stands, and what it is here

    def new(self, content: bytes, pointers: Iterable[int] = ()) -> int:
        """Append a piece, with addresses in these places; return where it is."""
        self.content += bytes(-len(self.content) % 64)
        at = len(self.content)
        self.content += content
        self.pointers += [(at + place, int.from_bytes(content[place : place + 8], "little")) for place in pointers]
        return at

    def add(self, address: int, content: bytes, pointers: Iterable[int] = ()) -> None:
        """Have a piece that lies here at an address."""
        if address not in self.pieces:
            self.pieces[address] = self.new(content, pointers), len(content)

    def take(self, thing: Any) -> None:
        """Have the memory of a tensor or a structure of ctypes, and of all that a list or dictionary holds."""
        if isinstance(thing, Tensor):
            self.add(thing.data_ptr(), ctypes.string_at(thing.data_ptr(), span(thing)))
        elif isinstance(thing, (ctypes.Structure, ctypes.Array)):
            self.add(ctypes.addressof(thing), bytes(thing), addresses(type(thing)))
        elif isinstance(thing, (list, tuple, dict)):
            for each in thing.values() if isinstance(thing, dict) else thing:
                self.take(each)

    def place(self, address: int) -> int:
        """Where what lies here at an address is in the whole."""
        for begin, (at, size) in self.pieces.items():
            if begin <= address < begin + size:
                return at + address - begin
        raise AssertionError(f"{address:#x} is in no piece of memory that was taken")

    def write(self, path: Path, calls: list[list[int]]) -> None:
        """Write it, with calls, as the driver reads it."""
        pointers = [(at, address) for at, address in self.pointers if address]
        for at, address in pointers:
            self.content[at : at + 8] = self.place(address).to_bytes(8, "little")
        numbers = [len(self.content), len(pointers), len(calls), *(at for at, _ in pointers), *(number for call in calls for number in call)]
        path.write_bytes(np.array(numbers, dtype="<i8").tobytes() + self.content)


def span(tensor: Tensor) -> int:
    """How many bytes there are from a tensor's first number to its last."""
    return (1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride()))) * tensor.itemsize


def laid_out(runner: NativeRunner, calls: list[Call], path: Path) -> Image:
    """Write a runner's passes for the driver, over a cache that holds nothing yet."""
    image, native, asked = Image(), runner._native, []
    image.take([*vars(native).values()])
    for pool in runner.cache.pools.values():
        if pool.stack is not None:
            image.add(pool.stack.data_ptr(), bytes(span(pool.stack)))
    for call in calls:
        image.take(call.turns)
        for each in (call.logits, *call.states.values()):
            image.add(each.data_ptr(), bytes(each.nbytes))
        rows = image.new(np.array(call.rows, dtype="<i8").tobytes(), range(0, 8 * len(call.rows), 8 * ROW))
        wanted = [call.states[layer].data_ptr() if layer in call.states else 0 for layer in range(len(native.layers) + 1)]
        states = image.new(np.array(wanted, dtype="<i8").tobytes(), range(0, 8 * len(wanted), 8))
        model, cos, sin, logits = map(image.place, (ctypes.addressof(native.whole), *(turn.data_ptr() for turn in call.turns), call.logits.data_ptr()))
        asked.append([model, len(native.layers), rows, len(call.rows) // ROW, cos, sin, logits, states])
    image.write(path, asked)
    return image


@pytest.fixture(scope="module")
def arm(zig):
    """`arm(core)`: the driver for a kind of Arm core, and how it is called there."""
    made = {}

    def get(core: str) -> list[str]:
        if core not in made:
            made[core] = zig("aarch64-linux-musl", "-static", f"-mcpu={core}", str(DRIVER), library=False)
        return [QEMU, "-cpu", core.replace("_", "-"), str(made[core])]

    return get


def answered(command: list[str], path: Path, threads: int, image: Image, calls: list[Call]) -> list[list[Tensor]]:
    """What the passes of a file answer where the driver runs them, as tensors like those of this machine."""
    output = path.with_name("output")
    done = subprocess.run([*command, str(path), str(output), str(threads)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout[:4], done.stderr) == (0, "NEON", "")
    memory = output.read_bytes()
    at = lambda each: torch.frombuffer(bytearray(memory[(begin := image.place(each.data_ptr())) : begin + each.nbytes]), dtype=each.dtype).view(each.shape)
    return [[at(each) for each in call.answers] for call in calls]


def spoken(runner: NativeRunner, calls: list[Call]) -> tuple[list[list[int]], list[tuple[int, list[int]]]]:
    """Have a runner read the texts, then take steps, of each by itself and from the same place of all together.

    Returns the texts with what they went on by, and of each step the number of its pass and those of the same rows alone.
    """
    slots, texts, steps = [runner.allocate() for _ in TEXTS], copy.deepcopy(TEXTS), []
    for slot in slots:
        runner.cache.reserve(slot, 512)  # all that it comes to need: what is moved later would be moved here alone
    for begin in range(0, max(map(len, texts)), 16):
        parts = {slot: text[begin : begin + 16] for slot, text in zip(slots, texts) if len(text) > begin}
        runner.forward(list(parts), list(parts.values()), [1] * len(parts))
    for new in ([7, 8, 9, 10], [11, 12, 13, 14], [15, 15, 15, 15]):
        alone = []
        for slot, text, id in zip(slots, texts, new):
            alone.append(len(calls))
            runner.observe([slot], [[id]], [1], [1, -1])
            runner.truncate(slot, len(text))
        steps.append((len(calls), alone))
        runner.observe(slots, [[id] for id in new], [1] * len(slots), [1, -1])
        texts = [[*text, id] for text, id in zip(texts, new)]
    return texts, steps


@full
@needs_zig
@needs_qemu
@pytest.mark.parametrize("kind, changes, kept, here, exactly", CASES, ids=lambda value: value if isinstance(value, str) else None)
def test_on_arm_it_computes_what_it_does_here_and_a_row_alone_is_the_same_beside_others(
    varied, dequantised, calls, arm, tmp_path, monkeypatch, kind, changes, kept, here, exactly
):
    """In bfloat16 this machine may round what its products read, which those of Arm read as it is."""
    monkeypatch.setattr(lane_block, "is_mapped", lambda device: False)  # a cache no larger than it must be
    model = varied(kind, max_position_embeddings=1024, **changes)
    if kept == "int8":
        quantise(model, kept)
    elif kept == "blocks":  # of GGUF files
        for name, linear in [each for each in model.named_modules() if isinstance(each[1], torch.nn.Linear)]:
            block = next(block for part, block in BLOCKS.items() if part in name)
            model.set_submodule(name, block(0.2 * linear.weight))
        model.bfloat16().requires_grad_(False)
    elif kept != CACHE:
        model.to(getattr(torch, kept))
    runner = NativeRunner(model, "int8" if kept == CACHE else None)
    texts, steps = spoken(runner, calls)
    with torch.no_grad():
        wanted = [dequantised(model).double()(input_ids=torch.tensor([text]), use_cache=False).logits[0, -len(steps) :] for text in texts]
    path = tmp_path / "image"
    image = laid_out(runner, calls, path)
    for core in CORES:
        found = answered(arm(core), path, 1, image, calls)
        for call, theirs in zip(calls, found):
            for ours, other in zip(call.answers, theirs):
                torch.testing.assert_close(other, ours, rtol=0, atol=here)
        for step, (together, alone) in enumerate(steps):
            torch.testing.assert_close(found[together][0].double(), torch.stack([each[step] for each in wanted]), rtol=0, atol=exactly)
            for row, own in enumerate(alone):
                assert all(torch.equal(company[row : row + 1], each) for company, each in zip(found[together], found[own]))
        for threads in (2, 3):
            again = answered(arm(core), path, threads, image, calls)
            assert all(torch.equal(each, other) for call, same in zip(found, again) for each, other in zip(call, same))
