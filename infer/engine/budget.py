"""How much memory requests may take: what one may come to, in positions and bytes, and how much the machine has to give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from torch import nn

from ...data.errors import UserError
from ..requests.request import Request
from ..requests.strategy import Host
from ..runners.contract import Runner
from ..strategies.assistants import draft_slots

SHARE = 0.5  # of what is free: a pass, the logits and the rest of the program need memory too
LITTLE = 2_048  # positions: with fewer, ordinary requests are refused
PASS = 512  # new positions of a pass, where nobody says otherwise
MASK = 10  # bytes of a query and a key: whether it is seen, and that as a float32
SCORES = 3  # of these for each head, where scores are written out
COPIES = 8  # of a row of logits, made by filters, a softmax, a sort and the noise
ROWS = 64  # sequences that grow at the same time, where nobody says otherwise


class Demand(NamedTuple):
    """Slots of a runner that a request may come to hold, each of a prompt and the longest answer."""

    what: str  # in words; "" for the answers themselves
    runner: Runner
    slots: int
    prompt: int
    answer: int
    source: int

    @property
    def bytes(self) -> int:
        """At most so many bytes."""
        limit = self.runner.limit or self.prompt + self.answer  # drafts end there
        return self.slots * self.runner.bytes_for(min(self.prompt + self.answer, limit), self.source)

    def __str__(self) -> str:
        each = size(self.bytes / (self.slots * (self.prompt + self.answer)))
        slots = f"{self.slots} x " if self.slots > 1 else ""
        over = f" over a source of {self.source:,}" if self.source else ""
        return f"{self.what and self.what + ' '}{slots}({self.prompt:,} + {self.answer:,}) positions{over} of {each}"


@dataclass(frozen=True)
class Budget:
    """Bytes that the slots of all runners may take: those of requests, and those that a prefix cache keeps."""

    limit: int

    def __post_init__(self):
        if not (isinstance(self.limit, int) and not isinstance(self.limit, bool) and self.limit > 0):
            raise UserError(f"the budget must be a number of bytes above 0, got {self.limit!r}")

    @classmethod
    def default(cls, model: nn.Module) -> Budget:
        """Return half of what is free now on the model's device; on a CPU no more than a container's limit leaves."""
        return cls(max(int(SHARE * free_memory(model)), 1))

    def needs(self, request: Request, host: Host) -> int:
        """Return at most how many bytes the request comes to take, in the host's runner and in those of its guidance and its drafts."""
        return sum(demand.bytes for demand in demands(request, host))

    def check(self, request: Request, host: Host) -> int:
        """Return what `needs` does; raises UserError, with the numbers, for more than the budget."""
        if (needs := self.needs(request, host)) > self.limit:
            asked = ", ".join(map(str, demands(request, host)))
            raise UserError(
                f"request {request.index} needs {size(needs)} of memory ({asked}), more than the budget of {size(self.limit)}: "
                f"{remedy(request)}, or raise the budget"
            )
        return needs

    def positions(self, runner: Runner) -> int:
        """Return how many positions of one slot the budget holds, of a decoder; at most those that the model can have, for each of its slots."""
        return int(self.limit // position_bytes(runner))

    def describe(self, model: nn.Module, runner: Runner, positions: int = PASS, rows: int = ROWS) -> str:
        """Return in a line or two what the model takes, what its KV cache may come to, and at most what a pass takes beside them.

        A pass of so many positions of prompts and one each of so many rows. Where the budget is nearly nothing, another line says what that means.
        """
        fit = self.positions(runner)
        text = (
            f"model {size(model_bytes(model))}; KV cache up to {size(self.limit)}: {fit:,} positions of {size(position_bytes(runner))}; "
            f"a pass up to {size(pass_bytes(runner, positions, rows, fit))} more"
        )
        if fit < LITTLE:
            text += (
                f"\nonly {fit:,} positions fit: requests whose prompt and longest answer have more are refused, and few run side by side; "
                "end other programs, load the model in fewer bits, or give a larger budget"
            )
        return text


def demands(request: Request, host: Host) -> Iterator[Demand]:
    """Yield all slots that a request may come to hold: its sequences', those of guidance, and those of a draft model."""
    width, source = request.strategy.width(request), len(request.source_ids or ())
    answer = max(request.params.max_new_tokens, len(request.prefix_ids))
    yield Demand("", host.runner, width, len(request.prompt_ids), answer, source)
    if (guidance := request.guidance) is not None:
        yield Demand("and for guidance", guidance.runner or host.runner, width, len(guidance.prompt_ids), answer, 0)
    if (drafts := draft_slots(request, host)) is not None:
        runner, prompt, drafted = drafts
        yield Demand("and for drafts", runner, width, prompt, drafted, source)


def remedy(request: Request) -> str:
    """Say what makes a request smaller."""
    params, ways = request.params, ["shorten the prompt"]
    if params.max_new_tokens > 1:
        ways.insert(0, f"lower max_new_tokens={params.max_new_tokens}")
    names = {"num_beams": 1, "best_of": 1, "num_return_sequences": 1}
    if request.strategy.width(request) > 1:
        names = [name for name, one in names.items() if (getattr(params, name, None) or one) > one] or ["top_k"]
        ways.insert(1, f"lower {names[0]}={getattr(params, names[0], None)}")
    return ", ".join(ways)


def position_bytes(runner: Runner) -> float:
    """Return what a position of a long slot takes."""
    long = min(4_096, runner.limit or 4_096)
    return max(runner.bytes_for(long) / long, 1.0)


def model_bytes(model: nn.Module) -> int:
    """Return how many bytes a model's weights and buffers take; what several modules share counts once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in (*model.parameters(), *model.buffers())}
    return sum(storages.values())


def pass_bytes(runner: Runner, positions: int, rows: int, keys: int) -> int:
    """Return at most how many bytes a pass takes beside weights and cache: so many new positions of prompts, `rows` rows with a token each.

    Counted are what one layer makes of all its positions, which of a prompt's positions sees which of up to `keys` others (or as many as the
    model has), and logits of all rows in as many copies as filters and sampling make of them at most.
    """
    config, weight = runner.config, runner.model.get_input_embeddings().weight
    hidden, heads = weight.shape[1], getattr(config, "num_attention_heads", 1)
    kv_heads, width = getattr(config, "num_key_value_heads", None) or heads, getattr(config, "head_dim", None) or hidden // heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layer = 6 * hidden + 2 * (heads + 2 * kv_heads) * width + 4 * inner
    seen = min(keys, runner.limit or keys)
    scores = heads * SCORES if getattr(config, "attn_logit_softcapping", None) else 1  # written out for each head, or only which are masked
    item = max(weight.dtype.itemsize, 4)  # attention and norms compute in float32 at least
    return (positions + rows) * layer * item + positions * seen * MASK * scores + (rows * COPIES + 1) * runner.vocab_size * item


def free_memory(model: nn.Module) -> int:
    """Return how many bytes are free on the model's device; on a CPU no more than a container's limit leaves."""
    return free_on(next(iter(model.parameters())).device)


def free_on(device: torch.device) -> int:
    """Return how many bytes are free on a device; on a CPU no more than a container's limit leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory(), 0)
    return min([psutil.virtual_memory().available, *left_in_groups()])


def left_in_groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Return how many bytes each of the control groups of this process that has a limit leaves, on Linux; those of version 1 and 2."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = base / path.lstrip("/")
        for folder in [group, *group.parents][: len(group.parts) - len(base.parts) + 1]:
            left += left_in(folder, names)
    return left


def left_in(folder: Path, names: Sequence[str]) -> list[int]:
    """Return what a control group leaves, nothing where it has no limit; files that were read and can be forgotten count as free."""
    limit, used, forgettable = names
    try:
        most, taken = (folder / limit).read_text(encoding="utf-8").strip(), int((folder / used).read_text(encoding="utf-8"))
        stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return []
    return [] if most == "max" else [max(int(most) - taken + int(stat.get(forgettable, 0)), 0)]


def size(count: float) -> str:
    """Return a number of bytes in words: "45 KB", "2.1 GB"."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:,.1f} {unit}" if count < 9.95 and unit in ("GB", "TB") else f"{count:,.0f} {unit}"
