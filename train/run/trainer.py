"""transformers' Trainer with the answer's loss and exact evaluation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ...infer.kernels.device import in_float64
from .crash_safe import Provenance, CrashSafeCheckpoints, master_optimizer


class SftTrainer(CrashSafeCheckpoints, Trainer):
    """Train on rows of answers: exact means over trained tokens, and checkpoints that are complete or not there.

    `sample` is called at each evaluation with the model and returns further metrics (exact match of generated answers, say).
    The model must return an `AnswerLoss` (see `patch_completion_loss`).
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

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Held-out loss and token accuracy over all answer tokens, and what `sample` measures."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        with self.in_evaluation() as model:

            def sums_of(some: list[Any]) -> Tensor:
                out = model(**self._prepare_inputs(self.data_collator(some)))
                return torch.stack([in_float64(part) for part in (out.loss_sum, out.correct, out.tokens)])

            loss, correct, tokens = self.sums_over(rows, 3, sums_of)
            metrics = {"loss": loss / tokens, "token_accuracy": correct / tokens}
            if self.sample is not None:
                metrics |= self.sample(model)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
