"""Before a real run: what its step had better not hold, found out by the same trainer over a model without weights."""

from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any

import torch

from seodang.data.errors import UserError
from seodang.infer.checkpoint.without_weights import load_without_weights
from seodang.infer.engine.budget import free_on
from seodang.recipes.options.training import RunOptions
from seodang.recipes.planning.options import PlanningOptions, several_processes
from seodang.train.memory.fitting import LONG, Choice, fitted, tokens_at_once

FREE = 0.9  # of what is free: an allocator's fragments and what the libraries make aside take the rest


def fit(planning: PlanningOptions, run: RunOptions, args: Any, rows: Iterable[Any], build: Callable[[], Any], held: int = 0) -> None:
    """Choose what the options leave open, `args.activation_checkpointing` and the planning's `loss_chunk`, for the memory given, or with long rows what is free.

    `build` makes the run's trainer, here over a model of shapes; `held` are bytes that are taken already and that the plan counts too. A dry run without
    weights chooses by itself (see `dry_run`), and several processes choose nothing. Raises UserError where a memory was given and nothing can be planned.
    """
    if run.dry_run == "memory" or several_processes():
        return
    memory, why = planning.memory, "of --device_memory"
    settled = planning.settled(args)
    if memory is None:
        if None not in (settled.checkpointing, settled.chunk) or tokens_at_once(rows, args.per_device_train_batch_size) < LONG:
            return
        memory, why = int(FREE * free_on(args.device)) + held, f"of {args.device}'s free memory"

    def choose() -> Choice:
        load_without_weights()
        return fitted(build(), planning.layout, memory, settled)

    try:
        with torch.random.fork_rng(devices=[]):
            choice = copy_context().run(choose)  # models are of shapes in there alone
    except UserError as error:
        if planning.memory is not None:
            raise
        planning.chosen = [f"chosen          nothing, all as the options say: {error}"]  # nobody has asked for it
        return
    args.activation_checkpointing, planning.loss_chunk = choice.checkpointing, choice.chunk
    planning.chosen = [f"chosen          {choice.told(why)}"]
