"""Tagging: a trunk and a head that judges every token, on texts with entities."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from ...data.errors import UserError
from ...data.files.sources import at_a_time
from ...data.labels import IGNORE_INDEX
from ...data.packing import pad_right
from ...data.tagging.rows import Row, entities_from
from ...data.tagging.schemes import Span, label_set
from ...infer.encoders.classify import names_of, refuse_broken, room_for
from ...infer.encoders.tagging import check_tagger, check_tags, tags_and_spans, transitions
from ...infer.encoders.unpadded import unpad
from ...infer.filters.logits import wide
from ..maths.classification_metrics import ClassifierMetrics
from ..maths.entity_metrics import entity_decisions, entity_metrics
from ..run.crash_safe import Provenance
from .build import Size, Stage, labelled_size
from .classification import HeadCollator, HeadTrainer, beside_head

Rows = Sequence[Row]
MEASURED = ("loss", "precision", "recall", "f1", "macro_f1")  # what an evaluation gives


class WindowCollator(HeadCollator):
    """Windows to a batch, with labels of the same shape, [windows, longest]."""

    def labels_of(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """The place of each token's tag, -100 where it has none."""
        return pad_right([window["labels"] for window in rows], IGNORE_INDEX)


class TaggerTrainer(HeadTrainer):
    """Train a tagger on the mean loss over the tokens that have a tag.

    An evaluation is over texts, with all their windows: the loss, and precision, recall and F1 of the entities as they lie in the texts.
    """

    def __init__(self, model, args: TrainingArguments, *, names: Sequence[str], **kwargs: Any):
        super().__init__(model, args, **kwargs)
        self.names, self.labels = list(names), label_set(names)
        self._allowed = transitions(self.names)

    def weights_of(self, labels: Tensor) -> Tensor:
        """1 where a token has a tag, else 0."""
        return (labels != IGNORE_INDEX).float()

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of every token, [windows, longest], in float32 at least; 0 where it has no tag."""
        return F.cross_entropy(wide(logits).mT, labels, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=self.args.label_smoothing_factor)

    def predicted(self, texts: Rows) -> Iterator[tuple[Row, list[Span], Tensor]]:
        """Each of some texts with the entities that the model finds in it, and the losses of what gets a tag."""
        windows = [(number, window) for number, text in enumerate(texts) for window in text["windows"]]
        windows.sort(key=lambda each: -len(each[1]["input_ids"]))  # as the collator does; of a text none is shorter than the next, so that they stay in order
        of: list[list[tuple[Tensor, Tensor]]] = [[] for _ in texts]
        with self.in_evaluation() as model:
            for some in at_a_time(windows, self.args.per_device_eval_batch_size):
                batch = self._prepare_inputs(self.data_collator([window for _, window in some]))
                labels = batch.pop("labels")
                logits = wide(model(**batch).logits)
                losses, asked = self.losses(logits, labels), labels != IGNORE_INDEX
                for row, (number, _) in enumerate(some):
                    of[number].append((logits[row][asked[row]].cpu(), losses[row][asked[row]].cpu()))
        for text, found in zip(texts, of, strict=True):
            logits, losses = (torch.cat(parts) for parts in zip(*found, strict=True))
            _, spans = tags_and_spans(refuse_broken(logits, "logits"), self.names, self._allowed)
            yield text, entities_from(spans, text["units"]), losses

    def measured(self, texts: Rows) -> tuple[ClassifierMetrics, float]:
        """What is measured on texts, and the mean loss."""
        places = {label: place for place, label in enumerate(self.labels)}

        def sums(some: list[Row]) -> Tensor:
            found, lost, count = torch.zeros(len(places), 3), 0.0, 0
            for text, entities, losses in self.predicted(some):
                found += entity_decisions([Span(*entity) for entity in text["entities"]], entities, places)
                lost, count = lost + losses.sum().item(), count + len(losses)
            return torch.cat([found.flatten(), torch.tensor([lost, count])])

        *decisions, lost, count = self.sums_over(texts, 3 * len(places) + 2, sums)
        return entity_metrics(torch.tensor(decisions).round().long().view(-1, 3)), lost / count

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The loss over all held-out texts, and how well their entities are found."""
        found, loss = self.measured(self.eval_dataset if eval_dataset is None else eval_dataset)
        return self.report({"loss": loss, **found.values}, metric_key_prefix)


def windows_size(row: Row, where: str) -> Size:
    """Of a window, or of a text the longest of its windows. Raises UserError for one without tokens."""
    sizes = [labelled_size(window, where) for window in row.get("windows") or [row]]
    return max(length for length, _ in sizes), max(highest for _, highest in sizes)


TAGGING = Stage(TaggerTrainer, "texts with entities to train on", windows_size, unpad, generates=False, left_to_right=False)


def tagging(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, args: TrainingArguments, *, resume: str | None = None, **options: Any
) -> TaggerTrainer:
    """Train a tagger on the windows of texts; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `tagger_trainer`.
    """
    trainer = tagger_trainer(model, tokenizer, rows, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def tagger_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    *,
    eval_rows: Rows | None = None,
    lora: LoraConfig | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TaggerTrainer:
    """Build the trainer of `tagging`; the model is changed in place (its attention, its padding, its adapter).

    `model` is an AutoModelForTokenClassification whose labels are tags of IOB2. Rows and held-out rows are those of `tagging_rows`; a row to train on
    is each window of theirs. Batches are computed without their padding where the architecture allows it. With `lora`, the adapter and the
    head are trained and saved. Raises UserError for rows, models or settings that do not go together.
    """
    names = names_of(check_tagger(model).config)
    check_tags(names)
    windows = [window for row in rows for window in row["windows"]]
    check_windows([*windows, *(window for row in eval_rows or () for window in row["windows"])], len(names))
    TAGGING.check(model, windows, eval_rows, lora=lora, max_length=room_for(model, tokenizer))
    lora = None if lora is None else beside_head(lora, model, "TOKEN_CLS")
    collator = WindowCollator(tokenizer.pad_token_id or 0, typed="token_type_ids" in inspect.signature(model.forward).parameters)
    model = TAGGING.prepare(model, tokenizer, lora, args)
    return TAGGING.build(model, tokenizer, args, windows, eval_rows, names=names, provenance=provenance, callbacks=callbacks, data_collator=collator)


def check_windows(windows: Sequence[Mapping[str, Any]], tags: int) -> None:
    """Raise UserError for a window that teaches nothing, one with another number of labels than tokens, and a label that the head has no output for."""
    for number, window in enumerate(windows, start=1):
        where, labels = window.get("where") or f"row {number}", window["labels"]
        if len(labels) != len(window["input_ids"]):
            raise UserError(f"{where}: {len(window['input_ids'])} tokens and {len(labels)} labels: give each token one, {IGNORE_INDEX} where it has no tag")
        if wrong := [label for label in labels if label != IGNORE_INDEX and not 0 <= label < tags]:
            raise UserError(f"{where}: the label {wrong[0]} is no place among {tags} tags")
        if all(label == IGNORE_INDEX for label in labels):
            raise UserError(f"{where}: no token has a tag: leave it out")
