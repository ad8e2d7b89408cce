"""Contrastive learning: an encoder on texts that belong together, against all others of their batch.

Each text of a batch runs once, however often it occurs, and without padding. What is negative is what stands in the same micro-batch: gradient
accumulation and several processes add pairs to a step, and no negatives to a pair.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from typing_extensions import override

from ...data.errors import UserError
from ...data.packing import padded_rows
from ...data.similarity.pairs import Row, texts_of
from ...infer.encoders.embedding import length_read
from ...infer.encoders.readout import Dense, Readout
from ...infer.encoders.sentence_folder import write_readout
from ...infer.encoders.unpadded import unpad
from ..maths.contrastive_loss import info_nce
from ..maths.retrieval_metrics import places, retrieval_metrics, spearman
from ..run.crash_safe import CrashSafeCheckpoints, Provenance
from .build import Stage, labelled_size

Rows = Sequence[Row]
Text = tuple[int, ...]
AT = 10  # of recall@k


class PairCollator:
    """Rows to a batch of their texts, each once, the longest first: input_ids and attention_mask, [texts, longest], padded on the right.

    `anchors` [n] and `candidates` [m] are places among the texts: of the rows' positives first, then of all their negatives. `left_out` [n, m] says
    which candidates are no negatives of an anchor: those that belong to it by another row of the batch, or are the anchor's own text.
    """

    def __init__(self, pad_token_id: int):
        self.pad = pad_token_id

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        each = [texts_of(row) for row in rows]
        texts = sorted({text for found in each for text in found}, key=lambda text: (-len(text), text))
        place = {text: number for number, text in enumerate(texts)}
        positives = [found[1] for found in each]
        candidates = positives + [text for found in each for text in found[2:]]
        belonging: dict[Text, set[Text]] = {}
        for anchor, positive, *_ in each:
            belonging.setdefault(anchor, {anchor}).add(positive)
        left_out = torch.tensor([[text in belonging[found[0]] for text in candidates] for found in each])
        left_out[torch.arange(len(each)), torch.arange(len(each))] = False
        return {
            **padded_rows(texts, self.pad), "anchors": torch.tensor([place[found[0]] for found in each]),
            "candidates": torch.tensor([place[text] for text in candidates]), "left_out": left_out,
        }  # fmt: skip


class ContrastiveTrainer(CrashSafeCheckpoints, Trainer):
    """Train an encoder by `info_nce`: the mean over all pairs of the accumulated batch, of all processes.

    Logs `left_out`, how many texts a pair did not count as negatives because they belong to its anchor. An evaluation gives the loss over
    held-out pairs in batches of `per_device_eval_batch_size`, and of all held-out texts `recall@1`, `recall@10` and `mrr`: where a pair's text stands among
    those of all pairs. Where the pairs have scores, `spearman` correlates these with the cosines of all, and the others are of the pairs at or above `min_score`.
    Saved is a folder that sentence-transformers reads.
    """

    loss_is_scaled_for_ga = True  # by the pairs of the whole accumulated batch

    def __init__(
        self, model, args: TrainingArguments, *, readout: Readout, temperature: float, symmetric: bool = False, min_score: float | None = None, **kwargs: Any
    ):
        super().__init__(model, args, **kwargs)
        self.readout, self.temperature, self.symmetric, self.min_score = readout, temperature, symmetric, min_score
        self._left_out = [0, 0]  # candidates that were no negatives, and pairs, since the last log

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """The pairs of the whole accumulated batch of all processes."""
        return self.accelerator.reduce(torch.tensor(sum(len(batch["anchors"]) for batch in batch_samples), device=device))

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch: Tensor | None = None):
        """This batch's part of the mean over the accumulated batch, a scalar."""
        total = self._get_num_items_in_batch([inputs], self.args.device) if num_items_in_batch is None else num_items_in_batch
        losses = self.losses(model, inputs)
        self._left_out = [self._left_out[0] + inputs["left_out"].sum().item(), self._left_out[1] + len(losses)]
        loss = losses.sum() / total * self.args.world_size  # processes average their gradients
        return (loss, {"losses": losses}) if return_outputs else loss

    def mean_loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The mean over a batch's pairs, a scalar: what a plan's timed step goes by."""
        return self.losses(model, batch).mean()

    def losses(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of every pair of a batch, [pairs], in float32 at least."""
        vectors = self.vectors(model, batch)
        return info_nce(vectors[batch["anchors"]], vectors[batch["candidates"]], batch["left_out"], self.temperature, self.symmetric)

    def vectors(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """The vectors of a batch's texts, [texts, size], in float32 at least."""
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return self.readout(states, batch["attention_mask"])

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._left_out[1]:
            logs["left_out"] = self._left_out[0] / self._left_out[1]
            self._left_out = [0, 0]
        super().log(logs, start_time)

    # Evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The loss, and how well the held-out texts are found, as the class says."""
        return self.report(self.figures(self.eval_dataset if eval_dataset is None else eval_dataset), metric_key_prefix)

    def figures(self, rows: Rows) -> dict[str, float]:
        """What `evaluate` reports."""
        texts, belong = self.vectors_of(rows), self.belonging(rows)
        measured = self.measured(rows, belong, *texts)
        with self.in_evaluation() as model:

            def sums_of(some: list[Row]) -> Tensor:
                losses = self.losses(model, self._prepare_inputs(self.data_collator(some)))
                return torch.stack([losses.sum().cpu(), torch.tensor(float(len(losses)))])

            loss, count = self.sums_over(belong, 2, sums_of)
        return {"loss": loss / count, **measured} if count else measured

    def belonging(self, rows: Rows) -> list[Row]:
        """The rows whose two texts belong together: all, of those with a score the ones at or above `min_score`."""
        return [row for row in rows if "score" not in row or self.min_score is not None and row["score"] >= self.min_score]

    def vectors_of(self, rows: Rows) -> tuple[dict[Text, int], Tensor]:
        """The texts of rows by their places, and their vectors, [texts, size] of length 1 in float64, in every process."""
        texts = sorted({text for row in rows for text in texts_of(row)}, key=lambda text: (-len(text), text))
        with self.in_evaluation() as model:

            def values(some: list[Text]) -> Tensor:
                return self.vectors(model, self._prepare_inputs(padded_rows(some, self.data_collator.pad)))

            size = self.readout.size(self.model.config.hidden_size)
            found = self.values_over(texts, values, size)
        return {text: place for place, text in enumerate(texts)}, F.normalize(found, dim=-1)

    def measured(self, rows: Rows, belong: Rows, place: Mapping[Text, int], vectors: Tensor) -> dict[str, float]:
        """Where each pair's text stands among all that are no anchors alone, and how scores and cosines go together."""
        told: dict[str, float] = {}
        if belong:
            found = [texts_of(row) for row in belong]
            documents = sorted({place[text] for row in rows for text in texts_of(row)[1:]})
            among = {each: number for number, each in enumerate(documents)}
            own = [among[place[each[1]]] for each in found]
            relevant: dict[Text, set[int]] = {}
            for each, number in zip(found, own, strict=True):
                relevant.setdefault(each[0], {among[place[each[0]]]} if place[each[0]] in among else set()).add(number)
            beside = [sorted(relevant[each[0]] - {number}) for each, number in zip(found, own, strict=True)]
            queries = vectors[[place[each[0]] for each in found]]
            told |= retrieval_metrics(places(queries, vectors[documents], own, beside), AT)
        if scored := [row for row in rows if "score" in row]:
            left, right = (vectors[[place[texts_of(row)[side]] for row in scored]] for side in (0, 1))
            told["spearman"] = spearman((left * right).sum(1), torch.tensor([row["score"] for row in scored]))
        return told

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            write_readout(Path(output_dir), self.readout, self.model.config.hidden_size)


CONTRASTIVE = Stage(ContrastiveTrainer, "pairs of texts to train on", labelled_size, unpad, generates=False, left_to_right=False)


def contrastive(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, args: TrainingArguments, *, resume: str | None = None, **options: Any
) -> ContrastiveTrainer:
    """Train an encoder on rows of texts that belong together; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `contrastive_trainer`.
    """
    trainer = contrastive_trainer(model, tokenizer, rows, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def contrastive_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    *,
    readout: Readout = Readout(),
    eval_rows: Rows | None = None,
    temperature: float = 0.05,
    symmetric: bool = False,
    min_score: float | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> ContrastiveTrainer:
    """Build the trainer of `contrastive`; the model, one without a head, is changed in place (its attention).

    Rows are those of `pair_rows`. `readout` is how vectors are made, saved with the model. Raises UserError for rows, models or settings that do not
    go together.
    """
    if not temperature > 0:
        raise UserError(f"temperature must be above 0, got {temperature}")
    if args.per_device_train_batch_size < 2 and all(len(row["lengths"]) < 3 for row in rows):
        raise UserError("per_device_train_batch_size 1 leaves a pair without negatives: set it to 2 at least, the more the better")
    if any(isinstance(step, Dense) for step in readout.steps):
        raise UserError("the model has a Dense layer behind its pooling, which Seodang does not train: use a model without")
    CONTRASTIVE.check(model, rows, eval_rows, max_length=length_read(model, tokenizer, readout.max_length))
    model = CONTRASTIVE.prepare(model, tokenizer, None, args)
    return CONTRASTIVE.build(
        model, tokenizer, args, rows, eval_rows, readout=readout, temperature=temperature, symmetric=symmetric, min_score=min_score,
        provenance=provenance, callbacks=callbacks, data_collator=PairCollator(tokenizer.pad_token_id or 0),
    )  # fmt: skip
