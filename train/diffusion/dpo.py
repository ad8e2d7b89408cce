"""DPO and its kin of a diffusion model: an answer's log-probability is an estimate of its bound (ELBO), by masks that all that is compared shares.

Zhu et al. 2025, "LLaDA 1.5: Variance-Reduced Preference Optimization": the loss sees a difference of four estimates, whose noise cancels where
policy and reference have the same masks, and where all draws go to times of their own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from ...data.errors import UserError
from ...data.packing import padding_id
from ...infer.diffusion.masking import Draws
from ...infer.runners.architecture import transformers_model
from ...infer.runners.paradigm import Diffusion, diffusion_of, refuse_mask
from ..maths.preference_losses import PreferenceSettings
from ..models.branch_logprobs import patch_branch_logprobs
from ..models.reference import check_reference
from ..run.crash_safe import Provenance
from ..stages.build import Rows, Stage, ranked_size
from ..stages.dpo import DpoTrainer, PairCollator, check_reference_time
from ..stages.plan import steps_of
from .adapt import refuse_attention, refuse_one_way
from .masked_pairs import MaskedBranches, NumberedPairs, numbered
from .trainer import OfDiffusion, diffusion_required, set_attention

DRAWS = 8  # masks an answer, as in LLaDA 1.5


class DiffusionDpoTrainer(OfDiffusion, DpoTrainer):
    """The trainer of DPO on masked copies of the answers; what it logs and measures is the same, of estimates."""

    not_for_the_model = (*DpoTrainer.not_for_the_model, "weights", "owners")

    def branch_sums(self, logprobs: Tensor, batch: dict[str, Any]) -> Tensor:
        """The estimate of each branch's bound, [branches]: the weighted sum of its masked tokens' log-probabilities."""
        return logprobs.new_zeros(len(batch["branch_lengths"])).index_add(0, batch["owners"], logprobs * batch["weights"].to(logprobs.dtype))

    def _scored_before(self, rows: NumberedPairs | Rows | None) -> NumberedPairs | list[dict[str, Any]] | None:
        """Rows with the reference's estimate of each branch, of those to train on by the masks of every epoch."""
        score = super()._scored_before
        if not isinstance(rows, NumberedPairs):
            return score(rows)
        epochs = [score([rows.of_epoch(epoch, number) for number in range(len(rows))]) for epoch in range(self._epochs())]
        return NumberedPairs([{**row, "references": [epoch[number]["reference"] for epoch in epochs]} for number, row in enumerate(rows.rows)])

    def _epochs(self) -> int:
        """How many epochs the run begins."""
        batches = math.ceil(len(self.train_dataset) / (self.args.per_device_train_batch_size * self.args.world_size))
        return math.ceil(steps_of(self.args, len(self.train_dataset)) / math.ceil(batches / self.args.gradient_accumulation_steps))

    def measure(self, rows: Rows | None = None) -> dict[str, float]:
        return super().measure(numbered(rows))


DIFFUSION_DPO = Stage(DiffusionDpoTrainer, "ranked answers to train on", ranked_size, patch_branch_logprobs, left_to_right=False)


def diffusion_dpo_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    settings: PreferenceSettings | None = None,
    *,
    draws: int = DRAWS,
    eval_rows: Rows | None = None,
    lora: LoraConfig | None = None,
    reference: PreTrainedModel | None = None,
    reference_time: str = "step",
    sample: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> DiffusionDpoTrainer:
    """Build a trainer as `dpo_trainer` does, of a diffusion model; every loss of DPO's takes the estimates for the log-probabilities.

    `draws` masks of each answer go through the model at every step, all there are where these are no more; they are other ones in each epoch. Where
    `reference_time` is "before" the reference scores the rows by the masks of all epochs, so that both times teach the same. Raises UserError for rows,
    models or settings that do not go together, and for an answer that says the mask token.
    """
    says, settings = diffusion_required(model), settings or PreferenceSettings()
    seed = args.seed if args.data_seed is None else args.data_seed
    drawing = Draws(draws, seed=seed)
    refuse_one_way(transformers_model(model))
    refuse_attention(transformers_model(model), says.attention)
    DIFFUSION_DPO.check(model, rows, eval_rows, lora=lora)
    check_reference_time(reference_time)
    for number, row in enumerate([*rows, *(eval_rows or ())], start=1):
        for answer in row["branches"]:
            refuse_mask(says, answer, tokenizer, f"{row.get('where') or f'row {number}'}: an answer")
    if reference is not None:
        check_reference(model, reference)
        refuse_other_diffusion(says, diffusion_of(transformers_model(reference).config))
    collate = MaskedBranches(says, drawing, set_attention(transformers_model(model)), padding_id(tokenizer))
    model = DIFFUSION_DPO.prepare(model, tokenizer, lora, args)
    return DIFFUSION_DPO.build(
        model, tokenizer, args, NumberedPairs(rows), numbered(eval_rows), settings=settings, reference=reference, reference_time=reference_time, sample=sample,
        provenance=provenance or Provenance(paradigm="diffusion"), callbacks=callbacks, data_collator=PairCollator(collate),
    )  # fmt: skip


def refuse_other_diffusion(says: Diffusion, of_reference: Diffusion | None) -> None:
    """Raise UserError for a reference that cannot be asked about the policy's masks."""
    if of_reference is None:
        raise UserError("the reference speaks from left to right, the model by diffusion, and their likelihoods are not of one kind: use a diffusion checkpoint")
    for name in ("mask_token_id", "shift", "attention", "block_length"):
        ours, theirs = getattr(says, name), getattr(of_reference, name)
        if ours != theirs:
            raise UserError(f"the reference has {name} {theirs}, the model {ours}: use a reference of the same kind of diffusion")


def diffusion_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    settings: PreferenceSettings | None = None,
    *,
    resume: str | None = None,
    **options: Any,
) -> DiffusionDpoTrainer:
    """Train a diffusion model on ranked answers; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `diffusion_dpo_trainer`.
    """
    trainer = diffusion_dpo_trainer(model, tokenizer, rows, args, settings, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer
