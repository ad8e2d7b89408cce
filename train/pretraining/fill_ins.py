"""What an encoder fills into held-out text while it is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.labels import IGNORE_INDEX
from ...data.literal import literal_text
from ...data.packing import records_of
from ...infer.runners.architecture import transformers_model
from ..models.masked_loss import head_logits, hidden_at_labels
from .collator import CorruptingCollator

SHOWN = 40  # tokens of a piece


@dataclass(frozen=True)
class FillInSampler:
    """Called at each evaluation: shows held-out pieces with each hidden token and what the model says there, `[film > movie]`."""

    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[dict[str, Any]]
    collator: CorruptingCollator
    count: int  # pieces
    show: Callable[[str], None]

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        for piece in self.pieces():
            self.show(self.filled(model, piece))
        return {}

    def pieces(self) -> list[dict[str, list[int]]]:
        """The first of the held-out pieces in which something is hidden, cut to so many tokens, no longer than is shown."""
        found: list[dict[str, list[int]]] = []
        for row in self.rows:
            corrupted = self.collator.corrupted_held_out(row)
            for piece in records_of(corrupted):
                cut = {name: values[:SHOWN] for name, values in piece.items()}
                if len(found) < self.count and any(label != IGNORE_INDEX for label in cut["labels"]):
                    found.append(cut)
            if len(found) >= self.count:
                break
        return found

    @torch.no_grad()
    def filled(self, model: PreTrainedModel, piece: dict[str, list[int]]) -> str:
        """A piece as text."""
        inner = transformers_model(model)
        batch = self.collator.layout.batch([piece])
        device = next(inner.parameters()).device
        given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
        hidden, _ = hidden_at_labels(inner, **given)
        said = iter(head_logits(inner, hidden).argmax(dim=-1).tolist())
        hides = [label != IGNORE_INDEX for label in piece["labels"]]
        text = lambda ids: literal_text(self.tokenizer, [id for id in ids if id not in self.tokenizer.all_special_ids or id == self.tokenizer.unk_token_id])
        parts = []
        for hidden, places in groupby(range(len(hides)), key=hides.__getitem__):
            places = list(places)
            if not hidden:
                parts.append(text(piece["input_ids"][place] for place in places))
                continue
            right, guess = text(piece["labels"][place] for place in places), text([next(said) for _ in places])
            parts.append(f"[{right} > {guess}]" if right != guess else f"[{right}]")
        return " ".join(filter(None, parts))
