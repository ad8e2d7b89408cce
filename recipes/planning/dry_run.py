"""What a run would take, printed and written; the run itself never begins."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seodang.recipes.planning.options import PlanningOptions
from seodang.train.memory.advice import advice
from seodang.train.memory.fitting import Choice, can_be_fitted, fitted
from seodang.train.memory.peak import MemoryPlan, measure, memory_plan, other_ways
from seodang.train.stages.plan import size_of
from seodang.train.stages.sft import SftTrainer

GIB = 2**30
DOES_NOT_FIT = 1
PARTS = ("parameters", "master weights", "optimizer state", "gradients", "models beside", "gathered", "buckets", "activations", "cache", "passing")


def dry_run(trainer: Any, planning: PlanningOptions, lines: Iterable[str]) -> int:
    """Print the lines and what the run takes of each device; return 0, or 1 where it does not fit into the memory given."""
    layout, memory, args = planning.layout, planning.memory, trainer.args
    size = size_of(trainer) if isinstance(trainer, SftTrainer) else None
    trainer.models_beside = planning.built
    settled = planning.settled(args)
    args.activation_checkpointing |= layout.checkpoints
    told = precise(args, layout.mixed_precision)
    choice = fitted(trainer, layout, memory, settled) if memory is not None and can_be_fitted(trainer) else None
    plan = choice.plan if choice else memory_plan(measure(trainer, layout.devices), layout)
    others = other_ways(plan.measured, layout) if layout.devices > 1 else {}
    accumulated = args.gradient_accumulation_steps
    fits = memory is None or plan.peak <= memory
    told += [f"chosen          {choice.told('of --device_memory')}"] if choice else []
    changes = [] if fits else advice(trainer, plan, memory)
    cost = [] if size is None else size.lines()
    if not trainer.is_world_process_zero():
        return 0 if fits else DOES_NOT_FIT
    print(*lines, *cost, *table(plan), *step_lines(plan, accumulated), *told, *verdict(plan, memory, changes, others), sep="\n", flush=True)
    if planning.plan_file is not None:
        Path(planning.plan_file).write_text(json.dumps(as_json(plan, memory, changes, others, choice), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if fits else DOES_NOT_FIT


def precise(args: Any, asked: str | None) -> list[str]:
    """Plan with the mixed precision that a launch file asks for, where the run's own options ask for none; what is planned with, in lines."""
    if asked not in ("bf16", "fp16"):
        return []
    if args.mixed_precision in (None, "no"):
        args.mixed_precision = asked
    return [f"precision       {args.mixed_precision}, {'as the launch file asks' if args.mixed_precision == asked else 'which the options ask for, not the launch file'}"]


def table(plan: MemoryPlan) -> list[str]:
    """A line a part and a column a moment, GiB of one device, and what the parts are in words."""
    moments, words = list(plan.moments), words_of(plan)
    lines = ["", f"memory          of one device, GiB ({plan.layout.told()})", " " * 16 + "".join(f"{name:>11}" for name in moments)]
    for part in PARTS:
        values = [plan.moments[name].get(part, 0.0) for name in moments]
        if any(values):
            lines.append(f"{part:<16}" + "".join(f"{value / GIB:11.2f}" for value in values) + (f"  {words[part]}" if part in words else ""))
    totals = [sum(plan.moments[name].values()) for name in moments]
    peak = f"the peak is {plan.peak / GIB:.2f}, in {plan.peak_moment}, beside Python and its libraries"
    return [*lines, f"{'sum':<16}" + "".join(f"{total / GIB:11.2f}" for total in totals) + f"  {peak}", ""]


def words_of(plan: MemoryPlan) -> dict[str, str]:
    """What each part of the table is."""
    m = plan.measured
    return {
        "parameters": f"{m.count:,} weights, {m.dtype}",
        "master weights": "float32",
        "optimizer state": m.optimizer.told,
        "gradients": f"of {m.trained:,} weights" + (", of earlier micro-batches too" if m.accumulates else ""),
        "models beside": "references, critics, reward models",
        "gathered": "others' weights, while they are computed with",
        "buckets": "in which gradients are added up",
        "activations": f"kept for the backward pass: {m.step.told}",
        "cache": f"keys and values of {m.step.rollouts:,} answers of up to {m.step.positions:,} positions",
        "passing": "logits, products and gradients on their way",
    }


def step_lines(plan: MemoryPlan, accumulated: int) -> list[str]:
    """The tokens of an optimizer step."""
    step, times = plan.measured.step, accumulated * plan.layout.devices
    each = f" ({step.tokens:,} a micro-batch, {accumulated} of them on {plan.layout.devices})" if times > 1 else ""
    return [f"tokens a step   at most {step.tokens * times:,} through the model{each}, {step.learned * times:,} learned from"]


def verdict(plan: MemoryPlan, memory: int | None, changes: list[tuple[str, float]], others: dict[str, float]) -> list[str]:
    """Whether the run fits, by how much, and what to change first."""
    told = lambda peak: f"{peak / GIB:.2f} GiB" + ("" if memory is None else ", fits" if peak <= memory else ", too much")
    lines = [f"in other ways   {'; '.join(f'{way} {told(peak)}' for way, peak in others.items())}"] if others else []
    lines += [f"the host        {plan.host / GIB:.2f} GiB for each device"] if plan.host else []
    if memory is None:
        return lines
    spare = (memory - plan.peak) / GIB
    if spare >= 0:
        return [*lines, f"fits            {memory / GIB:.2f} GiB, {spare:.2f} GiB to spare"]
    lines.append(f"does not fit    {memory / GIB:.2f} GiB, {-spare:.2f} GiB too much")
    for place, (words, peak) in enumerate(changes):
        lines.append(f"{'change first' if place == 0 else '':<16}{words}: {told(peak)}")
    return lines if changes else [*lines, "change first    the model, or the devices: nothing else is left to change"]


def as_json(plan: MemoryPlan, memory: int | None, changes: list[tuple[str, float]], others: dict[str, float], choice: Choice | None) -> dict[str, Any]:
    """The same for programs, in bytes."""
    m = plan.measured
    return {
        "layout": asdict(plan.layout),
        "weights": {"count": m.count, "trained": m.trained, "dtype": m.dtype},
        "optimizer": m.optimizer.told,
        "moments": {name: {part: round(value) for part, value in parts.items()} for name, parts in plan.moments.items()},
        "peak": round(plan.peak), "peak_moment": plan.peak_moment, "host": round(plan.host),
        "step": {"tokens": m.step.tokens, "learned": m.step.learned, "micro_batch": m.step.told},
        "chosen": choice and {"activation_checkpointing": choice.checkpointing, "loss_chunk": choice.chunk, "quickest": round(choice.quickest)},
        "device_memory": memory, "fits": None if memory is None else plan.peak <= memory,
        "changes": [{"change": words, "peak": round(peak)} for words, peak in changes], "in_other_ways": {way: round(peak) for way, peak in others.items()},
    }  # fmt: skip
