"""Diffusion-LM from scratch: words' embeddings and their denoiser, learned together (Li et al. 2022, equation 2 and section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.utils import ModelOutput

from ...data.packing import padded_rows
from ...infer.diffusion_lm.gaussian import noised, start_variance
from ...infer.diffusion_lm.model import DiffusionLM, OnLatents
from ...infer.kernels.device import in_float64
from ...infer.requests.rng import hashed
from ..models.extended_forward import Forward, extend_forward
from ..run.crash_safe import Provenance
from ..stages.build import Row, Stage, labelled_size
from ..stages.sft import SftTrainer

PARADIGM = "diffusion_lm"
NUMBER = "number"  # of a held-out row, which its noise hangs on
EVAL_DRAWS = 4  # steps that a held-out row is noised to, one of each quarter


@dataclass
class EndToEnd(ModelOutput):
    """The loss, a mean over rows, and of each row, [rows], its terms, means over its positions and coordinates, and the share of words that rounding got right."""

    loss: Tensor | None = None
    denoising: Tensor | None = None
    prior: Tensor | None = None
    rounding: Tensor | None = None
    right: Tensor | None = None


def start(model: OnLatents, input_ids: Tensor, noise: Tensor) -> Tensor:
    """The latents of words, drawn around their embeddings: q(x_0 | w)."""
    return model.word_embeddings(input_ids) + start_variance(model.abar) ** 0.5 * noise


def end_to_end(model: DiffusionLM, predict: Callable[..., Any], input_ids: Tensor, attention_mask: Tensor, steps: Tensor, start_noise: Tensor, noise: Tensor) -> EndToEnd:
    """L_simple^e2e at one step a row: |x_0 - f(x_t, t)|^2, at t = 1 |EMB(w) - f(x_1, 1)|^2; |sqrt(abar_T) x_0|^2; and -log p(w | x_0).

    `predict` is the model's own forward. Terms are means over coordinates and positions, as in the paper's code, so they count alike whatever
    the embedding's size. Positions where the mask is 0 count nothing.
    """
    abar = model.abar.to(noise)
    embedded, clean = model.word_embeddings(input_ids), start(model, input_ids, start_noise)
    latents = noised(clean, abar[steps][:, None, None]).sample(noise)
    found = predict(model, latents, steps, attention_mask).clean
    target = torch.where((steps == 1)[:, None, None], embedded, clean)

    def mean(values: Tensor) -> Tensor:
        """Of each row over its own positions: [rows, length] to [rows]."""
        return (values * attention_mask).sum(dim=1) / attention_mask.sum(dim=1)

    denoising = mean((target - found).square().mean(dim=-1))
    prior = mean(noised(clean, abar[-1]).mean.square().mean(dim=-1))
    rounding = mean(F.cross_entropy(model.rounding(clean).transpose(1, 2), input_ids, reduction="none"))
    with torch.no_grad():
        right = mean((model.rounding(found).argmax(dim=-1) == input_ids).to(noise.dtype))
    return EndToEnd(loss=(denoising + prior + rounding).mean(), denoising=denoising, prior=prior, rounding=rounding, right=right)


def drawn(model: OnLatents, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Steps, uniform in 1..T, and the noise of the start and of the step, from torch's random numbers, which a checkpoint keeps."""
    shape, device = (*input_ids.shape, model.config.embedding_size), input_ids.device
    steps = torch.randint(1, model.config.diffusion_steps + 1, (len(input_ids),), device=device)
    return steps, *(torch.randn(shape, device=device, dtype=model.dtype) for _ in range(2))


