"""Our side of `native.py`, and that of transformers' `generate`: what it asks of a process (`sides.py`).

python benchmarks/native_side.py seodang|generate DTYPE                ours in int8 and int4 too
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from unittest import mock

import torch
from decode_vs_hf import ALL_FILTERS, COPY, Ours, Theirs
from peers import decoding, prompts, timed
from sides import Calls, serve
from torch import nn

from seodang.data.errors import UserError
from seodang.infer import Runner, open_runner, runtime_of, set_kv_cache_dtype
from seodang.infer.checkpoint.quantise import BITS
from seodang.infer.kernels.quantised_linear import Quantised
from seodang.infer.kernels.vectors8 import SCALE

LIST = {"type": "array", "minItems": 64, "items": {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}}
AROUND = {"greedy": {}, "filters": ALL_FILTERS, "JSON grammar": {"ignore_eos": False, "json_schema": LIST}}


def bytes_read(model: nn.Module) -> int:
    """How many bytes of weights a step of one row reads: all but the table of embeddings, of which it takes a row; a head that is tied to it is read."""
    table, head = model.get_input_embeddings().weight, getattr(model.get_output_embeddings(), "weight", None)
    packed = sum(buffer.nbytes for each in model.modules() if isinstance(each, Quantised) for buffer in each.buffers())
    return packed + sum(each.nbytes for each in model.parameters()) - (0 if table is head else table.nbytes)


@contextmanager
def clocked(kind: type, name: str) -> Iterator[list[tuple[float, float]]]:
    """Have the calls of a method write down when they began and ended."""
    found, method = [], getattr(kind, name)

    def clock(*args, **kwargs):
        began = time.perf_counter()
        answer = method(*args, **kwargs)
        found.append((began, time.perf_counter()))
        return answer

    with mock.patch.object(kind, name, clock):
        yield found


def around(ours: Ours, kind: type[Runner]) -> Callable[..., dict]:
    """What ours answers to `around`: microseconds of a step of one row, and how many of them pass outside the runner's `forward`.

    Where the runner's kind has a `_run`, as those over the ragged cache have, `checks_us` is what `forward` takes around that: checks and planning.
    """

    def answer(what: str, new: int) -> dict:
        asked = prompts(1)
        with clocked(kind, "forward") as passes, clocked(kind, "_run" if hasattr(kind, "_run") else "forward") as inner:
            ours(asked, new, **AROUND[what])
        steps = list(zip(passes[1:], passes[2:]))  # the first pass reads the prompt
        checks = [(end - began) - (last - first) for (began, end), (first, last) in zip(passes[1:], inner[1:])]
        found = {"step_us": [after[0] - began for (began, _), after in steps], "outside_us": [after[0] - end for (_, end), after in steps], "checks_us": checks}
        return {name: 1e6 * statistics.median(values) for name, values in found.items()}

    return answer


def behind(runner: Runner, lengths: list[int]) -> dict[int, int]:
    """Slots of a runner with pasts of these lengths."""
    read, slots = runner.allocate(), {length: runner.allocate() for length in lengths}
    runner.forward([read], prompts(1, max(lengths)), [1])
    for length, slot in slots.items():
        runner.copy(read, slot, 0, length)
    runner.release([read])
    return slots


def contexts(model: nn.Module) -> Callable[..., dict]:
    """What ours answers to `context`: median milliseconds of a step at each length, in turn, over a cache in the model's dtype and one in 8 bits, and what a position takes.

    The longest is read once by each and copied, in parts, to the slots of the others.
    """

    def context(lengths: list[int], steps: int) -> dict:
        runners = {"step_ms": open_runner(model)}
        with suppress(UserError):  # where steps are not native there is one kind alone
            set_kv_cache_dtype(model, "int8")
            runners["kv8_step_ms"] = open_runner(model)
        set_kv_cache_dtype(model, None)
        slots = {(kind, length): slot for kind, runner in runners.items() for length, slot in behind(runner, lengths).items()}
        seconds: dict = {each: [] for each in slots}
        for _ in range(1 + steps):
            for (kind, length), slot in slots.items():
                began = time.perf_counter()
                runners[kind].forward([slot], [[5]], [1])
                seconds[kind, length].append(time.perf_counter() - began)
                runners[kind].truncate(slot, length)
        config = runners["step_ms"].config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        vectors = 2 * config.num_hidden_layers * config.num_key_value_heads
        for kind, runner in runners.items():
            runner.release([slot for (own, _), slot in slots.items() if own == kind])
        said = {kind: {length: 1e3 * statistics.median(seconds[kind, length][1:]) for length in lengths} for kind in runners}
        return said | {"bytes_a_position": vectors * width * model.dtype.itemsize, "kv8_bytes_a_position": vectors * (width + SCALE)}

    return context


def begin() -> tuple[Calls, dict]:
    warnings.filterwarnings("ignore")
    engine, dtype = sys.argv[1:]
    how = ("auto", dtype) if dtype in BITS else (dtype,)
    side = (Ours if engine == "seodang" else Theirs)(*how)
    calls, said = decoding(side), {"bytes": bytes_read(side.model), "threads": torch.get_num_threads()}
    if engine == "seodang":
        runner = open_runner(side.model)
        kind = type(runner)
        text = [side.tokenizer(COPY)["input_ids"]]
        calls |= {"copy": lambda new, **settings: timed(side, text, new, settings), "around": around(side, kind), "context": contexts(side.model)}
        said["runtime"] = asdict(runtime_of(runner))
    return calls, said


if __name__ == "__main__":
    serve(begin)
