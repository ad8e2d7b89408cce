"""Masked diffusion: answers are masked at random, and learned where they are (Nie et al. 2025, "LLaDA"; Ye et al. 2025, "Dream 7B")."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from typing_extensions import override

from ...data.chat import with_ids
from ...data.errors import UserError
from ...data.labels import IGNORE_INDEX, Row
from ...infer.checkpoint.adapter_paradigm import write_beside
from ...infer.kernels.device import in_float64
from ...infer.runners.architecture import transformers_model
from ...infer.runners.paradigm import Diffusion, diffusion_of
from ..attention.packed_attention import PACKED
from ..maths.denoising import ratio_with_error
from ..models.completion_loss import patch_completion_loss
from ..models.reference import has_adapter
from ..run.crash_safe import Provenance
from ..stages.build import Stage
from ..stages.sft import Rows, SftTrainer
from .adapt import lies_end_to_end, refuse_attention
from .canvas import Canvas, canvas_length, denoised_size
from .collator import DenoisingCollator, record_of_each_token
from .objective import DenoisingObjective
from .order import NUMBER, DrawnByNumber, NumberedRows, NumberedStream


class OfDiffusion(DrawnByNumber):
    """Stands before a trainer among a class's bases: its rows know when they were drawn, and an adapter says beside itself what kind of model it makes."""

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save and has_adapter(self.accelerator.unwrap_model(self.model)):
            write_beside(output_dir or self.args.output_dir, diffusion_of(transformers_model(self.model).config))


class DiffusionTrainer(OfDiffusion, SftTrainer):
    """The trainer of SFT on corrupted rows: means over all answer tokens, masked or not, which the bound on the likelihood is a mean over."""

    smooths_labels = False

    def measure(self, model: nn.Module, rows: Sequence[Row]) -> dict[str, float]:
        """Held-out loss with its standard error over the rows, and accuracy at masked tokens; with a co-loss also the loss from left to right alone."""
        numbered = [{**row, NUMBER: number} for number, row in enumerate(rows)]
        values = self.values_over(numbered, lambda some: self._values_of(model, some), width=5)
        losses, tokens, hits, masked, causal = values.T.tolist()
        loss, error = ratio_with_error(losses, tokens)
        metrics = {"loss": loss} | ({} if error is None else {"loss_se": error})
        metrics["token_accuracy"] = sum(hits) / max(sum(masked), 1)
        if self.data_collator.objective.co_loss:
            metrics["autoregressive_loss"] = sum(causal) / sum(tokens)
        return metrics

    def _values_of(self, model: nn.Module, rows: list[dict[str, Any]]) -> Tensor:
        """Of each row its weighted loss, a mean over the draws, its answer tokens, hits and masked tokens, and its loss from left to right: [rows, 5]."""
        collator: DenoisingCollator = self.data_collator
        batch = self._prepare_inputs(collator.held_out(rows, [row[NUMBER] for row in rows]))
        out = model(**batch)
        asked, record = batch["weights"] != 0, record_of_each_token(batch)
        draws, size = collator.objective.eval_draws, len(rows) * collator.copies()

        def by_row(values: Tensor, where: Tensor) -> Tensor:
            sums = torch.zeros(size, dtype=torch.float64, device=record.device).index_add(0, record[where], in_float64(values).to(record.device))
            return sums.view(len(rows), -1)  # [rows, copies]

        losses, hits, masked = (by_row(each, asked) for each in (out.losses * batch["weights"][asked], out.hits, torch.ones_like(out.hits)))
        counted = batch["labels"] != IGNORE_INDEX
        tokens = by_row(torch.ones_like(record[counted]), counted)[:, 0]
        parts = losses[:, :draws].mean(dim=1), tokens, hits[:, :draws].sum(dim=1), masked[:, :draws].sum(dim=1), losses[:, draws:].sum(dim=1)
        return torch.stack(parts, dim=1)


DENOISING = Stage(DiffusionTrainer, "rows to train on", denoised_size, patch_completion_loss, left_to_right=False)


def diffusion(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    objective: DenoisingObjective | None = None,
    *,
    resume: str | None = None,
    **options: Any,
) -> DiffusionTrainer:
    """Train on rows of a prompt and its answer, see `Canvas.rows`; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `diffusion_trainer`.
    """
    trainer = diffusion_trainer(model, tokenizer, rows, args, objective, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def diffusion_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: TrainingArguments,
    objective: DenoisingObjective | None = None,
    *,
    canvas: Canvas,
    eval_rows: Sequence[Row] | None = None,
    lora: LoraConfig | None = None,
    sample: Callable[[PreTrainedModel], dict[str, float]] | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> DiffusionTrainer:
    """Build the trainer of `diffusion`; the model, which `adapt` has made one of diffusion, is changed in place.

    `canvas` is what the rows were made by: what it fills answers up with ends them, too, and is cropped at random. With `lora` only the adapter is
    trained and saved, with the embedding of the mask token. Loss, accumulation and several processes are as exact as in SFT, and the times
    of the rows of a step are stratified over all of them. Raises UserError for rows, models and settings that do not go together.
    """
    objective = DenoisingObjective() if objective is None else objective
    says = diffusion_required(model)
    refuse_attention(transformers_model(model), says.attention, objective.co_loss > 0)
    canvas_length(says, canvas.multiple)
    DENOISING.check(model, rows, eval_rows, lora=lora)
    end_to_end = set_attention(transformers_model(model))
    set_end_of_text(model, canvas.filling)
    model = DENOISING.prepare(model, tokenizer, with_mask_embedding(lora, says), args)
    seed = args.seed if args.data_seed is None else args.data_seed
    strata = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    collator = DenoisingCollator(objective, says, canvas, seed, strata, end_to_end)
    numbered = NumberedStream(rows) if isinstance(rows, IterableDataset) else NumberedRows(rows)
    return DENOISING.build(
        model, tokenizer, args, numbered, eval_rows, sample=sample, provenance=provenance or Provenance(paradigm="diffusion"), callbacks=callbacks, data_collator=collator
    )


def diffusion_required(model: PreTrainedModel) -> Diffusion:
    """What the model is, by its config. Raises UserError for one that speaks from left to right."""
    says = diffusion_of(transformers_model(model).config)
    if says is None:
        raise UserError("the model speaks from left to right, and its config knows no mask: make it one of diffusion first, `adapt`")
    return says


def set_attention(model: PreTrainedModel) -> bool:
    """Let the model's attention go by the records of a batch; False where it has one of its own, which its config makes look both ways."""
    if lies_end_to_end(model):
        model.set_attn_implementation(PACKED)
        return True
    if "flash" in (model.config._attn_implementation or ""):
        raise UserError(f"{model.config._attn_implementation} looks one way in {model.config.model_type}: load it with attn_implementation='eager'")
    return False


def set_end_of_text(model: PreTrainedModel, filling: int) -> None:
    """Let what answers are filled up with end an answer, whatever ends it already."""
    model.generation_config.eos_token_id = with_ids(model.generation_config.eos_token_id, [filling])


def with_mask_embedding(lora: LoraConfig | None, diffusion: Diffusion) -> LoraConfig | None:
    """The adapter's settings with the mask token's embedding, which the base does not have, trained and saved beside."""
    return None if lora is None else replace(lora, trainable_token_indices=[diffusion.mask_token_id])