def drawn_for(model: OnLatents, row: Row, draw: int, seed: int = 0) -> tuple[int, Tensor, Tensor]:
    """The same for one draw of a held-out row, of the draw's own quarter of the steps, which hangs on the row's number alone."""
    generator = torch.Generator().manual_seed(hashed(seed, row[NUMBER], draw) >> 1)
    low, high = (model.config.diffusion_steps * (draw + more) // EVAL_DRAWS for more in (0, 1))
    step = int(torch.randint(low + 1, max(high, low + 1) + 1, (), generator=generator))
    shape = (len(row["input_ids"]), model.config.embedding_size)
    return step, *(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


def patch_end_to_end(model: DiffusionLM) -> None:
    """Let a model that is called with `input_ids` return its `EndToEnd` loss; without what is drawn, it is drawn there."""

    def extension(predict: Forward) -> Forward:
        def forward(self, latents=None, steps=None, attention_mask=None, input_ids=None, start_noise=None, noise=None):
            if input_ids is None:
                return predict(self, latents, steps, attention_mask)
            if steps is None:
                steps, start_noise, noise = drawn(self, input_ids)
            return end_to_end(self, predict, input_ids, attention_mask, steps, start_noise, noise)

        return forward

    extend_forward(model, "end to end", extension)


def collate(rows: Sequence[Row], pad_token_id: int = 0) -> dict[str, Tensor]:
    """Rows to `input_ids` and `attention_mask`, [rows, longest], and `labels` [rows] where they have them."""
    batch = padded_rows([row["input_ids"] for row in rows], pad_token_id)
    return batch | ({"labels": torch.tensor([row["label"] for row in rows])} if "label" in rows[0] else {})


def held_out(model: OnLatents, rows: Sequence[Row], draw: int) -> dict[str, Tensor]:
    """A batch of held-out rows with one draw of theirs."""
    batch = collate(rows)
    steps, *noises = zip(*(drawn_for(model, row, draw) for row in rows), strict=True)
    start_noise, noise = (nn.utils.rnn.pad_sequence(each, batch_first=True).to(model.dtype) for each in noises)
    return batch | {"steps": torch.tensor(steps), "start_noise": start_noise, "noise": noise}


class LatentTrainer(SftTrainer):
    """SFT's trainer on noised latents: a held-out row is noised the same way at every evaluation, whatever stands beside it."""

    smooths_labels = False
    measured: tuple[str, ...] = ()  # the names of an output's numbers of each row

    def measure(self, model: nn.Module, rows: Sequence[Row]) -> dict[str, float]:
        """Means over held-out rows and draws of what the model's output says of each."""
        numbered = [{**row, NUMBER: number} for number, row in enumerate(rows)]

        def values_of(some: list[Row]) -> Tensor:
            found = []
            for draw in range(EVAL_DRAWS):
                out = model(**self._prepare_inputs(held_out(model, some, draw)))
                found.append(torch.stack([in_float64(getattr(out, name)) for name in self.measured], dim=1))
            return torch.stack(found).mean(dim=0)

        values = self.values_over(numbered, values_of, width=len(self.measured)).mean(dim=0)
        return dict(zip(self.measured, values.tolist(), strict=True))


class DiffusionLMTrainer(LatentTrainer):
    """Train a Diffusion-LM end to end; held out are measured the loss, its terms, and how many words are found again."""

    measured = ("denoising", "prior", "rounding", "right")

    def measure(self, model: nn.Module, rows: Sequence[Row]) -> dict[str, float]:
        """Means over rows and draws; the loss is the sum of its terms."""
        found = super().measure(model, rows)
        return {"loss": found["denoising"] + found["prior"] + found["rounding"], **found}


END_TO_END = Stage(DiffusionLMTrainer, "texts to train on", labelled_size, patch_end_to_end, generates=False, left_to_right=False)


def diffusion_lm(
    model: DiffusionLM, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], args: TrainingArguments, *, resume: str | None = None, **options: Any
) -> DiffusionLMTrainer:
    """Train on rows of `input_ids`, the words of a text with its end; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `diffusion_lm_trainer`.
    """
    trainer = diffusion_lm_trainer(model, tokenizer, rows, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def diffusion_lm_trainer(
    model: DiffusionLM,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    args: TrainingArguments,
    *,
    eval_rows: Sequence[Row] | None = None,
    sample: Callable[[DiffusionLM], dict[str, float]] | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> DiffusionLMTrainer:
    """Build the trainer of `diffusion_lm`; the model's forward is extended in place. Raises UserError for rows that the model cannot take."""
    END_TO_END.check(model, rows, eval_rows)
    END_TO_END.prepare(model, tokenizer, None, args)
    return END_TO_END.build(
        model, tokenizer, args, rows, eval_rows, sample=sample, provenance=provenance or Provenance(paradigm=PARADIGM), callbacks=callbacks, data_collator=collate
    )
