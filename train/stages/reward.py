"""The reward model: ranked answers to a prompt, scored at their ends, so that the better scores higher (Ouyang et al. 2022, section 3.5).

A row is one prompt with all its answers: their pairs stay in one batch, the prompt is computed once. What of trl's RewardTrainer had to be
stepped around is in this file: how it takes its rows, its loss for pairs laid out in halves, its evaluation.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from trl import RewardConfig, RewardTrainer
from typing_extensions import override

from ...data.errors import UserError
from ...data.preference_rows import preference_pairs
from ...infer.kernels.device import in_float64
from ..maths.ranking_loss import centring, ranking_loss
from ..models.branch_logprobs import choose_branch_collator
from ..models.reward_model import as_scores, check_reward_model, patch_reward_head, with_distinct_padding
from ..run.crash_safe import CrashSafeCheckpoints, Provenance
from .build import Rows, Stage, ranked_size

PAIR_WEIGHTS = ("prompt", "pair")
INPUTS = ("input_ids", "position_ids", "attention_mask", "tree", "ends")
# Of trl's options those that would change the data or the model behind our back: both are made before the trainer sees them.
UNSUPPORTED_OPTIONS = ("model_init_kwargs", "chat_template_path", "eos_token", "pad_token", "dataset_num_proc", "pad_to_multiple_of")


def check_unsupported(args: RewardConfig) -> None:
    """Refuse trl's options that this stage does not take."""
    plain = RewardConfig.__dataclass_fields__
    for name in UNSUPPORTED_OPTIONS:
        if getattr(args, name) not in (None, plain[name].default):
            raise UserError(f"{name}={getattr(args, name)!r} is not taken here: rows and model are made before the trainer, leave it out")


