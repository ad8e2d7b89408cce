"""What a step need not hold: whether activations are computed twice, and of how many positions there are logits at a time, chosen for the memory that there is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ...infer.runners.architecture import transformers_model
from ..maths.logprobs import CHUNK
from ..stages.dpo import DpoTrainer
from ..stages.plan import tokens_of
from ..stages.sft import SftTrainer
from .peak import Measured, MemoryPlan, measure, measured_again, memory_plan
from .sharding import Layout
from .step import longest

CHUNKS = (CHUNK, 256, 128, 64)  # positions, the quickest first; with fewer the head's products wait for memory
LONG = 16_384  # tokens of a micro-batch from which on a run looks at the memory that is free
WRITTEN = 32  # bytes a position and token that a chunk takes at most: logits, capped and in float32, their softmax and their gradients
GIB = 2**30


@dataclass(frozen=True)
class Given:
    """What is settled, by whoever runs it, and so is kept; None where it is to be chosen."""

    checkpointing: bool | None = None
    chunk: int | None = None


@dataclass(frozen=True)
class Choice:
    """What was chosen, the peak that a device then has, in bytes, and the peak of the quickest choice there was."""

    checkpointing: bool
    chunk: int
    plan: MemoryPlan
    quickest: float
    memory: int
    given: Given

    @property
    def fits(self) -> bool:
        """Whether the peak fits into the memory."""
        return self.plan.peak <= self.memory

    def told(self, of: str) -> str:
        """The choice as options, and why, in one line; `of` says what memory it is."""
        kept = [name for name, value in (("the first", self.given.checkpointing), ("the second", self.given.chunk)) if value is not None]
        settled = "" if not kept else " (both as given)" if len(kept) == 2 else f" ({kept[0]} as given)"
        peak, room = f"{self.plan.peak / GIB:.2f}", f"{self.memory / GIB:.2f} GiB {of}"
        if not self.fits:
            why = f"this takes least, {peak} GiB, more than {room}"
        elif self.plan.peak == self.quickest:
            why = f"this is quickest and takes {peak} of {room}"
        else:
            why = f"this takes {peak} of {room}, what is quicker {self.quickest / GIB:.2f}"
        return f"--activation_checkpointing {str(self.checkpointing).lower()} --loss_chunk {self.chunk}{settled}: {why}"


def can_be_fitted(trainer: Any) -> bool:
    """Whether a stage's loss reads the head by chunks that can be chosen."""
    return isinstance(trainer, (SftTrainer, DpoTrainer))


def fitted(trainer: Any, layout: Layout, memory: int, given: Given) -> Choice:
    """The quickest way to make the trainer's dearest step that fits into so many bytes of a device, or where none does the one that takes least.

    The trainer's models are on the meta device; its arguments and its model's `loss_chunk` are left as chosen. Smaller chunks are tried before activations
    are computed twice, which takes about a third more time.
    """
    model, ways = transformers_model(trainer.model), (False, True) if given.checkpointing is None else (given.checkpointing,)
    chunks = CHUNKS if given.chunk is None else (given.chunk,)
    vocab = model.get_output_embeddings().weight.shape[0]
    measured: Measured | None = None
    quickest: float | None = None

    def planned(checkpointing: bool, chunk: int) -> Choice:
        nonlocal measured, quickest
        trainer.args.activation_checkpointing, model.loss_chunk = checkpointing, chunk
        measured = measure(trainer, layout.devices) if measured is None else measured_again(trainer, measured, layout.devices)
        plan = memory_plan(measured, layout)
        quickest = plan.peak if quickest is None else quickest
        return Choice(checkpointing, chunk, plan, quickest, memory, given)

    for checkpointing in ways:
        for chunk in chunks:
            choice = planned(checkpointing, chunk)
            if choice.fits:
                return choice
            if choice.plan.peak - memory > WRITTEN * vocab * (chunk - chunks[-1]):  # no smaller chunk spares so much
                break
    least = ways[-1], chunks[-1]
    return choice if (choice.checkpointing, choice.chunk) == least else planned(*least)


def tokens_at_once(rows: Iterable[Any], size: int) -> int:
    """At most how many tokens go through the model at a time: those of the longest rows, `size` of them; of rows that are made when asked for as they say."""
    known = getattr(rows, "longest", None)
    return size * known if known else sum(map(tokens_of, longest(rows, size)))
