"""Classifiers on the noised latents of a Diffusion-LM, whose gradients control what it says (Li et al. 2022, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.utils import ModelOutput

from ...data.errors import UserError
from ...infer.diffusion_lm.gaussian import noised
from ...infer.diffusion_lm.model import DiffusionLM, LatentClassifier, LatentClassifierConfig
from ..models.extended_forward import Forward, extend_forward
from ..run.crash_safe import Provenance
from ..stages.build import Row, Stage, labelled_size
from .training import PARADIGM, LatentTrainer, collate, drawn, start


@dataclass
class Classification(ModelOutput):
    """The loss, a mean over rows, and of each row, [rows], its cross entropy and whether the likeliest class is its own."""

    loss: Tensor | None = None
    cross_entropy: Tensor | None = None
    accuracy: Tensor | None = None


def classification(
    model: LatentClassifier, classify: Callable[..., Any], input_ids: Tensor, attention_mask: Tensor, labels: Tensor, steps: Tensor, start_noise: Tensor, noise: Tensor
) -> Classification:
    """The cross entropy of each row's class, [rows], at one step of noise a row; `classify` is the model's own forward."""
    latents = noised(start(model, input_ids, start_noise), model.abar.to(noise)[steps][:, None, None]).sample(noise)
    logits = classify(model, latents, steps, attention_mask).logits
    losses = F.cross_entropy(logits, labels, reduction="none")
    return Classification(loss=losses.mean(), cross_entropy=losses, accuracy=(logits.argmax(dim=-1) == labels).to(noise.dtype))


def patch_classification(model: LatentClassifier) -> None:
    """Let a classifier that is called with `input_ids` and `labels` return its `Classification`; without what is drawn, it is drawn there."""

    def extension(classify: Forward) -> Forward:
        def forward(self, latents=None, steps=None, attention_mask=None, input_ids=None, labels=None, start_noise=None, noise=None):
            if input_ids is None:
                return classify(self, latents, steps, attention_mask)
            if steps is None:
                steps, start_noise, noise = drawn(self, input_ids)
            return classification(self, classify, input_ids, attention_mask, labels, steps, start_noise, noise)

        return forward

    extend_forward(model, "classification", extension)


class LatentClassifierTrainer(LatentTrainer):
    """Train a classifier on noised latents; held out are measured its cross entropy and its accuracy, both means over all amounts of noise."""

    measured = ("cross_entropy", "accuracy")

    def measure(self, model: nn.Module, rows: Sequence[Row]) -> dict[str, float]:
        """Means over rows and draws; the loss is the cross entropy."""
        found = super().measure(model, rows)
        return {"loss": found["cross_entropy"], "accuracy": found["accuracy"]}


CLASSIFICATION = Stage(LatentClassifierTrainer, "labelled texts", labelled_size, patch_classification, generates=False, left_to_right=False)


def new_classifier(model: DiffusionLM, labels: Sequence[str], hidden_size: int = 64, layers: int = 2) -> LatentClassifier:
    """An untrained classifier of a model's latents, with the model's own embeddings. Raises UserError for fewer than two labels."""
    if len(set(labels)) < 2:
        raise UserError(f"a classifier tells two labels apart or more, got {', '.join(labels) or 'none'}: is the right column given, --columns label=COLUMN?")
    sizes = {name: getattr(model.config, name) for name in ("vocab_size", "embedding_size", "max_position_embeddings", "diffusion_steps")}
    config = LatentClassifierConfig(
        **sizes, hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=max(hidden_size // 32, 1), intermediate_size=4 * hidden_size,
        pad_token_id=model.config.pad_token_id, eos_token_id=model.config.eos_token_id, unk_token_id=model.config.unk_token_id,
        id2label=dict(enumerate(sorted(set(labels)))), label2id={label: id for id, label in enumerate(sorted(set(labels)))},
    )  # fmt: skip
    classifier = LatentClassifier(config).to(model.device)
    with torch.no_grad():
        classifier.word_embeddings.weight.copy_(model.word_embeddings.weight)
    return classifier


def latent_classifier_trainer(
    model: LatentClassifier,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    args: TrainingArguments,
    *,
    eval_rows: Sequence[Row] | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> LatentClassifierTrainer:
    """Build the trainer of a classifier, on rows of `input_ids` and `label`, the number of the class; its forward is extended in place."""
    CLASSIFICATION.check(model, rows, eval_rows)
    CLASSIFICATION.prepare(model, tokenizer, None, args)
    return CLASSIFICATION.build(
        model, tokenizer, args, rows, eval_rows, provenance=provenance or Provenance(paradigm=PARADIGM), callbacks=callbacks, data_collator=collate
    )
