"""For which devices a run is planned."""

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

from seodang.data.errors import UserError
from seodang.infer.checkpoint.without_weights import load_without_weights
from seodang.recipes.options.training import RunOptions
from seodang.train.maths.logprobs import CHUNK
from seodang.train.memory.fitting import Given
from seodang.train.memory.sharding import FSDP, WAYS, Layout, read_launch_file

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass
class PlanningOptions:
    """What a dry run plans for, and what is chosen for a device's memory, in a real run too."""

    devices: int = field(default=1, metadata={"help": "With --dry_run: how many devices are planned for."})
    sharding: str | None = field(default=None, metadata={"help": f"With --dry_run: {', '.join(WAYS)}; fsdp by default."})
    launch_file: str | None = field(default=None, metadata={"help": "With --dry_run: an accelerate config (YAML) that says both instead."})
    device_memory: str | None = field(
        default=None,
        metadata={"help": "What a device has, 80GiB say: what is left open is chosen to fit; long rows fit what is free. A dry run exits with 1 where none does."},
    )
    loss_chunk: int = field(default=0, metadata={"help": f"Positions whose logits lie in memory at a time; 0: {CHUNK}, or fewer where the memory asks for it."})
    plan_file: str | None = field(default=None, metadata={"help": "With --dry_run: a JSON file that the plan is written to."})

    given: ClassVar[Collection[str]] = ()  # the options that were written down, set where they are parsed

    def __post_init__(self):
        self.built: list = []  # the models that a dry run has made
        self.chosen: list[str] = []  # what was chosen for the memory, in lines
        self.memory = None if self.device_memory is None else parse_bytes(self.device_memory)
        if self.loss_chunk < 0:
            raise UserError(f"loss_chunk must be at least 1, or 0 to leave it open, got {self.loss_chunk}")
        if self.launch_file is not None and (self.devices != 1 or self.sharding is not None):
            raise UserError("launch_file says how many devices there are and how a run is spread: drop --devices and --sharding, or the file")
        self.layout = Layout(self.devices, self.sharding or FSDP) if self.launch_file is None else read_launch_file(self.launch_file)

    @property
    def chunk(self) -> int:
        """How many positions' logits are made at a time."""
        return self.loss_chunk or CHUNK

    def settled(self, args: Any) -> Given:
        """What of a step was written down, and so is not to be chosen, or lies in the launch file."""
        says = {"activation_checkpointing", "gradient_checkpointing"} & set(self.given) or args.activation_checkpointing or self.layout.checkpoints
        return Given(args.activation_checkpointing or self.layout.checkpoints if says else None, self.loss_chunk or None)

    def begin(self, run: RunOptions, of_shapes: bool = True, *, chooses: bool = False) -> None:
        """Have models loaded without weights from here on, where that is what the run is for; a stage that must try its model out (not `of_shapes`) loads it.

        A stage that `chooses` fits its step to a device's memory. Raises UserError for a plan's options in a run that plans nothing by shapes, and for what
        is to be chosen in one that cannot.
        """
        if self.loss_chunk and not (chooses and of_shapes):
            raise UserError(f"loss_chunk {self.loss_chunk} is of sft, dpo and decoders' pretrain: leave it out")
        if run.dry_run == "memory" and of_shapes:
            self.built = load_without_weights()
            return
        run.dry_run = run.dry_run and "time"
        planned = ["devices", "sharding", "launch_file", "plan_file", *([] if chooses and of_shapes else ["device_memory"])]
        if given := [name for name in planned if getattr(self, name) not in (None, 1)]:
            raise UserError(f"{given[0]} is what a dry run without weights plans for: add --dry_run, of a decoder, or leave it out")
        if self.memory is not None and several_processes():
            raise UserError("device_memory: several processes choose nothing by themselves: ask --dry_run with --launch_file, and give what it says to all of them")


def several_processes() -> bool:
    """Whether a launcher has started this process among others."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def parse_bytes(text: str) -> int:
    """Bytes of a size in words: 80GiB, 80 GB, 512MiB or a plain number, from 1024 on. Raises UserError for another text.

    >>> parse_bytes("1.5GiB"), parse_bytes("2 GB"), parse_bytes("1024")
    (1610612736, 2000000000, 1024)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    size = 0.0 if found is None else float(found[1]) * UNITS.get(found[2].lower(), 0)
    if not 1 <= size < float("inf"):
        raise UserError(f"device_memory must be a size such as 80GiB or 24GB, got {text!r:.60}")
    if size < 1024:  # 80 for 80GiB: a plan against 80 bytes would only say that nothing fits
        raise UserError(f"device_memory {text} is {int(size)} bytes: name the unit, as 80GiB")
    return int(size)
