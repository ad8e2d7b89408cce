"""Our side of `native.py`, and that of transformers' `generate`: what it asks of a process (`sides.py`).

python benchmarks/native_side.py seodang|generate DTYPE                ours in int8 and int4 too
"""

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from unittest import mock

import torch
from decode_vs_hf import ALL_FILTERS, COPY, Ours, Theirs
from peers import decoding, prompts, timed
from sides import Calls, serve
from torch import nn

from seodang.infer import Runner, open_runner, runtime_of
from seodang.infer.kernels.quantised_linear import Quantised

LIST = {"type": "array", "minItems": 64, "items": {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}}
AROUND = {"greedy": {}, "filters": ALL_FILTERS, "JSON grammar": {"ignore_eos": False, "json_schema": LIST}}


def weights_read(model: nn.Module) -> int:
    """How many weights a step of one row reads: all but the table of embeddings, of which it takes a row; a head that is tied to it is read."""
    table, head = model.get_input_embeddings().weight, getattr(model.get_output_embeddings(), "weight", None)
    packed = sum(each.in_features * each.out_features for each in model.modules() if isinstance(each, Quantised))
    return packed + sum(each.numel() for each in model.parameters()) - (0 if table is head else table.numel())


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


def contexts(model: nn.Module) -> Callable[..., dict]:
    """What ours answers to `context`: median milliseconds of a step at each length, in turn, and the bytes that the cache takes a position.

    The longest is read once and copied, in parts, to the slots of the others.
    """

    def context(lengths: list[int], steps: int) -> dict:
        runner, longest = open_runner(model), max(lengths)
        read = runner.allocate()
        runner.forward([read], prompts(1, longest), [1])
        slots, seconds = {length: runner.allocate() for length in lengths}, {length: [] for length in lengths}
        for length, slot in slots.items():
            runner.copy(read, slot, 0, length)
        runner.release([read])
        for _ in range(1 + steps):
            for length, slot in slots.items():
                began = time.perf_counter()
                runner.forward([slot], [[5]], [1])
                seconds[length].append(time.perf_counter() - began)
                runner.truncate(slot, length)
        runner.release(list(slots.values()))
        config = runner.config
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        position = 2 * config.num_hidden_layers * config.num_key_value_heads * width * model.dtype.itemsize
        return {"step_ms": {length: 1e3 * statistics.median(values[1:]) for length, values in seconds.items()}, "bytes_a_position": position}

    return context


def begin() -> tuple[Calls, dict]:
    warnings.filterwarnings("ignore")
    engine, dtype = sys.argv[1:]
    how = ("auto", dtype) if dtype in ("int8", "int4") else (dtype,)
    side = (Ours if engine == "seodang" else Theirs)(*how)
    calls, said = decoding(side), {"weights": weights_read(side.model), "threads": torch.get_num_threads()}
    if engine == "seodang":
        runner = open_runner(side.model)
        kind = type(runner)
        text = [side.tokenizer(COPY)["input_ids"]]
        calls |= {"copy": lambda new, **settings: timed(side, text, new, settings), "around": around(side, kind), "context": contexts(side.model)}
        said["runtime"] = asdict(runtime_of(runner))
    return calls, said


if __name__ == "__main__":
    serve(begin)
