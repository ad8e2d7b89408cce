"""transformers' Trainer with the answer's loss and exact evaluation."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainingArguments

from .sealed import Provenance, Sealed, master_optimizer


class AnswerTrainer(Sealed, Trainer):
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
        super().__init__(model, args, provenance=provenance, **master_optimizer(model, args), **kwargs)
        self.sample = sample

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
