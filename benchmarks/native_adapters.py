"""What LoRA adapters cost a step on CPUs, natively and by torch: steps of a runner whose rows have adapters, against the same rows without.

python benchmarks/native_adapters.py                          the default model, 1 and 8 rows, rank 16 over all seven linear layers, float32 and bfloat16
python benchmarks/native_adapters.py --rows 8 --dtypes float32 --rank 64

All ways take their turn, each round in the other order, in one process: the native step (`ours`) and SEODANG_NATIVE=0 (`direct`), each with rows without an
adapter, with one that all rows have, and where there are several rows with one a row. A JSON line a case: milliseconds a step, median with range, and by
the medians of each round's ratios what an adapter costs and how many times as fast the native step is.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from engine_load import rounded, turns
from native import spread
from peers import prompts

from seodang.infer import Runner, load
from seodang.infer.kernels.low_rank import Adapter, LowRank
from seodang.infer.runners.direct import DirectRunner
from seodang.infer.runners.native_runner import NativeRunner


def random_adapter(model: torch.nn.Module, rank: int) -> Adapter:
    """An adapter over all linear layers but the head."""
    linears = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]
    matrix = lambda *shape: torch.randn(shape).mul_(0.01).to(model.dtype)
    return Adapter("random", {linear: LowRank(matrix(rank, linear.in_features), matrix(linear.out_features, rank).t()) for linear in linears})


def steps_of(runner: Runner, adapters: list[Adapter | None], steps: int) -> Callable[[], float]:
    """Runs so many steps of rows with these adapters, behind 32 tokens each, and returns the milliseconds of one."""
    slots = [runner.allocate() for _ in adapters]
    for slot, adapter in zip(slots, adapters):
        runner.adapt(slot, adapter)
    texts = prompts(len(slots))
    runner.forward(slots, texts, [1] * len(slots))

    def run() -> float:
        runner.forward(slots, [[5]] * len(slots), [1] * len(slots))
        began = time.perf_counter()
        for _ in range(steps):
            runner.forward(slots, [[5]] * len(slots), [1] * len(slots))
        took = time.perf_counter() - began
        for slot, text in zip(slots, texts):
            runner.truncate(slot, len(text))
        return 1e3 * took / steps

    return run


def measure(model: torch.nn.Module, rows: int, args: argparse.Namespace) -> dict:
    adapters = [random_adapter(model, args.rank) for _ in range(rows)]
    companies = {"without": [None] * rows, "one": adapters[:1] * rows} | ({"each": adapters} if rows > 1 else {})
    kinds = {"ours": NativeRunner, "direct": DirectRunner}
    ways = {(name, company): steps_of(kind(model), own, args.steps) for name, kind in kinds.items() for company, own in companies.items()}
    found = dict(zip(ways, turns(list(ways.values()), args.rounds)))
    ratio = lambda one, other: rounded(statistics.median(a / b for a, b in zip(found[one], found[other])))
    return {
        "rows": rows, "dtype": str(model.dtype), "rank": args.rank, "rounds": args.rounds, "threads": torch.get_num_threads(),
        "step_ms": {f"{name}, {company}": spread(found[name, company]) for name, company in ways},
        "over_without": {f"{name}, {company}": ratio((name, company), (name, "without")) for name, company in ways if company != "without"},
        "times_as_fast": {company: ratio(("direct", company), ("ours", company)) for company in companies},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="default")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    for dtype in args.dtypes:
        model, _ = load(args.model, dtype=dtype)
        for rows in args.rows:
            print(json.dumps(measure(model, rows, args)), flush=True)


if __name__ == "__main__":
    main()
