"""What every stage's trainer does alike: stop at a loss that is no number, and save checkpoints that a kill cannot spoil."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from typing_extensions import override

from ...data.errors import UserError
from ...infer.checkpoint.manifest import fingerprint, verify
from ...infer.kernels.device import in_float64
from .checkpoints import STAGING, explain_full_disk, publish, publish_into, require_space, rotate, start_staging
from .interruption import Interruptible
from .optimizer import MasterAdamW
from .out_of_memory import memory_named
from .randomness import order_by_epoch, preserve_random_state
from .sharding import (
    ZERO3,
    WholeCopy,
    check_sharding,
    engine_of,
    gather_head_with_the_rest,
    gathered_when_saved,
    head_with_the_rest,
    load_whole,
    refuse_other_engine,
    shard_on_cpus_too,
    without_ties,
)
from .training_card import write_card

STAGE_STATE = "stage_state_{}.pt"  # a process's own
REFERENCE = "reference.safetensors"
ADAMW = {"adamw_torch", "adamw_torch_fused"}


@dataclass
class Provenance:
    """What a checkpoint's manifest says of where it came from."""

    base: str = ""
    data: str = ""
    paradigm: str = "causal"
    options: dict[str, Any] | None = None  # what the run is known by
    settings: Mapping[str, Any] = field(default_factory=dict)  # those of the options that differ from their defaults
    records: Sequence[str] = ()  # what became of the records, in lines


def low_precision(model: nn.Module) -> bool:
    """Whether weights that train have 16 bits."""
    return any(p.requires_grad and p.dtype.itemsize == 2 for p in model.parameters())


def master_optimizer(model: nn.Module, args: TrainingArguments) -> tuple[type, dict[str, Any]] | None:
    """An optimizer's class and settings by which low-precision weights keep float32 masters; None where no masters are needed."""
    if args.optim in ADAMW and low_precision(model):
        return MasterAdamW, Trainer.get_optimizer_cls_and_kwargs(args, model)[1]
    return None


def _values(parameter: Tensor) -> int:
    """How many values a parameter has, those that lie with other processes included."""
    return getattr(parameter, "ds_numel", parameter.numel())