def check_ends(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse rows whose answers end in what a loaded model would take for padding."""
    for number, row in enumerate(rows, start=1):
        if any(branch[-1] == tokenizer.pad_token_id for branch in row["branches"]):
            where = row.get("where") or f"row {number}"
            raise UserError(f"{where} has an answer that ends in {tokenizer.pad_token}, the padding: end it with the token that ends a turn")


def as_dataset(rows: Rows) -> Dataset:
    """The rows as trl wants them."""
    names = ("prompt_ids", "branches", "ranks", "margin")
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})


class RankedCollator:
    """Rows to a batch of all their answers, with `preference_pairs` [pairs, 2], the places among the answers of each better and worse one,
    `weights` [pairs] and `margins` [pairs]."""

    def __init__(self, collate: Callable[[Rows], dict[str, Any]], pair_weights: str):
        self.collate, self.pair_weights = collate, pair_weights

    def __call__(self, rows: Rows) -> dict[str, Any]:
        found: list[tuple[int, int]] = []
        weights: list[float] = []
        margins: list[float] = []
        before = 0
        for row in rows:
            its_own = preference_pairs(row["ranks"])
            found += [(before + better, before + worse) for better, worse in its_own]
            weights += [1 / len(its_own) if self.pair_weights == "prompt" else 1.0] * len(its_own)
            margins += [row.get("margin") or 0.0] * len(its_own)
            before += len(row["branches"])
        batch = self.collate(rows)
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        return {**inputs, "pairs": torch.tensor(found), "weights": torch.tensor(weights), "margins": torch.tensor(margins)}


class RewardModelTrainer(CrashSafeCheckpoints, RewardTrainer):
    """trl's RewardTrainer on prompts with any number of answers.

    The loss is the weighted mean over the pairs of the whole accumulated batch, of all processes. Logs what trl logs: accuracy and margin over
    pairs, min_reward, mean_reward and max_reward over answers. An evaluation gives eval_loss, eval_accuracy and eval_margin, exact over all
    held-out pairs, and where a prompt has more than two answers eval_best_of, the share of prompts whose best answer scores highest.
    """

    loss_is_scaled_for_ga = True  # by the weights of the whole accumulated batch

    def __init__(self, model, args: RewardConfig, **kwargs: Any):
        super().__init__(model, args, **kwargs)
        self._noted: list[Tensor] = []

    @override
    def _prepare_dataset(self, dataset: Dataset, *args, **kwargs) -> Dataset:
        return dataset  # of token ids already

    # Loss

    @override
    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor:
        """The weight of all pairs of the whole accumulated batch of all processes."""
        total = sum(batch["weights"].sum().item() for batch in batch_samples)
        return self.accelerator.reduce(torch.tensor(total, device=device))

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch: Tensor | None = None):
        """This batch's part of the weighted mean over the accumulated batch, a scalar; its scores go to the next log."""
        total = self._get_num_items_in_batch([inputs], self.args.device) if num_items_in_batch is None else num_items_in_batch
        scores = self.scores(model, inputs)
        losses = self.losses(scores, inputs)
        self._record(scores.detach(), inputs["pairs"])
        loss = (losses * inputs["weights"]).sum() / total * self.args.world_size  # processes average their gradients
        return (loss, {"logits": scores}) if return_outputs else loss

    def scores(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """The score of every answer of a batch, [answers] in float32 at least."""
        return as_scores(model(**{name: batch[name] for name in INPUTS if name in batch}).logits)

    def losses(self, scores: Tensor, batch: dict[str, Any]) -> Tensor:
        """The loss of every pair, centring included: [pairs]."""
        better, worse = scores[batch["pairs"]].unbind(1)
        losses = ranking_loss(better, worse, batch["margins"])
        coefficient = self.args.center_rewards_coefficient
        return losses if coefficient is None else losses + coefficient * centring(better, worse)

    # Logs

    def _record(self, scores: Tensor, pairs: Tensor) -> None:
        """Keep what the next log reports: of the pairs their number, the right ones and leads, of the scores number, sum, least and greatest."""
        lead = scores[pairs[:, 0]] - scores[pairs[:, 1]]
        pairs_of = [scores.new_tensor(len(lead)), (lead > 0).sum(), lead.sum()]
        self._noted.append(torch.stack([*pairs_of, scores.new_tensor(len(scores)), scores.sum(), scores.min(), scores.max()]).float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the class's docstring names, over all processes."""
        if "loss" in logs and self._noted:
            noted = torch.stack(self._noted)
            mine = torch.cat([noted[:, :5].sum(0), noted[:, 5].min()[None], noted[:, 6].max()[None]])
            every = self.accelerator.gather(mine[None])  # [processes, 7]
            count, right, lead, answers, total = every[:, :5].sum(0).tolist()
            logs |= {"accuracy": right / count, "margin": lead / count, "mean_reward": total / answers}
            logs |= {"min_reward": every[:, 5].min().item(), "max_reward": every[:, 6].max().item()}
            self._noted.clear()
        super().log(logs, start_time)

    # Evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss, accuracy and margin over all held-out pairs, and where it says more the share of best answers scored highest."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        with self.in_evaluation() as model:

            def sums_of(some: Rows) -> Tensor:
                batch = self._prepare_inputs(self.data_collator(some))
                scores = self.scores(model, batch)
                return torch.cat([self._sums(scores, self.losses(scores, batch), batch), best_ranked_first(some, scores)])

            weighed, weight, right, lead, count, best, prompts = self.sums_over(rows, 7, sums_of)
            metrics = {"loss": weighed / weight, "accuracy": right / count, "margin": lead / count}
            if any(len(row["branches"]) > 2 for row in rows):
                metrics["best_of"] = best / prompts
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
            self.log(metrics)  # before the mode is put back: trl would take it for a log of training
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _sums(self, scores: Tensor, losses: Tensor, batch: dict[str, Any]) -> Tensor:
        """Of a batch's pairs: their weighted loss and weight, how many are right, the sum of leads, their number."""
        better, worse = scores[batch["pairs"]].unbind(1)
        parts = [losses * batch["weights"], batch["weights"], better > worse, better - worse, torch.ones_like(losses)]
        return torch.stack([in_float64(part).sum().cpu() for part in parts])


REWARD = Stage(RewardModelTrainer, "ranked answers to train on", ranked_size, patch_reward_head, generates=False)


def reward(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, args: RewardConfig, *, resume: str | None = None, **options: Any
) -> RewardModelTrainer:
    """Train a reward model on ranked answers; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `reward_trainer`.
    """
    trainer = reward_trainer(model, tokenizer, rows, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def reward_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    args: RewardConfig,
    *,
    eval_rows: Rows | None = None,
    lora: LoraConfig | None = None,
    pair_weights: str = "prompt",
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> RewardModelTrainer:
    """Build the trainer of `reward`; the model is changed in place (its attention, its forward, its padding, its adapter).

    `model` is an AutoModelForSequenceClassification with num_labels=1. Rows hold `prompt_ids`, `branches`, `ranks` and perhaps `margin`, as
    `prepare_preferences` makes them. The tokenizer saved with the model is a copy of this one with a padding that ends no answer. With `lora`, the
    adapter and the head are trained and saved. `pair_weights`: "prompt" gives each prompt the same weight however many pairs it has, "pair"
    gives each pair the same. Raises UserError for rows, models or settings that do not go together.
    """
    check_reward_model(model)
    check_unsupported(args)
    if pair_weights not in PAIR_WEIGHTS:
        raise UserError(f"pair_weights must be prompt or pair, got {pair_weights!r}")
    tokenizer = with_distinct_padding(model, tokenizer)
    REWARD.check(model, rows, eval_rows, lora=lora, max_length=args.max_length)
    check_ends([*rows, *(eval_rows or ())], tokenizer)
    collate = choose_branch_collator(model, tokenizer.pad_token_id, keep_last=True)
    if lora is not None:
        lora = replace(lora, task_type="SEQ_CLS", modules_to_save=list(lora.modules_to_save or ()) or None)  # the head is trained and saved whole
    model = REWARD.prepare(model, tokenizer, lora, args)
    return REWARD.build(
        model, tokenizer, args, as_dataset(rows), as_dataset(eval_rows) if eval_rows else None, provenance=provenance, callbacks=callbacks,
        data_collator=RankedCollator(collate, pair_weights),
    )  # fmt: skip


def best_ranked_first(rows: Rows, scores: Tensor) -> Tensor:
    """In how many rows one of the best ranked answers scores higher than all that are ranked below, and how many rows there are: [2]."""
    counts = [len(row["branches"]) for row in rows]
    right = 0
    for row, values in zip(rows, scores.split(counts), strict=True):
        best = torch.tensor([rank == min(row["ranks"]) for rank in row["ranks"]], device=values.device)
        right += bool(values[best].max() > values[~best].max())
    return torch.tensor([right, len(rows)], dtype=torch.float64)
