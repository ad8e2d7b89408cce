"""transformers' Trainer with the answer's loss, exact evaluation and checkpoints that a kill cannot spoil."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..data.refusal import UserError
from ..infer.manifest import fingerprint, verify
from .checkpoints import ASIDE, publish, publish_into, room_for, rotate, start_aside
from .optimizer import MasterAdamW

ADAMW = {"adamw_torch", "adamw_torch_fused"}


@dataclass
class Provenance:
    """What a checkpoint's manifest says of where it came from."""

    base: str = ""
    data: str = ""
    paradigm: str = "causal"


class AnswerTrainer(Trainer):
    """Train on rows of answers: exact means over trained tokens, and checkpoints that are complete or not there.

    `sample` is called at each evaluation with the model and returns further metrics (exact match of generated answers, say).
    The model must return an `AnswerLoss` (see `teach_answers_only`).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        provenance: Provenance | None = None,
        sample: Callable[[PreTrainedModel], dict[str, float]] | None = None,
        **kwargs: Any,
    ):
        if args.optim in ADAMW and any(p.requires_grad and p.dtype.itemsize == 2 for p in model.parameters()):
            _, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
            kwargs["optimizer_cls_and_kwargs"] = (MasterAdamW, settings)
        super().__init__(model, args, **kwargs)
        self.provenance = provenance or Provenance()
        self.sample = sample
        self._run_folder_for_saving: str | None = None

    # Loss

    def training_step(self, *args, **kwargs) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: lower --learning_rate, or look at the data "
                "around this step; the last checkpoint is intact"
            )
        return loss

    def _run_epoch(self, *args, **kwargs) -> None:
        """Do nothing in a run that is over: resumed from its last step, the Trainer would take one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    # Evaluation

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Held-out loss and token accuracy over all answer tokens, and what `sample` measures."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        mine = range(self.args.process_index, len(rows), self.args.world_size)  # a sampler would pad, and count rows twice
        size = self.args.per_device_eval_batch_size
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        sums = torch.zeros(3, dtype=torch.float64)
        for start in range(0, len(mine), size):
            batch = self.data_collator([rows[i] for i in mine[start : start + size]])
            with self.accelerator.autocast():
                out = model(**self._prepare_inputs(batch))
            sums += torch.stack([out.loss_sum, out.correct, out.tokens]).double().cpu()
        loss, correct, tokens = self.accelerator.reduce(sums.float().to(self.args.device)).tolist()
        metrics = {"loss": loss / tokens, "token_accuracy": correct / tokens}
        if self.sample is not None:
            metrics |= self.sample(model)
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # Saving

    def checkpoint_bytes(self) -> int:
        """How many bytes a checkpoint takes: the weights to be saved, and the optimizer's state for those that train."""
        parameters = list(self.model.parameters())
        whole = not hasattr(self.model, "peft_config")
        weights = sum(p.numel() * p.element_size() for p in parameters if whole or p.requires_grad)
        state = sum(p.numel() * (12 if p.dtype.itemsize == 2 else 8) for p in parameters if p.requires_grad)
        return weights + (0 if self.args.save_only_model else state) + 16 * 2**20  # tokenizer, random state, logs

    def _get_output_dir(self, trial) -> str:
        return self._run_folder_for_saving or super()._get_output_dir(trial)

    def _save_checkpoint(self, model, trial) -> None:
        """Let the Trainer write into a folder aside, then publish it, and only then rotate the old ones away."""
        run = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
        best = self.state.best_model_checkpoint
        with room_for(self.checkpoint_bytes(), run):
            if self.args.should_save:
                aside = start_aside(run)
            self.accelerator.wait_for_everyone()
            self._run_folder_for_saving = str(run / ASIDE)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._run_folder_for_saving = None
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.best_model_checkpoint = best
                self.state.save_to_json(str(aside / name / "trainer_state.json"))  # the Trainer noted the folder aside as the best
                publish(aside / name, run / name, **self._facts())
        if self.args.should_save:
            rotate(run, self.args.save_total_limit, best)
        self.state.best_model_checkpoint = best
        self.accelerator.wait_for_everyone()

    def save_final(self) -> Path:
        """Save the model alone, ready to load, into the run's own folder; return that folder."""
        run = Path(self.args.output_dir)
        with room_for(self.checkpoint_bytes(), run):
            if self.args.should_save:
                start_aside(run)
            self.accelerator.wait_for_everyone()
            self.save_model(str(run / ASIDE / "final"))
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                publish_into(run / ASIDE / "final", run, **self._facts())
        self.accelerator.wait_for_everyone()
        return run

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:  # an adapter's save leaves out the ids that end a turn
            self.accelerator.unwrap_model(self.model).generation_config.save_pretrained(output_dir)

    def _facts(self) -> dict[str, Any]:
        template = getattr(self.processing_class, "chat_template", None)
        return {
            "step": self.state.global_step,
            "base": self.provenance.base,
            "paradigm": self.provenance.paradigm,
            "template": fingerprint(template if isinstance(template, str) or template is None else repr(template)),
            "data": self.provenance.data,
        }

    def _load_best_model(self) -> None:
        verify(Path(self.state.best_model_checkpoint))
        super()._load_best_model()
