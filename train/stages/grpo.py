"""GRPO and RLOO on trl's trainers: answers come from our engine, and the update computes each prompt once for all its answers.

Shao et al. 2024, "DeepSeekMath", section 4.1; Ahmadian et al. 2024, "Back to Basics: Revisiting REINFORCE-Style Optimization".

trl's loop, rewards, advantages and losses stay trl's. All that hangs on the inside of trl 1.16 is in `SharedPrompt`; a test compares trl's
signatures with those that it was written for, another compares each loss and gradient with trl's own.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import groupby
from time import perf_counter
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SyncRefModelCallback
from typing_extensions import override

from ...data.errors import UserError
from ...infer import from_generation_config, generate
from ...infer.requests.request import derived
from ...infer.requests.rng import hashed
from ...infer.runners.architecture import transformers_model
from ...infer.text.detokenise import whole_text
from ..attention.groups import answer_indices, branch_batches, group_by_prompt, regroup, scatter_answers
from ..models.branch_logprobs import choose_branch_collator, patch_branch_logprobs
from ..models.reference import frozen_copy
from ..rewards.reward_function import Reward, check_columns, with_all_columns
from ..rewards.rules import as_trl_reward, checked
from ..rollouts.vllm_server import told_of_server
from ..run.crash_safe import CrashSafeCheckpoints
from .build import Rows, Stage, prompt_size

logger = logging.getLogger(__name__)

RESERVED_COLUMNS = {"prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "environments", "environment", "image", "images"}
TRL_ARGUMENTS = ("completion_ids", "trainer_state", "log_extra", "log_metric")  # by trl, beside the columns


class SharedPrompt:
    """Stands before `CrashSafeCheckpoints` and trl's GRPOTrainer or RLOOTrainer among a class's bases.

    The rows of `train_dataset` and `eval_dataset` hold `prompt_ids`, `messages` and `columns`, as `prepare_prompts` makes them: these ids are what is answered and trained
    on, whatever the tokenizer's own template would make of the messages. Answers are sampled by our engine from the weights as they are, with
    trl's sampling options; vLLM and transformers' continuous batching, where asked for, stay trl's.

    In the update, the answers of one prompt that lie in one batch are branches of it. trl shuffles a generation batch before it splits it into
    `steps_per_generation` parts, which would scatter a prompt's answers: they are put together again, the prompts in their shuffled order.
    A prompt whose answers go into two parts all the same, because `num_generations` does not divide a part, is computed once in each.
    A mixture of experts that trains its router's own loss is left to trl's plain computation.
    """

    returns_logprobs = False  # whether trl's _generate_single_turn gives log-probabilities beside the ids

    def __init__(
        self,
        model: PreTrainedModel,
        args: GRPOConfig | RLOOConfig,
        *,
        rewards: Sequence[Reward],
        train_dataset: Rows,
        eval_dataset: Rows | None,
        processing_class: PreTrainedTokenizerBase,
        peft_config: LoraConfig | None = None,
        **options: Any,
    ):
        self.rows = with_all_columns([*train_dataset, *(eval_dataset or ())])
        reference = frozen_copy(model) if args.beta and peft_config is None else None
        synchronised = args.sync_ref_model
        with nullcontext() if reference is None else _without_reference(args):
            super().__init__(
                model,
                [as_trl_reward(checked(reward)) for reward in rewards],
                args,
                train_dataset=Dataset.from_dict({"row": range(len(train_dataset))}),
                eval_dataset=Dataset.from_dict({"row": range(len(train_dataset), len(self.rows))}) if eval_dataset else None,
                processing_class=processing_class,
                peft_config=peft_config,
                **options,
            )
        self.shares_prompts = not self.aux_loss_enabled
        if self.shares_prompts:
            self._extend_models(processing_class)
        if reference is not None:
            self._keep_reference(reference, synchronised)
        self._rollouts = (None, 0)  # the last step that sampled, in training or evaluation, and how often it did

    def _extend_models(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the policy, and a reference that trl has loaded, score branches."""
        for each in filter(None, (self.ref_model, self.model)):
            own = transformers_model(each)
            self._collate = choose_branch_collator(own, tokenizer.pad_token_id)
            patch_branch_logprobs(own)

    def _keep_reference(self, reference: PreTrainedModel, synchronised: bool) -> None:
        """Take a copy of the model for the reference: trl would load one from the path that the model's config names."""
        if not self.shares_prompts:
            raise UserError("beta with a router loss needs the base beneath an adapter: set --lora_r, --beta 0 or --router_aux_loss_coef 0")
        self.beta = self.args.beta
        reference.set_attn_implementation(transformers_model(self.model).config._attn_implementation)
        patch_branch_logprobs(reference)
        whole = self.is_fsdp_enabled or self.is_deepspeed_enabled  # each process keeps all of it: accelerate would shard what is to be trained
        self.ref_model = reference.to(self.args.device) if whole else self.accelerator.prepare_model(reference, evaluation_mode=True)
        if synchronised and self.is_sharded:
            raise UserError("sync_ref_model moves a reference after a policy that no process holds whole: launch with DDP or ZeRO-2, or leave it out")
        if synchronised:
            self.add_callback(SyncRefModelCallback(ref_model=self.ref_model, accelerator=self.accelerator))

    # Prompts

    @override
    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rows = [self.rows[each["row"]] for each in inputs]  # as they were made: a Dataset would add keys to messages and columns
        self._prompt_ids = [row["prompt_ids"] for row in rows]
        with _whole_characters(self.processing_class):
            return super()._generate_and_score_completions([{"prompt": row["messages"], **row["columns"]} for row in rows])

    @override
    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        return self._prompt_ids, None, {}

    # Answers

    @override
    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, *rest, **more):
        if self.use_vllm or self.use_transformers_continuous_batching:
            with self._by_vllm() if self.use_vllm else nullcontext():
                return super()._generate_single_turn(prompt_ids, images, multimodal_fields, *rest, **more)
        begun = perf_counter()
        answers = self._answers(prompt_ids)
        self._metrics["train" if self.model.training else "eval"]["rollout_seconds"].append(perf_counter() - begun)
        return (answers, None) if self.returns_logprobs else answers

    @contextmanager
    def _by_vllm(self) -> Iterator[None]:
        """Let trl hand weights over and have vLLM answer; it would look for pieces where FSDP has not begun to share the weights."""
        shared = self.vllm_generation._dist
        version = shared.fsdp_version
        shared.fsdp_version = version if self._whole is not None else None
        try:
            with told_of_server() if self.args.vllm_mode == "server" else nullcontext():
                yield
        finally:
            shared.fsdp_version = version

    @torch.no_grad()
    def _answers(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """An answer to each prompt, its end token included; those of a group are read once, and hang on their place in the batch of all processes."""
        now = "train" if self.model.training else "eval", self.state.global_step
        turn = self._rollouts[1] + 1 if self._rollouts[0] == now else 0
        self._rollouts = (now, turn)
        settings = from_generation_config(self.generation_config, stop_token_ids=self.eos_token_ids)
        size = self.num_generations if self.model.training else self.num_generations_eval
        prompts, params = [], []
        place = self.args.process_index * len(prompt_ids)  # of the answers before these, which the processes share in order
        for ids, same in groupby(map(tuple, prompt_ids)):
            left = len(list(same))
            while left:
                group, choice = divmod(place, size)
                seed = hashed(self.args.seed, *now, turn, group, size=4)
                count = min(left, size) if choice == 0 else 1  # of a group that another process has begun, one by one
                prompts.append(list(ids))
                params.append(replace(settings, num_return_sequences=count, seed=derived(seed, choice) if choice else seed))
                place, left = place + count, left - count
        with self.whole_model() as model:
            found = self.abandonable(lambda: generate(model, self.processing_class, prompts, params, on_error="raise"), waits=False)
        return [result.ids for result in found]

    # Update

    @override
    def _prepare_inputs(self, generation_batch):
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        parts = self._buffered_inputs
        if self.shares_prompts and parts is not before and len(parts) > 1:
            self._buffered_inputs = regroup(parts)
            inputs = self._buffered_inputs[self._step % len(parts)]
        return inputs

    @override
    def _get_per_token_logps_and_entropies(
        self, model, input_ids, attention_mask, logits_to_keep, batch_size=None, compute_entropy=False, compute_aux_loss=False, **pictures
    ):
        """Log-probabilities and entropies [lines, logits_to_keep] of the answers' tokens at the sampling temperature, 0 where padded."""
        if not self.shares_prompts or compute_aux_loss or any(given is not None for given in pictures.values()):
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, **pictures
            )
        groups, silent = group_by_prompt(input_ids, attention_mask, logits_to_keep), False
        if not groups:  # all cut off and masked: a pass of nothing's weight all the same, or the other processes would wait for this one
            attention_mask, silent = attention_mask.clone(), True
            attention_mask[0, -logits_to_keep] = 1
            groups = group_by_prompt(input_ids, attention_mask, logits_to_keep)
        parts, size = [], batch_size or len(input_ids)
        batches = list(branch_batches(groups, size))
        if self.is_sharded:  # as many passes as the other processes, which wait for them, where answers are masked here
            batches += batches[:1] * (-(-len(input_ids) // size) - len(batches))
        for some in batches:
            batch = {k: v.to(input_ids.device) if isinstance(v, Tensor) else v for k, v in self._collate(some).items()}
            with self.accelerator.autocast():
                out = model(**batch, temperature=self.temperature, wants_entropies=compute_entropy)
            parts.append((out.logprobs * 0, out.entropies * 0) if silent else (out.logprobs, out.entropies))
        places = answer_indices(groups, logits_to_keep, input_ids.device)
        shape = len(input_ids), logits_to_keep
        logprobs, entropies = (scatter_answers(torch.cat(values)[: len(places)], places, shape) for values in zip(*parts, strict=True))
        return logprobs, entropies if compute_entropy else None, None


    # Saving

    def stage_state(self) -> dict[str, Any]:
        """How far this process has come, and inside a generation the answers that are still to be learned from."""
        inside = self._step % (self.args.steps_per_generation * self.num_iterations)
        return {"step": self._step} | ({"parts": self._buffered_inputs, "layout": self._layout()} if inside else {})

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take up the answers that are still to be learned from. Raises UserError where the options now cut them otherwise."""
        if not state:
            logger.warning("the checkpoint does not say which answers were being learned from (an earlier version's, or another number of processes): new ones are sampled")
            return
        if state.get("layout", self._layout()) != self._layout():
            raise UserError(
                f"the checkpoint was saved inside a generation of {state['layout']}, now {self._layout()}: its answers cannot be learned from in another way; "
                "resume with the same options, or from a checkpoint between two generations"
            )
        self._step = state["step"]
        if "parts" in state:
            self._buffered_inputs = [{k: v.to(self.args.device) if isinstance(v, Tensor) else v for k, v in part.items()} for part in state["parts"]]

    def _layout(self) -> dict[str, int]:
        """What the parts of a generation look like."""
        names = ("steps_per_generation", "num_iterations", "num_generations", "per_device_train_batch_size", "world_size")
        return {name: getattr(self.args, name) for name in names}


class GrpoTrainer(SharedPrompt, CrashSafeCheckpoints, GRPOTrainer):
    """trl's GRPOTrainer on shared prompts."""

    returns_logprobs = True


class RlooTrainer(SharedPrompt, CrashSafeCheckpoints, RLOOTrainer):
    """trl's RLOOTrainer on shared prompts."""


GRPO = Stage(GrpoTrainer, "prompts to answer", prompt_size, trainer_adds_adapter=True)
RLOO = Stage(RlooTrainer, "prompts to answer", prompt_size, trainer_adds_adapter=True)


def grpo_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, rewards: Sequence[Reward], args: GRPOConfig, **options: Any
) -> GrpoTrainer:
    """Build the trainer of `grpo`; the model is changed in place. `options` are eval_rows, lora, provenance and callbacks.

    The reference, where `args.beta` asks for one, is the model before training: with `lora` the weights beneath the adapter, else a copy.
    """
    return _build(GRPO, model, tokenizer, rows, rewards, args, **options)


def rloo_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, rewards: Sequence[Reward], args: RLOOConfig, **options: Any
) -> RlooTrainer:
    """As `grpo_trainer`, for RLOO."""
    return _build(RLOO, model, tokenizer, rows, rewards, args, **options)


