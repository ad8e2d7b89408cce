"""What the benchmarks beside trl and transformers have in common: a trainer's whole step, peak memory, and the command line."""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping

import torch


class Side:
    """A trainer whose optimizer is ready, and one whole step of it."""

    def start(self, trainer, rows: list[dict]) -> None:
        self.trainer, self.rows = trainer, rows
        trainer.create_optimizer()
        trainer.model, trainer.optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)

    def step(self) -> float:
        """One whole training step as the Trainer does it, collation and the optimizer included; the loss."""
        trainer = self.trainer
        trainer.current_gradient_accumulation_steps = 1
        batch, count = trainer.get_batch_samples(iter([trainer.data_collator(self.rows)]), 1, torch.device("cpu"))
        loss = trainer.training_step(trainer.model, batch[0], count)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return loss.item()


def alternate(ours: Side, trl: Side, steps: int) -> tuple[dict, tuple[list[float], list[float]]]:
    """Take steps of the two in turn after one that is not counted: medians of the ratios trl / ours, and the losses of each."""
    pair = (ours, trl)
    losses = tuple([side.step()] for side in pair)
    cpu, wall, ours_cpu = [], [], []
    for _ in range(steps):
        seconds = []
        for side, seen in zip(pair, losses, strict=True):
            start, start_cpu = time.perf_counter(), time.process_time()
            seen.append(side.step())
            seconds.append((time.perf_counter() - start, time.process_time() - start_cpu))
        (ours_wall, ours_seconds), (trl_wall, trl_seconds) = seconds
        wall.append(trl_wall / ours_wall)
        cpu.append(trl_seconds / ours_seconds)
        ours_cpu.append(ours_seconds)
    figures = {"cpu_ratio": statistics.median(cpu), "wall_ratio": statistics.median(wall), "cpu_range": [min(cpu), max(cpu)],
               "ours_cpu_s": statistics.median(ours_cpu)}  # fmt: skip
    return figures, losses


def peak(build: Callable[[str, str, str], Callable[[], object]], case: str, side: str) -> None:
    """Print the peak resident memory of this process after three steps of one side; `build` makes its step in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        step = build(case, side, folder)
        for _ in range(3):
            step()
    print(json.dumps({"case": case, "side": side, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def run(doc: str, script: str, cases: Mapping[str, object], compare: Callable[[str, int], dict], build: Callable, other: str = "trl") -> None:
    """The command line: every case in turn, or with --memory each side, ours and the `other`, in a process of its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(cases), choices=cases)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", choices=["ours", other], help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.one:
        peak(build, options.cases[0], options.one)
        return
    for name in options.cases:
        if options.memory:
            command = [sys.executable, script, "--cases", name, "--one"]
            runs = [subprocess.run([*command, side], capture_output=True, text=True, check=True) for side in ("ours", other)]
            ours, theirs = (json.loads(run.stdout.splitlines()[-1])["peak_gib"] for run in runs)
            print(f"{name}: peak memory ours {ours:.2f} GiB, {other} {theirs:.2f} GiB, ratio {ours / theirs:.2f}", flush=True)
        else:
            print(json.dumps(compare(name, options.steps)), flush=True)
