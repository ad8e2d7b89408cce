"""Proximal policy optimisation against a reward: sample, score, estimate advantages, take clipped steps (Schulman et al. 2017; Ouyang et al. 2022).

transformers' Trainer runs the updates, so its optimizers, schedules, checkpoints and processes are at hand; an iteration's first micro-batch
makes the rollouts that the iteration's updates learn from. Everything drawn depends on the seed, the iteration and a place in it alone.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from typing_extensions import override

from ...data.errors import UserError
from ...data.packing import padding_id
from ...infer.kernels.device import in_float64
from ...infer.requests.rng import hashed
from ...infer.runners.architecture import transformers_model
from ..maths.advantages import Moments
from ..maths.policy_gradient import policy_loss, value_loss
from ..models.branch_logprobs import BranchScores, choose_branch_collator, patch_branch_logprobs, score_branches
from ..models.critic import attach_critic, critics_part, load_critic, save_critic, without_critic
from ..models.reference import Reference
from ..rewards.reward_function import Reward, check_columns, with_all_columns
from ..rewards.rules import CheckedReward, checked
from ..rollouts.experience import Experience, add_advantages, experience_metrics, experience_sums
from ..rollouts.rollout import Rollout, roll_out
from ..run.crash_safe import CrashSafeCheckpoints, Provenance
from .build import Stage, prompt_size
from .ppo_settings import PpoSettings, steps_in_iterations

STATE = "ppo_state.json"
MEASURED = ("reward", "kl", "length")  # by an evaluation


def without_dropout(model: nn.Module) -> None:
    """Turn dropout off: the policy that is trained must be the one that samples, or the first ratio would not be 1."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