def grpo(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, rewards: Sequence[Reward], args: GRPOConfig, *,
    resume: str | None = None, **options: Any,
) -> GrpoTrainer:  # fmt: skip
    """Train on the rewards of sampled answers; return the trainer, ready for `.save_final()`. `resume` is a checkpoint's folder."""
    trainer = grpo_trainer(model, tokenizer, rows, rewards, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def rloo(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, rewards: Sequence[Reward], args: RLOOConfig, *,
    resume: str | None = None, **options: Any,
) -> RlooTrainer:  # fmt: skip
    """As `grpo`, for RLOO."""
    trainer = rloo_trainer(model, tokenizer, rows, rewards, args, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def _build(stage: Stage, model, tokenizer, rows: Rows, rewards: Sequence[Reward], args, *, eval_rows=None, lora=None, **options: Any) -> Any:
    stage.check(model, rows, eval_rows, lora=lora, answer_tokens=args.max_completion_length)
    check_groups(rows, rewards, args)
    every = [*rows, *(eval_rows or ())]
    check_columns(rewards, every, TRL_ARGUMENTS)
    if reserved := RESERVED_COLUMNS & {name for row in every for name in row["columns"]}:
        raise UserError(f"a column of the data is named {min(reserved)}, which trl keeps for itself: rename it")
    model = stage.prepare(model, tokenizer, lora, args)
    return stage.build(model, tokenizer, args, rows, eval_rows, rewards=rewards, peft_config=lora, **options)


def check_groups(rows: Rows, rewards: Sequence[Reward], args: GRPOConfig | RLOOConfig) -> None:
    """Refuse what would fail, or train on nothing, after compute: no reward, too few prompts for a step, options of trl's that are lost here."""
    if not rewards:
        raise UserError("there is no reward to learn from: give --reward or --reward_model")
    if args.reward_weights is not None and len(args.reward_weights) != len(rewards):
        raise UserError(f"{len(args.reward_weights)} reward_weights for {len(rewards)} rewards: give one each")
    prompts = args.generation_batch_size // args.num_generations
    if len(rows) < prompts:
        raise UserError(
            f"a step answers {prompts} prompts (generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}), "
            f"but there are {len(rows)}: raise --num_generations, or lower --per_device_train_batch_size or --gradient_accumulation_steps"
        )
    if getattr(args, "cast_lm_head_to_fp32", False):
        raise UserError("cast_lm_head_to_fp32 is not done here: log-probabilities are float32 anyway; use --dtype float32 for the whole model")


@contextmanager
def _whole_characters(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Let trl read the answers' texts as all else here does, without the bytes of a character that an answer's end has cut."""

    def batch_decode(sequences, skip_special_tokens: bool = False, **options: Any) -> list[str]:
        assert skip_special_tokens, "trl leaves special tokens out of an answer's text"
        return [whole_text(tokenizer, ids) for ids in sequences]

    tokenizer.batch_decode = batch_decode
    try:
        yield
    finally:
        del tokenizer.batch_decode


@contextmanager
def _without_reference(args: GRPOConfig | RLOOConfig) -> Iterator[None]:
    """Let trl build its trainer as if no reference were wanted."""
    beta, synchronised = args.beta, args.sync_ref_model
    args.beta, args.sync_ref_model = 0.0, False
    try:
        yield
    finally:
        args.beta, args.sync_ref_model = beta, synchronised