class CrashSafeCheckpoints(Interruptible):
    """Stands before a transformers or trl trainer among a class's bases: `class RewardModelTrainer(CrashSafeCheckpoints, RewardTrainer)`.

    `provenance` is for the manifest; what else is given goes to the trainer. Ctrl-C and SIGTERM save before they end training, see `train`.
    """

    def __init__(self, *args: Any, provenance: Provenance | None = None, **kwargs: Any):
        self.provenance = provenance or Provenance()
        self._run_folder_for_saving: str | None = None
        self._whole: WholeCopy | None = None  # once weights are sharded
        shard_on_cpus_too()
        super().__init__(*args, **kwargs)
        load_whole()  # models to come, too
        check_sharding(self.accelerator, self.args, self.model, low_precision(self.model))
        if self.optimizer is None and not engine_of(self.accelerator):  # FSDP and DeepSpeed keep masters by themselves
            self.optimizer_cls_and_kwargs = master_optimizer(self.model, self.args) or self.optimizer_cls_and_kwargs

    def _send_telemetry(self) -> None:
        """Send nobody word of the run."""

    def create_model_card(self, *args, **kwargs) -> None:
        """Write a model card where the model goes to a hub, and only there."""
        if self.args.push_to_hub:  # trl would write one into the run's folder at every checkpoint
            super().create_model_card(*args, **kwargs)

    def training_step(self, *args, **kwargs) -> Tensor:
        """The loss of a micro-batch, its gradients added. Raises UserError for one that is no finite number, and where the memory does not suffice for it."""
        with memory_named(self, "per_device_train_batch_size", "raise --gradient_accumulation_steps by as much, which learns the same"):
            loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}: lower --learning_rate, or look at the data "
                "around this step; the last checkpoint is intact"
            )
        return loss

    @override
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if resume_from_checkpoint is not None and self.is_deepspeed_enabled:  # which loads by itself
            refuse_other_engine(resume_from_checkpoint, engine_of(self.accelerator), self.args.world_size)
        first = self.is_sharded and self._whole is None
        if first:
            self._whole = WholeCopy(self.model)
        with head_with_the_rest(self.model) if self.is_fsdp_enabled else nullcontext():
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if first and engine_of(self.accelerator) == ZERO3:
            gather_head_with_the_rest(self.accelerator.unwrap_model(self.model))
        return prepared

    @property
    def is_sharded(self) -> bool:
        """Whether in training no process holds all weights, so that forward passes wait for each other."""
        return self.is_fsdp_enabled or engine_of(self.accelerator) == ZERO3

    @contextmanager
    def whole_model(self) -> Iterator[Any]:
        """Yield the model without the wrappers of distributed training, all its weights in this process; all processes have to enter.

        Where weights are sharded it is a copy, in evaluation mode, that is empty again after: read from it, and train the other.
        """
        model = self.accelerator.unwrap_model(self.model)
        with nullcontext(model) if self._whole is None else self._whole.filled(model, self.args.device) as whole:
            yield whole

    def sampled(self, sample: Callable[[Any], dict[str, float]]) -> dict[str, float]:
        """What `sample` measures of what the whole model says."""
        with self.whole_model() as model:
            return self.abandonable(lambda: sample(model), waits=False)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        """Make the optimizer. Raises UserError where the library is missing that `optim` names."""
        try:
            return super().create_optimizer(*args, **kwargs)
        except ImportError as error:
            raise UserError(f"optim {getattr(self.args.optim, 'value', self.args.optim)}: {' '.join(str(error).split())}, or choose another --optim") from None

    @override
    def _run_epoch(self, model, epoch: int, train_dataloader, *args, **kwargs) -> None:
        """Do nothing in a run that is over: resumed from its last step, the Trainer would take one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        order_by_epoch(train_dataloader, self.args.seed if self.args.data_seed is None else self.args.data_seed, epoch)
        super()._run_epoch(model, epoch, train_dataloader, *args, **kwargs)

    # Evaluation

    @contextmanager
    def in_evaluation(self) -> Iterator[nn.Module]:
        """Yield the unwrapped model in evaluation mode, without gradients; its mode and the random numbers of training are put back after."""
        model = self.accelerator.unwrap_model(self.model)
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), preserve_random_state(self.args.device):
                yield model
        finally:
            model.train(training)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As the trainer beneath, leaving mode and random numbers as they were. Raises UserError where the memory does not suffice."""
        with self.in_evaluation(), memory_named(self, "per_device_eval_batch_size", "the figures stay the same"):
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs) -> Any:
        """As the trainer's; before training begins, by whole weights: it would take them apart for good, and otherwise than training does."""
        if not engine_of(self.accelerator) or self.accelerator._models:
            return super().evaluation_loop(*args, **kwargs)
        self.accelerator._models.append(self.model.to(self.args.device))
        self.deepspeed = self.model  # else an engine would be set up
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            self.accelerator._models.clear()
            self.deepspeed = None

    def report(self, metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
        """Log what an evaluation measured, each name behind the prefix, let the callbacks know, and return it."""
        named = {f"{prefix}_{name}": value for name, value in metrics.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named

    def sums_over(self, rows: Sequence[Any], width: int, sums_of: Callable[[list[Any]], Tensor]) -> list[float]:
        """The sums of what `sums_of` makes of batches of rows, [width], over all rows and processes; each row counts once."""

        def added() -> Tensor:
            sums = torch.zeros(width, dtype=torch.float64)
            for places in self._batches_of(len(rows)):
                with self.accelerator.autocast():
                    sums += in_float64(sums_of([rows[i] for i in places])).cpu()
            self._in_vain(rows, sums_of)
            return sums

        return self.sum_over_processes(self.abandonable(added)).tolist()

    def values_over(self, rows: Sequence[Any], values_of: Callable[[list[Any]], Tensor], width: int | None = None) -> Tensor:
        """What `values_of` makes of each row of a batch, [rows of the batch], for all rows: [rows] in float64, in every process.

        With `width` it is so many values of each row: [rows, width].
        """

        def found() -> Tensor:
            values = torch.zeros(len(rows) if width is None else (len(rows), width), dtype=torch.float64)
            for places in self._batches_of(len(rows)):
                with self.accelerator.autocast():
                    values[list(places)] = in_float64(values_of([rows[i] for i in places])).cpu()
            self._in_vain(rows, values_of)
            return values

        return self.sum_over_processes(self.abandonable(found))  # each row is one process's

    def _batches_of(self, count: int) -> Iterator[range]:
        """The places of this process's rows of so many, a batch at a time."""
        mine = range(self.args.process_index, count, self.args.world_size)  # a sampler would pad, and count rows twice
        size = self.args.per_device_eval_batch_size
        yield from (mine[start : start + size] for start in range(0, len(mine), size))

    def _in_vain(self, rows: Sequence[Any], work: Callable[[list[Any]], Any]) -> None:
        """Do as many batches as the first process has more than this one, for nothing: its forward passes would wait for them where weights are sharded."""
        size, world = self.args.per_device_eval_batch_size, self.args.world_size
        mine, most = (-(-len(range(rank, len(rows), world)) // size) for rank in (self.args.process_index, 0))
        for _ in range(most - mine if most > mine and self.is_sharded else 0):
            with self.accelerator.autocast():
                work([rows[0]])

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """The sums of values over all processes, of the same shape [...], in float64 on the CPU."""
        values = in_float64(values)
        return self.accelerator.reduce(values.to(self.args.device)).cpu() if self.args.world_size > 1 else values.cpu()

    def sums_by_name(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sums of some numbers over all processes; every process must have the same names."""
        names = sorted(values)
        return dict(zip(names, self.sum_over_processes(torch.tensor([values[name] for name in names], dtype=torch.float64)).tolist(), strict=True))

    # Saving

    def checkpoint_bytes(self) -> int:
        """How many bytes a checkpoint takes: the weights to be saved, and the optimizer's state for those that train."""
        parameters = list(self.model.parameters())
        whole = not hasattr(self.model, "peft_config")
        weights = sum(_values(p) * p.element_size() for p in parameters if whole or p.requires_grad)
        state = sum(_values(p) * (12 if p.dtype.itemsize == 2 else 8) for p in parameters if p.requires_grad)
        if (reference := self._moving_reference()) is not None:
            state += sum(p.numel() * p.element_size() for p in reference.parameters())
        return weights + (0 if self.args.save_only_model else state) + 16 * 2**20  # tokenizer, random state, logs

    def stage_state(self) -> dict[str, Any]:
        """What this process has to keep, beside weights, optimizer and random numbers, to go on as if it had not been stopped: tensors and plain values."""
        return {}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Take up what `stage_state` gave; nothing where the checkpoint has none of this process."""

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if state := self.stage_state():
            Path(output_dir).mkdir(parents=True, exist_ok=True)  # the main process may not have come so far
            torch.save(state, Path(output_dir) / STAGE_STATE.format(self.args.process_index))
        if self.args.should_save and (reference := self._moving_reference()) is not None:
            save_model(reference, str(Path(output_dir) / REFERENCE))

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STAGE_STATE.format(self.args.process_index)
        self.restore_state(torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else {})
        if (reference := self._moving_reference()) is not None:
            if not (Path(checkpoint) / REFERENCE).is_file():
                raise UserError(f"{checkpoint} holds no {REFERENCE}, the reference that follows the policy (sync_ref_model): use --resume never")
            load_model(reference, str(Path(checkpoint) / REFERENCE), device=str(self.args.device))

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        refuse_other_engine(resume_from_checkpoint, engine_of(self.accelerator))
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except (RuntimeError, ValueError) as error:  # of every tensor whose size differs, or of a file that another kind of model would have
            words = " ".join(str(error).split())
            raise UserError(f"{resume_from_checkpoint} does not fit this model: resume with the model and the adapter that it was trained with ({words:.200})") from error

    def _moving_reference(self) -> nn.Module | None:
        """The reference that follows the policy, where trl's `sync_ref_model` asks for that; not where its weights are sharded, which is not kept."""
        if not getattr(self.args, "sync_ref_model", False) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return None
        return self.accelerator.unwrap_model(self.ref_model)

    @override
    def _get_output_dir(self, trial) -> str:
        return self._run_folder_for_saving or super()._get_output_dir(trial)

    @override
    def _save_checkpoint(self, model, trial) -> None:
        """Let the Trainer write into a folder aside, then publish it, and only then rotate the old ones away."""
        run = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        if self.state.best_global_step:
            self.state.best_model_checkpoint = str(run / f"checkpoint-{self.state.best_global_step}")
        best = self.state.best_model_checkpoint
        best_step, needed = self.state.best_global_step, self.checkpoint_bytes()
        with self.fail_together():
            require_space(needed, run)
            if self.args.should_save:
                start_staging(run)
        self._run_folder_for_saving = str(run / STAGING)
        self.state.best_global_step = None  # with it the Trainer would wait for all processes, a failed one too
        try:
            with self.fail_together(), explain_full_disk(needed, run):
                super()._save_checkpoint(model, trial)
        finally:
            self._run_folder_for_saving = None
            self.state.best_global_step, self.state.best_model_checkpoint = best_step, best
        with self.fail_together(), explain_full_disk(needed, run):
            if self.args.should_save:
                self.state.save_to_json(str(run / STAGING / name / "trainer_state.json"))  # now with the best
                write_card(self, run / STAGING / name)
                publish(run / STAGING / name, run / name, **self._facts())
                rotate(run, self.args.save_total_limit, best)

    def save_final(self) -> Path:
        """Save the model alone, ready to load, into the run's own folder; return that folder. A signal has to wait until that is done."""
        with self.signals.watched():
            run = self._save_final()
            asked = self.asked_to_stop()
        if asked:
            self._leave(f"the model of step {self.state.global_step} is saved in {run}")
        return run

    def _save_final(self) -> Path:
        run, needed = Path(self.args.output_dir), self.checkpoint_bytes()
        with self.fail_together():
            require_space(needed, run)
            if self.args.should_save:
                start_staging(run)
        with self.fail_together(), explain_full_disk(needed, run):
            with gathered_when_saved(self.accelerator):
                self.save_model(str(run / STAGING / "final"))
        with self.fail_together(), explain_full_disk(needed, run):
            if self.args.should_save:
                write_card(self, run / STAGING / "final")
                publish_into(run / STAGING / "final", run, **self._facts())
        return run

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Wait for all processes at the end, and raise in all of them where one failed, which would leave the others waiting.

        What is done within must not wait for other processes itself, except by the libraries that gather sharded weights.
        """
        failure = None
        try:
            yield
        except Exception as error:
            failure = error
        failed = torch.zeros(self.args.world_size)
        failed[self.args.process_index] = failure is not None
        failed = self.sum_over_processes(failed).nonzero().flatten().tolist()
        if failure is not None:
            raise failure
        if failed:
            who = f"rank{'s' * (len(failed) > 1)} {', '.join(map(str, failed))} of {self.args.world_size}"
            raise UserError(f"{who} could not save, see what they say; the last checkpoint is intact")

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict and without_ties(self.model, state_dict))
        generation = getattr(self.accelerator.unwrap_model(self.model), "generation_config", None)  # a classifier has none
        if self.args.should_save and generation is not None:  # an adapter's save leaves out the ids that end a turn
            generation.save_pretrained(output_dir)

    def _facts(self) -> dict[str, Any]:
        return {
            "step": self.state.global_step, "base": self.provenance.base, "paradigm": self.provenance.paradigm,
            "template": fingerprint(getattr(self.processing_class, "chat_template", None)), "data": self.provenance.data,
            **({} if self.provenance.options is None else {"options": self.provenance.options}),
        }  # fmt: skip

    @override
    def _issue_warnings_after_load(self, load_result: Any) -> None:
        super()._issue_warnings_after_load(load_result._replace(missing_keys=[*without_ties(self.model, dict.fromkeys(load_result.missing_keys))]))

    @override
    def _load_best_model(self) -> None:
        verify(Path(self.state.best_model_checkpoint))
        super()._load_best_model()
