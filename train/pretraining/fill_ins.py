"""What an encoder, or an encoder-decoder, fills into held-out text while it is trained."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.labels import IGNORE_INDEX
from ...data.literal import literal_text
from ...data.packing import records_of
from ...data.text.corruption import held_out_noise
from ...data.text.rows import NUMBER, SpanRows
from ...data.text.span_corruption import LEAST, SpanCorruption, spans_of
from ...infer import SamplingParams, generate
from ...infer.runners.architecture import transformers_model
from ...infer.runners.encoder_decoder import position_limit
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
        text = partial(said_text, self.tokenizer)
        parts = []
        for hidden, places in groupby(range(len(hides)), key=hides.__getitem__):
            places = list(places)
            if not hidden:
                parts.append(text(piece["input_ids"][place] for place in places))
                continue
            parts.append(beside(text(piece["labels"][place] for place in places), text([next(said) for _ in places])))
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class SpanSampler:
    """Called at each evaluation: shows held-out texts with each hidden span and what the model writes there, `[a film > the movie]`."""

    tokenizer: PreTrainedTokenizerBase
    rows: SpanRows
    corruption: SpanCorruption
    count: int  # texts
    show: Callable[[str], None]

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        pairs = [self.corruption.corrupt(np.array(ids), held_out_noise(number)) for number, ids in self.texts()]
        room = position_limit(transformers_model(model), "decoder") or math.inf  # of which one is what the answer begins with
        settings = [SamplingParams(max_new_tokens=min(len(target) + SHOWN // 2, room - 1)) for _, target in pairs]
        results = generate(model, self.tokenizer, [source for source, _ in pairs], settings, on_error="raise")
        for (source, target), result in zip(pairs, results, strict=True):
            self.show(self.filled(source, target, result.ids))
        return {}

    def texts(self) -> list[tuple[int, list[int]]]:
        """The first of the rows' pieces, each with the number of its row, no longer than is shown."""
        pieces = ((row[NUMBER], row["input_ids"][: row["lengths"][0]][:SHOWN]) for row in self.rows)
        return list(islice(((number, ids) for number, ids in pieces if len(ids) >= LEAST), self.count))

    def filled(self, source: list[int], target: list[int], said: list[int]) -> str:
        """A source as text, each of its spans beside what was said of it."""
        right, guess = spans_of(target, self.corruption.sentinels), spans_of(said, self.corruption.sentinels)
        parts = []
        for at, ids in groupby(source, key=lambda id: id if id in right else None):
            parts.append(said_text(self.tokenizer, ids) if at is None else beside(*(said_text(self.tokenizer, spans.get(at, ())) for spans in (right, guess))))
        return " ".join(filter(None, parts))


def said_text(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    """What ids say, special tokens left out but for the one that stands for what is unknown."""
    left_out = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
    return literal_text(tokenizer, [id for id in ids if id not in left_out])


def beside(right: str, guess: str) -> str:
    """What is right and what was said, once where they are the same."""
    return f"[{right} > {guess}]" if right != guess else f"[{right}]"
