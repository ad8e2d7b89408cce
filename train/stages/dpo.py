"""DPO and its kin: the prompt is computed once, chosen and rejected answers are branches of it.

The gradient is that of the plain computation, for any number of answers a prompt: every pair of a ranked list counts as one. Sums run
over the whole accumulated batch, of all processes, so accumulating gradients changes nothing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from typing_extensions import override

from ...data.errors import UserError
from ...data.packing import padding_id
from ...data.preference_rows import preference_pairs
from ...infer.kernels.device import in_float64
from ..attention.tree import sum_by_branch
from ..maths.logprobs import CHUNK
from ..maths.preference_losses import LOSSES, PairScores, PreferenceSettings, implicit_rewards
from ..models.branch_logprobs import choose_branch_collator, patch_branch_logprobs
from ..models.reference import Reference, check_reference, compute_distributed
from ..run.crash_safe import CrashSafeCheckpoints, Provenance
from .build import Rows, Stage, ranked_size

REFERENCE_TIMES = ("step", "before")


class PairCollator:
    """Rows to a batch with `preference_pairs` [pairs, 2], the places among all branches of each better and worse answer.

    Rows that carry `reference`, the reference's log-probability of each branch, give `reference` [branches].
    """

    def __init__(self, collate: Callable[[Rows], dict[str, Any]]):
        self.collate = collate

    def __call__(self, rows: Rows) -> dict[str, Any]:
        found, before = [], 0
        for row in rows:
            found += [(before + better, before + worse) for better, worse in preference_pairs(row["ranks"])]
            before += len(row["branches"])
        batch = {**self.collate(rows), "pairs": torch.tensor(found)}
        if "reference" in rows[0]:
            batch["reference"] = torch.tensor([value for row in rows for value in row["reference"]])
        return batch


class DpoTrainer(CrashSafeCheckpoints, Trainer):
    """The Trainer with a loss of pairs; `reference` and `reference_time` as in `dpo_trainer`.

    Logs loss, rewards/chosen, rewards/rejected, rewards/margins and rewards/accuracies; an evaluation gives eval_loss, eval_accuracy,
    eval_margin, exact over all held-out pairs, and what `sample` measures.
    """

    loss_is_scaled_for_ga = True  # by the counts of the whole accumulated batch
    not_for_the_model = ("pairs", "reference")  # of a batch

    def __init__(self, model, args, *, settings: PreferenceSettings, reference, reference_time: str, sample=None, provenance=None, **kwargs: Any):
        super().__init__(model, args, provenance=provenance, **kwargs)
        self.settings, self.kind, self.sample = settings, LOSSES[settings.loss], sample
        self.reference = Reference(model, reference) if self.kind.needs_reference else None
        self._sums: dict[str, float] = {}
        self._to_score = self.reference is not None and reference_time == "before"

    def train(self, *args, **kwargs):
        """As the Trainer's, after the reference has scored the rows where it is to do so once."""
        self.score_before()  # before a checkpoint is loaded into the model
        return super().train(*args, **kwargs)

    def score_before(self) -> None:
        """Let the reference score all rows, where it is to do so once; not before the numbers are needed, for it takes a pass over the data."""
        if self._to_score:
            self._to_score = False
            self.train_dataset, self.eval_dataset = self._scored_before(self.train_dataset), self._scored_before(self.eval_dataset)
            if self.reference.given is not None:  # its work is done: let go of the copy; the base beneath an adapter costs nothing
                self.reference = None

    def _scored_before(self, rows: Rows | None) -> list[dict[str, Any]] | None:
        """Rows with the reference's log-probability of each branch."""
        if rows is None:
            return None
        model = self.accelerator.unwrap_model(self.model).to(self.args.device)

        def compute(some: Rows) -> tuple[Tensor, ...]:
            batch = self._prepare_inputs(self.data_collator(some))
            with self.accelerator.autocast():
                sums = self._reference_sums(model, batch)
            return sums.split([len(row["branches"]) for row in some])

        found = compute_distributed(compute, rows, self.args.per_device_train_batch_size, self.args.process_index, self.args.world_size)
        return [{**row, "reference": values} for row, values in zip(rows, found, strict=True)]

    def _reference_sums(self, model, batch: dict[str, Any]) -> Tensor:
        return self.branch_sums(self.reference.logprobs(model, self._model_inputs(batch)), batch)

    def branch_sums(self, logprobs: Tensor, batch: dict[str, Any]) -> Tensor:
        """The log-probability of each of a batch's branches, [branches], from what the model says of it."""
        return sum_by_branch(logprobs, batch["branch_lengths"])

    def _model_inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in batch.items() if key not in self.not_for_the_model}

    # Loss

    @override
    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """How many pairs, and chosen answers' tokens, the whole accumulated batch of all processes has: [2]."""
        counts = [0.0, 0.0]
        for batch in batch_samples:
            lengths = torch.tensor(batch["branch_lengths"])
            counts[0] += len(batch["pairs"])
            counts[1] += lengths[batch["pairs"][:, 0].cpu()].sum().item()
        return self.accelerator.reduce(torch.tensor(counts, device=device))

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch: Tensor | None = None):
        """This batch's part of the loss of the accumulated batch, a scalar; its rewards go to the next log."""
        counts = self._get_num_items_in_batch([inputs], self.args.device) if num_items_in_batch is None else num_items_in_batch
        scores = self._pair_scores(model, inputs)
        self._record(scores)
        return self._loss_sum(scores, counts) * self.args.world_size  # processes average their gradients

    def _loss_sum(self, scores: PairScores, counts: Tensor) -> Tensor:
        """This batch's part of the loss: the sum over its pairs over all pairs, and ORPO's likelihood over all chosen tokens."""
        loss = self.kind(scores, self.settings).sum() / counts[0]
        return loss - scores.chosen.sum() / counts[1] if self.kind.adds_chosen_nll else loss

    def _rewards(self, scores: PairScores) -> tuple[Tensor, Tensor]:
        """The rewards that the policy stands for of each pair's answers: without a reference, those of a mean token."""
        beta = self.settings.beta
        if self.kind.needs_reference:
            return implicit_rewards(scores.chosen, scores.ref_chosen, beta), implicit_rewards(scores.rejected, scores.ref_rejected, beta)
        means = scores.chosen / scores.chosen_lengths, scores.rejected / scores.rejected_lengths
        return implicit_rewards(means[0], None, beta), implicit_rewards(means[1], None, beta)

    def _pair_scores(self, model, batch: dict[str, Any]) -> PairScores:
        """Sums of log-probabilities of each pair's answers, with the reference's where the loss has one."""
        lengths = torch.tensor(batch["branch_lengths"], device=batch["pairs"].device)
        better, worse = batch["pairs"].unbind(1)
        reference = batch.get("reference")
        if reference is None and self.reference is not None:
            reference = self._reference_sums(self.accelerator.unwrap_model(model), batch)
        sums = self.branch_sums(model(**self._model_inputs(batch)).logprobs, batch)
        of_reference = (None, None) if reference is None else (reference[better], reference[worse])
        return PairScores(sums[better], sums[worse], *of_reference, lengths[better], lengths[worse])

    def _record(self, scores: PairScores) -> None:
        """Add a batch's rewards to what the next log averages."""
        chosen, rejected = (reward.detach() for reward in self._rewards(scores))
        for name, value in (("chosen", chosen), ("rejected", rejected), ("margins", chosen - rejected), ("accuracies", chosen > rejected)):
            self._sums[name] = self._sums.get(name, 0.0) + in_float64(value).sum().item()
        self._sums["pairs"] = self._sums.get("pairs", 0.0) + len(chosen)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the rewards since the last log, means over the pairs of all processes."""
        if "loss" in logs and self._sums:
            sums = self.sums_by_name(self._sums)
            count = sums.pop("pairs")
            logs |= {f"rewards/{name}": value / count for name, value in sums.items()}
            self._sums.clear()
        super().log(logs, start_time)

    # Evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss, accuracy and margin of implicit rewards over all held-out pairs, and what `sample` measures."""
        metrics = self.measure(eval_dataset)
        if self.sample is not None:
            with self.in_evaluation():
                metrics |= self.sampled(self.sample)
        return self.report(metrics, metric_key_prefix)

    def measure(self, rows: Rows | None = None) -> dict[str, float]:
        """The same three numbers, of the held-out rows or of others; a row counts once, whatever the number of processes.

        Raises UserError for other rows once a reference that was to score before training is let go of.
        """
        if rows is None:
            self.score_before()
            rows = self.eval_dataset
        elif self.kind.needs_reference and self.reference is None and not all("reference" in row for row in rows):
            raise UserError(
                "these rows were not scored before training, and the reference is let go of: measure them before, or trainer.train_dataset or "
                'eval_dataset, which have its scores, or set reference_time="step"'
            )
        with self.in_evaluation() as model:

            def sums_of(some: list[dict[str, Any]]) -> Tensor:
                scores = self._pair_scores(model, self._prepare_inputs(self.data_collator(some)))
                chosen, rejected = self._rewards(scores)
                losses = self.kind(scores, self.settings)
                parts = [losses, chosen > rejected, chosen - rejected, torch.ones_like(losses), scores.chosen, scores.chosen_lengths]
                return torch.stack([in_float64(part).sum() for part in parts])

            loss, right, margin, count, likelihood, tokens = self.sums_over(rows, 6, sums_of)
        nll = -likelihood / tokens if self.kind.adds_chosen_nll else 0.0
        return {"loss": loss / count + nll, "accuracy": right / count, "margin": margin / count}