class PpoTrainer(CrashSafeCheckpoints, Trainer):
    """The Trainer whose batches are cut from rollouts of the policy itself.

    Logs reward/mean, reward/std, kl (nats an answer), entropy (nats a token), length/mean, ended and sampler_gap, how far the engine's
    log-probabilities are from the training pass's, of all answers sampled since the last log; of the updates since then policy_loss,
    value_loss, where it counts entropy_loss, and clip_fraction; and kl_coefficient. The weighted losses add up to the logged loss.
    """

    loss_is_scaled_for_ga = True  # by the answer tokens of the whole minibatch

    def __init__(self, model, args, *, settings: PpoSettings, reward: CheckedReward, reference: Reference, provenance=None, **kwargs: Any):
        super().__init__(model, args, provenance=provenance, **kwargs)
        self.settings, self.reward, self.reference, self.prompts = settings, reward, reference, self.train_dataset
        self.kl = settings.controller()
        self._coefficient = self.kl.coefficient  # of the iteration that is learned from
        self._experience: Experience | None = None  # the iteration's
        self._batches: list[dict[str, Any]] = []  # its micro-batches, all updates in their order
        self._sampled: Counter[str] = Counter()  # sums over the answers of all processes since the last log
        self._largest_gap = 0.0
        self._sums = torch.zeros(4, dtype=torch.float64)  # policy loss, value loss, entropy loss, clipped tokens: of the batches since the last log
        self._batches_summed = 0

    @property
    def policy(self) -> nn.Module:
        """The model without the wrappers of distributed training."""
        return self.accelerator.unwrap_model(self.model)

    # Batches

    def get_train_dataloader(self) -> DataLoader:
        """Numbers of micro-batches: what they hold is not known before the policy has spoken. Every process counts through all."""
        count = self.args.max_steps * self.args.gradient_accumulation_steps
        return DataLoader(range(count), batch_size=1, collate_fn=lambda numbers: {"number": numbers[0]})

    @override
    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> None:
        return None  # known after the rollouts, and then in the batches

    def training_step(self, model, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        """Learn from the micro-batch of this number; the first of an iteration makes the rollouts before."""
        an_iteration = self.settings.updates * self.args.gradient_accumulation_steps
        iteration, place = divmod(inputs["number"], an_iteration)
        if place == 0:
            self._batches = self._start_iteration(iteration)
        return super().training_step(model, self._batches[place], num_items_in_batch)

    def _start_iteration(self, iteration: int) -> list[dict[str, Any]]:
        """Let the policy speak, and cut what it said into the micro-batches of the iteration's updates."""
        experience = self.experience(self._rows_of(iteration), ("rollout", self.args.seed, iteration), self._own_share(self.settings.rollouts))
        kl = add_advantages(experience, self.settings, self.kl.coefficient, self._total)
        sums = experience_sums(experience, kl)
        gap = max(max(abs(a - b) for a, b in zip(r.logprobs, own.tolist(), strict=True)) for r, own in zip(experience.rollouts, experience.logprobs))
        total = self.sums_by_name(sums)
        self._sampled.update(total)
        self._largest_gap, self._coefficient = max(self._largest_gap, gap), self.kl.coefficient
        self.kl.update(total["kl"] / total["answers"], self.settings.rollouts)
        self._experience = experience
        return self._minibatches(experience, iteration)

    def _rows_of(self, iteration: int) -> list[dict[str, Any]]:
        """This process's prompts of an iteration: the data is gone through in a new order each time, without a gap between iterations."""
        rows = []
        for place in self._own_share(self.settings.rollouts):
            turn, place = divmod(iteration * self.settings.rollouts + place, len(self.prompts))
            rows.append(self.prompts[self._order(turn)[place]])
        return rows

    def _order(self, turn: int) -> list[int]:
        return torch.randperm(len(self.prompts), generator=seeded("order", self.args.seed, turn)).tolist()

    def experience(self, rows: Sequence[dict[str, Any]], seed: tuple, places: Sequence[int] | None = None) -> Experience:
        """Roll out rows and score what was said: rewards, log-probabilities of policy and reference, values."""
        with self.whole_model() as policy:
            return self.abandonable(lambda: self._experience_of(policy, rows, seed, places), waits=False)

    def _experience_of(self, policy: nn.Module, rows: Sequence[dict[str, Any]], seed: tuple, places: Sequence[int] | None) -> Experience:
        how = {"max_new_tokens": self.settings.max_new_tokens, "temperature": self.settings.temperature}
        rollouts = roll_out(policy, self.processing_class, rows, **how, seed=seed, places=places)
        scores = torch.tensor(self.reward(*reward_inputs(rollouts), **column_lists(rollouts)), dtype=torch.float32)
        parts: list[list[Tensor]] = [[], [], [], []]
        for start in range(0, len(rollouts), self.args.per_device_train_batch_size):
            some = rollouts[start : start + self.args.per_device_train_batch_size]
            batch = self._prepare_inputs(self._collate(some))
            with self.accelerator.autocast():
                own: BranchScores = score_branches(policy, batch)
                reference = self.reference.logprobs(policy, batch)
            for found, values in zip(parts, (own.logprobs, reference, own.entropies, own.value), strict=True):
                found += values.float().cpu().split(list(batch["branch_lengths"]))
        logprobs, ref_logprobs, entropies, values = parts
        return Experience(rollouts, scores, logprobs, ref_logprobs, entropies, values)

    def _collate(self, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        batch = self.data_collator([rollout.branch for rollout in rollouts])
        return {**batch, "temperature": self.settings.temperature, "wants_entropies": True}

    def _minibatches(self, experience: Experience, iteration: int) -> list[dict[str, Any]]:
        """The micro-batches of all updates: each epoch in an order of its own, each with the answer tokens of its minibatch over all processes."""
        size, accumulated = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        batches = []
        for epoch in range(self.settings.epochs):
            generator = seeded("minibatches", self.args.seed, iteration, epoch, self.args.process_index)
            order = torch.randperm(len(experience.rollouts), generator=generator).tolist()
            for start in range(0, len(order), size * accumulated):
                chosen = order[start : start + size * accumulated]
                tokens = self.sum_over_processes(torch.tensor([float(sum(experience.lengths[i] for i in chosen))], dtype=torch.float64)).item()
                for begin in range(0, len(chosen), size):
                    some = chosen[begin : begin + size]
                    learned = {name: torch.cat([getattr(experience, name)[i] for i in some]) for name in ("logprobs", "values", "advantages", "returns")}
                    batches.append({"batch": self._collate([experience.rollouts[i] for i in some]), "old": learned, "tokens": tokens})
        return batches

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None are counted."""
        return 0  # the Trainer would look for tokens in the number of a micro-batch

    # Loss

    def compute_loss(self, model, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch=None):
        """This micro-batch's part of the minibatch's loss, a scalar; its parts go to the next log."""
        settings, old, tokens = self.settings, inputs["old"], inputs["tokens"]
        scored: BranchScores = model(**{**inputs["batch"], "wants_entropies": settings.entropy_coefficient > 0})
        mask = torch.ones_like(scored.logprobs, dtype=torch.bool)
        policy = policy_loss(*_rows(scored.logprobs, old["logprobs"], old["advantages"], mask), settings.clip_range, tokens)
        value = value_loss(*_rows(scored.value, old["values"], old["returns"], mask), settings.value_clip_range, tokens)
        loss = policy.loss + settings.value_coefficient * value.loss
        entropy = torch.zeros_like(policy.loss)
        if settings.entropy_coefficient:
            entropy = -scored.entropies.sum() / tokens
            loss = loss + settings.entropy_coefficient * entropy
        self._sums += in_float64(torch.stack([policy.loss, value.loss, entropy, policy.clip_fraction]).detach()).cpu()
        self._batches_summed += 1
        return loss * self.args.world_size  # processes average their gradients

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the class's docstring names, over all processes."""
        if "loss" in logs and self._batches_summed:
            updates = self._batches_summed / self.args.gradient_accumulation_steps
            policy, value, entropy, clipped = (self.sum_over_processes(self._sums) / updates).tolist()
            logs["iteration"] = -(-self.state.global_step // self.settings.updates)
            if self._sampled:  # not where the first step was logged on its own: an iteration's answers are told once
                logs |= experience_metrics(self._sampled, self._largest_gap)
            logs |= {"kl_coefficient": self._coefficient, "policy_loss": policy, "value_loss": value, "clip_fraction": clipped}
            logs |= {"entropy_loss": entropy} if self.settings.entropy_coefficient else {}
            self._sampled.clear()
            self._largest_gap, self._batches_summed = 0.0, 0
            self._sums.zero_()
        super().log(logs, start_time)

    # Evaluation

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The reward of one sampled answer to each held-out prompt, always with the same noise, and its KL and length."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        mine = self._own_share(len(rows))
        with self.in_evaluation():
            experience = self.experience([rows[i] for i in mine], ("evaluate", self.args.seed), mine)
        kl = sum(in_float64(own - ref).sum().item() for own, ref in zip(experience.logprobs, experience.ref_logprobs, strict=True))
        sums = [in_float64(experience.scores).sum().item(), kl, sum(experience.lengths), len(experience.lengths)]
        reward, kl, length, count = self.sum_over_processes(torch.tensor(sums, dtype=torch.float64)).tolist()
        metrics = dict(zip(MEASURED, (reward / count, kl / count, length / count), strict=True))
        return self.report(metrics, metric_key_prefix)

    # Processes

    def _own_share(self, count: int) -> range:
        """Which of so many places are this process's."""
        return range(self.args.process_index, count, self.args.world_size)

    def _total(self, moments: Moments) -> Moments:
        return Moments(*self.sum_over_processes(torch.stack(list(moments))))

    # Saving

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        state = self.policy.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, without_critic(state))
        if self.args.should_save and self._run_folder_for_saving:  # a checkpoint to go on from, not the final model
            save_critic(critics_part(state), Path(output_dir))
            self._save_coefficient(Path(output_dir))

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:  # sharded weights come by here alone
            self._save_coefficient(Path(output_dir))

    def _save_coefficient(self, checkpoint: Path) -> None:
        (checkpoint / STATE).write_text(json.dumps({"kl": self.kl.state_dict()}), encoding="utf-8")

    def stage_state(self) -> dict[str, Any]:
        """Inside an iteration, what its updates learn from."""
        if self._experience is None or self.state.global_step % self.settings.updates == 0:
            return {}
        rollouts = [vars(rollout) for rollout in self._experience.rollouts]
        untold = {"sampled": dict(self._sampled), "largest_gap": self._largest_gap, "coefficient": self._coefficient}
        return {"experience": {**vars(self._experience), "rollouts": rollouts}, "processes": self.args.world_size, **untold}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take up an iteration where it was left. Raises UserError where the checkpoint lies inside one and holds none of its answers."""
        iteration, inside = divmod(self.state.global_step, self.settings.updates)
        if not inside:
            return
        if not state:
            raise UserError("the checkpoint was saved inside an iteration without what it learns from: resume from one between two iterations")
        if (processes := state.get("processes", self.args.world_size)) != self.args.world_size:
            raise UserError(
                f"the checkpoint was saved inside an iteration whose answers lie with {processes} processes, now {self.args.world_size}: resume with as many, "
                "or from a checkpoint between two iterations"
            )
        rollouts = [Rollout(**rollout) for rollout in state["experience"]["rollouts"]]
        self._experience = Experience(**{**state["experience"], "rollouts": rollouts})
        self._sampled, self._largest_gap, self._coefficient = Counter(state["sampled"]), state["largest_gap"], state["coefficient"]
        self._batches = self._minibatches(self._experience, iteration)

    @override
    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Do not miss the critic among the policy's weights: it has a file of its own."""
        missing = [name for name in load_result.missing_keys if name in without_critic(dict.fromkeys(load_result.missing_keys))]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self._whole is None:  # what is sharded was loaded with the rest
            load_critic(critic_of(self.policy), Path(resume_from_checkpoint))

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:  # here, where every engine comes by
            self.kl.load_state_dict(json.loads((Path(checkpoint) / STATE).read_text(encoding="utf-8"))["kl"])


PPO = Stage(PpoTrainer, "prompts to answer", prompt_size, patch_branch_logprobs)


def ppo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    reward: Reward,
    args: TrainingArguments,
    settings: PpoSettings | None = None,
    *,
    resume: str | None = None,
    **options: Any,
) -> PpoTrainer:
    """Train the policy on prompts against a reward; return the trainer, ready for `.save_final()`.

    `resume` is a checkpoint's folder; `options` are those of `ppo_trainer`.
    """
    trainer = ppo_trainer(model, tokenizer, rows, reward, args, settings, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def ppo_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    reward: Reward,
    args: TrainingArguments,
    settings: PpoSettings | None = None,
    *,
    eval_rows: Sequence[dict[str, Any]] | None = None,
    lora: LoraConfig | None = None,
    reference: PreTrainedModel | None = None,
    value_model: PreTrainedModel | None = None,
    provenance: Provenance | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> PpoTrainer:
    """Build the trainer of `ppo`; the model is changed in place (its attention, its forward, its adapter, a critic).

    Rows hold `prompt_ids`, `messages` and `column_lists`, as `prepare_prompts` makes them; `reward(prompts, completions, **columns)` gets message lists,
    texts and the records' other columns and returns one number an answer. The reference is the model before training, unless one is given:
    with `lora` the weights beneath the adapter, else a copy. The critic is a head on the policy unless a `value_model` is given.
    logging_steps, save_steps and eval_steps of `args` count iterations; `per_device_train_batch_size` is how many answers go through the model at once.
    Raises UserError for rows, models or settings that do not go together.
    """
    settings = settings or PpoSettings()
    PPO.check(model, rows, eval_rows, lora=lora, answer_tokens=settings.max_new_tokens)
    every = with_all_columns([*rows, *(eval_rows or ())])
    check_columns([reward], every)
    if lora is not None and lora.lora_dropout:
        raise UserError(f"lora_dropout {lora.lora_dropout} would make the policy that is trained another than the one that samples: set it to 0")
    collate = choose_branch_collator(model, padding_id(tokenizer))
    without_dropout(model)
    model = PPO.prepare(model, tokenizer, lora, args)
    frozen = Reference(model, reference)  # before there is a critic to copy
    attach_critic(model, value_model)
    return PPO.build(
        model, tokenizer, steps_in_iterations(args, settings), every[: len(rows)], every[len(rows) :], settings=settings,
        reward=checked(reward), reference=frozen, provenance=provenance, callbacks=callbacks,
        data_collator=collate,
    )  # fmt: skip


def critic_of(policy: nn.Module) -> nn.Module:
    """The critic that `attach_critic` gave the policy."""
    return transformers_model(policy).critic


def reward_inputs(rollouts: Sequence[Rollout]) -> tuple[list, list[str]]:
    """The prompts, as messages where there are some, and the texts that a reward function is called with."""
    return [rollout.row.get("messages") or rollout.row["prompt_ids"] for rollout in rollouts], [rollout.text for rollout in rollouts]


def column_lists(rollouts: Sequence[Rollout]) -> dict[str, list]:
    """The records' other columns, each a list of one entry an answer."""
    names = {name for rollout in rollouts for name in rollout.row.get("columns") or {}}
    return {name: [(rollout.row.get("columns") or {}).get(name) for rollout in rollouts] for name in sorted(names)}


def seeded(*parts: Any) -> torch.Generator:
    """A generator that depends on nothing but the parts."""
    return torch.Generator().manual_seed(hashed(*parts, size=4))


def _rows(*tensors: Tensor) -> list[Tensor]:
    """[tokens] as one row, [1, tokens], on the device of the first."""
    return [tensor[None].to(tensors[0].device) for tensor in tensors]
