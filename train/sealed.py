"""What every stage's trainer does alike: stop at a loss that is no number, and save checkpoints that a kill cannot spoil."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ..data.refusal import UserError
from ..infer.device import in_float64
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


def master_optimizer(model: PreTrainedModel, args: TrainingArguments) -> dict[str, Any]:
    """What a Trainer is given so that low-precision weights keep float32 masters; nothing where it needs no masters."""
    if args.optim in ADAMW and any(p.requires_grad and p.dtype.itemsize == 2 for p in model.parameters()):
        _, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        return {"optimizer_cls_and_kwargs": (MasterAdamW, settings)}
    return {}


class Sealed:
    """Stands before a transformers or trl trainer among a class's bases: `class RewardStage(Sealed, RewardTrainer)`.

    `provenance` is for the manifest; what else is given goes to the trainer.
    """

    def __init__(self, *args: Any, provenance: Provenance | None = None, **kwargs: Any):
        self.provenance = provenance or Provenance()
        self._run_folder_for_saving: str | None = None
        super().__init__(*args, **kwargs)

    def _send_telemetry(self) -> None:
        """Send nobody word of the run."""

    def create_model_card(self, *args, **kwargs) -> None:
        if self.args.push_to_hub:  # trl would write one into the run's folder at every checkpoint
            super().create_model_card(*args, **kwargs)

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

    @contextmanager
    def in_evaluation(self) -> Iterator[nn.Module]:
        """Yield the unwrapped model in evaluation mode, without gradients; its mode is put back after."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                yield model
        finally:
            model.train(training)

    def sums_over(self, rows: Sequence[Any], width: int, sums_of: Callable[[list[Any]], Tensor]) -> list[float]:
        """The sums of what `sums_of` makes of batches of rows, [width], over all rows and processes; each row counts once."""
        mine = range(self.args.process_index, len(rows), self.args.world_size)  # a sampler would pad, and count rows twice
        size = self.args.per_device_eval_batch_size
        sums = torch.zeros(width, dtype=torch.float64)
        for start in range(0, len(mine), size):
            with self.accelerator.autocast():
                sums += in_float64(sums_of([rows[i] for i in mine[start : start + size]])).cpu()
        return self.accelerator.reduce(sums.float().to(self.args.device)).tolist()

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
        generation = getattr(self.accelerator.unwrap_model(self.model), "generation_config", None)  # a classifier has none
        if self.args.should_save and generation is not None:  # an adapter's save leaves out the ids that end a turn
            generation.save_pretrained(output_dir)

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