DPO = Stage(DpoTrainer, "ranked answers to train on", ranked_size, patch_branch_logprobs)


def dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    settings: PreferenceSettings | None = None,
    *,
    resume: str | None = None,
    **options: Any,
) -> DpoTrainer:
    """Train on ranked answers; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `dpo_trainer`.
    """
    trainer = dpo_trainer(model, tokenizer, rows, args, settings, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def dpo_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    settings: PreferenceSettings | None = None,
    *,
    eval_rows: Rows | None = None,
    lora: LoraConfig | None = None,
    reference: PreTrainedModel | None = None,
    reference_time: str = "step",
    sample: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    loss_chunk: int = CHUNK,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> DpoTrainer:
    """Build the trainer of `dpo`; the model is changed in place (its attention, its forward, its adapter).

    Rows hold `prompt_ids`, `branches` and `ranks`, as `prepare_preferences` makes them. The reference is the model before training, unless one
    is given: with `lora` the weights beneath the adapter, else a copy. `reference_time`: "step" scores with it at every step, "before" once,
    so that no second model is kept. `loss_chunk` as in `sft_trainer`. Raises UserError for rows, models or settings that do not go together.
    """
    settings = settings or PreferenceSettings()
    DPO.check(model, rows, eval_rows, lora=lora)
    check_reference_time(reference_time)
    if reference is not None:
        check_reference(model, reference)
    collate = choose_branch_collator(model, padding_id(tokenizer))
    model = DPO.prepare(model, tokenizer, lora, args, loss_chunk)
    return DPO.build(
        model, tokenizer, args, rows, eval_rows, settings=settings, reference=reference, reference_time=reference_time, sample=sample,
        provenance=provenance, callbacks=callbacks, data_collator=PairCollator(collate),
    )  # fmt: skip


def check_reference_time(reference_time: str) -> None:
    """Raise UserError for a time at which no reference scores."""
    if reference_time not in REFERENCE_TIMES:
        raise UserError(f"reference_time must be one of {', '.join(REFERENCE_TIMES)}, got {reference_time!r}")
