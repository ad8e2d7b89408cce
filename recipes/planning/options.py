"""For which devices a run is planned."""

import re
from dataclasses import dataclass, field

from seodang.data.errors import UserError
from seodang.infer.checkpoint.without_weights import load_without_weights
from seodang.recipes.options.training import RunOptions
from seodang.train.memory.sharding import DDP, FSDP, WAYS, Layout, read_launch_file

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass
class PlanningOptions:
    """What a dry run plans for, none of which a real run looks at."""

    devices: int = field(default=1, metadata={"help": "With --dry_run: how many devices are planned for."})
    sharding: str | None = field(default=None, metadata={"help": f"With --dry_run: {', '.join(WAYS)}; fsdp by default, ddp for PPO."})
    launch_file: str | None = field(default=None, metadata={"help": "With --dry_run: an accelerate config (YAML) that says both instead."})
    device_memory: str | None = field(default=None, metadata={"help": "With --dry_run: what a device has, 80GiB say; exit code 1 where the run does not fit."})
    plan_file: str | None = field(default=None, metadata={"help": "With --dry_run: a JSON file that the plan is written to."})

    def __post_init__(self):
        self.built: list = []  # the models that a dry run has made
        self.memory = None if self.device_memory is None else parse_bytes(self.device_memory)
        if self.launch_file is not None and (self.devices != 1 or self.sharding is not None):
            raise UserError("launch_file says how many devices there are and how a run is spread: drop --devices and --sharding, or the file")
        self._layout = Layout(self.devices, self.sharding or FSDP) if self.launch_file is None else read_launch_file(self.launch_file)

    def layout(self, whole_weights: bool) -> Layout:
        """The devices; `whole_weights`: the stage wants these in every process, and gets them where nothing else is asked for."""
        return Layout(self.devices, DDP) if whole_weights and self.launch_file is None and self.sharding is None else self._layout

    def begin(self, run: RunOptions, of_shapes: bool = True) -> None:
        """Have models loaded without weights from here on, where that is what the run is for; a stage that must try its model out (not `of_shapes`) loads it.

        Raises UserError for a plan's options in a run that plans nothing by shapes.
        """
        if run.dry_run == "memory" and of_shapes:
            self.built = load_without_weights()
            return
        run.dry_run = run.dry_run and "time"
        given = [name for name in ("devices", "sharding", "launch_file", "device_memory", "plan_file") if getattr(self, name) not in (None, 1)]
        if given:
            raise UserError(f"{given[0]} is what a dry run without weights plans for: add --dry_run, of a decoder, or leave it out")


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
