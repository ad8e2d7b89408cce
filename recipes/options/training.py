"""Options that every training recipe shares: the data, the model, the run."""

import importlib.util
import random
from dataclasses import dataclass, field

import torch
from peft import LoraConfig
from transformers import TrainingArguments

from seodang.data.errors import UserError
from seodang.infer.checkpoint.load import is_adapter, load_tokenizer, resolve
from seodang.infer.checkpoint.without_weights import FOUR_BITS, loads_without_weights
from seodang.infer.engine.checkpoint_settings import known_config
from seodang.infer.runners.paradigm import refuse_encoder, refuse_encoder_decoder
from seodang.recipes.options.record import AUTO, NEVER, RowOptions, check_held_out
from seodang.train.run.sharding import load_whole


@dataclass
class DataOptions(RowOptions):
    """What is trained on, and what is held out of it."""

    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources of the same shapes."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of records held out."})
    packing: bool = field(default=False, metadata={"help": "Fill rows of max_length with several records, kept apart."})
    streaming: bool = field(default=False, metadata={"help": "Read while training; needs --max_steps."})

    def __post_init__(self):
        super().__post_init__()
        check_held_out(self.eval_fraction, self.eval_data or self.streaming, "eval_data or streaming")
        if self.streaming and self.row_cache not in (AUTO, NEVER):
            raise UserError(f"row_cache {self.row_cache}: a stream is read while training, and nothing of it is kept; leave out --streaming, or prepare it before by `seodang prepare`")


@dataclass
class ModelOptions:
    """Which model is trained, where, and how much of it."""

    model: str = field(default="default", metadata={"help": "Folder, hub name or default (SmolLM2-135M-Instruct)."})
    device: str = field(default="auto", metadata={"help": "auto, cpu, cuda, mps."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, bfloat16. Low precision keeps float32 master copies."})
    lora_r: int = field(default=0, metadata={"help": "Rank of a LoRA adapter; 0 trains all weights."})
    lora_alpha: float | None = field(default=None, metadata={"help": "LoRA's scale; twice the rank by default."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapter."})
    lora_targets: list[str] = field(default_factory=lambda: ["all-linear"], metadata={"help": "Modules that get an adapter."})
    dora: bool = field(default=False, metadata={"help": "Weight-decomposed LoRA (DoRA)."})
    qlora: bool = field(default=False, metadata={"help": "Base weights in 4 bits (needs bitsandbytes)."})

    def __post_init__(self):
        if self.lora_r < 0:
            raise UserError(f"lora_r must be at least 1, or 0 to train all weights, got {self.lora_r}")
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"lora_dropout must be in [0, 1), got {self.lora_dropout}")
        if (self.dora or self.qlora) and self.lora_r <= 0:
            raise UserError(f"{'dora' if self.dora else 'qlora'} needs an adapter: set --lora_r, 16 say")

    def refuse_missing(self) -> None:
        """Raise UserError where a library is not there that the weights are loaded by."""
        if self.qlora and not loads_without_weights() and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError("qlora needs bitsandbytes: run `pip install seodang[qlora]`, or use LoRA without it")

    def refuse_adapter(self) -> None:
        """Raise UserError where the model is an adapter's folder: these stages start from whole models."""
        if is_adapter(resolve(self.model)):
            raise UserError(f"{self.model} is an adapter: merge it first, `seodang export {self.model} FOLDER`, and start from that folder")

    def decoder_tokenizer(self):
        """The model's tokenizer. Raises UserError for an encoder, which cannot be taught to speak, and for an encoder-decoder, which is taught otherwise."""
        if (config := known_config(self.model)) is not None:
            refuse_encoder_decoder(config, "this command")
            refuse_encoder(config, "learn to continue a text", "train it with `seodang mlm`, or use a decoder")
        return load_tokenizer(self.model)

    def loading(self) -> dict:
        """What `load` has to know beside the name."""
        if not self.qlora:
            return {}
        if loads_without_weights():
            return {"quantization_config": FOUR_BITS}
        self.refuse_missing()
        from transformers import BitsAndBytesConfig

        return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")}

    def lora(self) -> LoraConfig | None:
        """peft's settings of the adapter asked for, None where all weights train."""
        if self.lora_r <= 0:
            return None
        targets = self.lora_targets[0] if self.lora_targets == ["all-linear"] else self.lora_targets
        alpha = self.lora_alpha or 2 * self.lora_r
        return LoraConfig(
            r=self.lora_r, lora_alpha=alpha, lora_dropout=self.lora_dropout, target_modules=targets, use_dora=self.dora, task_type="CAUSAL_LM"
        )


@dataclass
class RunOptions:
    """How a run is resumed, measured and stopped."""

    resume: str = field(default="auto", metadata={"help": "auto (the newest complete checkpoint in output_dir), never, or a checkpoint's folder."})
    allow_changes: list[str] | None = field(
        default=None, metadata={"help": "Options that may differ from those of the checkpoint that is resumed, or all; without, a change is refused."}
    )
    dry_run: str = field(
        default="false",
        metadata={"help": "Print the plan and stop. By shapes and without weights where the stage can; time: load them, and time a step.", "nargs": "?", "const": "memory"},
    )
    eval_samples: int = field(default=16, metadata={"help": "Held-out prompts answered at each evaluation, of those that leave room for an answer."})
    early_stopping_patience: int = field(default=0, metadata={"help": "Stop after so many evaluations without gain; 0 never."})

    def __post_init__(self):
        known = {"false": "", "no": "", "true": "memory", "yes": "memory", "memory": "memory", "time": "time"}
        if (told := str(self.dry_run).lower()) not in known:
            raise UserError(f"dry_run must be memory or time, or true or false, got {self.dry_run!r}")
        self.dry_run = known[told]  # empty where the run is to begin
        for name in ("eval_samples", "early_stopping_patience"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")

    def refuse_samples(self, model: str) -> None:
        """Raise UserError where samples are asked of a model that writes none, in words."""
        if self.eval_samples != RunOptions.eval_samples:
            raise UserError(f"eval_samples {self.eval_samples}: {model}, leave it out")


@dataclass
class Arguments(TrainingArguments):
    """transformers' own arguments with defaults that suit one machine; TensorBoard is on where it is installed."""

    output_dir: str | None = field(default="runs/sft", metadata={"help": "Folder of the checkpoints and the final model."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Rows a step and process."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best not counted."})
    disable_tqdm: bool | None = field(default=False, metadata={"help": "No progress bars."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not numbers."})
    report_to: None | str | list[str] = field(default="auto", metadata={"help": "auto (TensorBoard where installed), none, or trackers' names."})

    def __post_init__(self):
        if self.report_to in ("auto", ["auto"]):
            self.report_to = "tensorboard" if importlib.util.find_spec("tensorboard") else "none"
        self.use_cpu |= not torch.accelerator.is_available()  # else several processes would not be joined, and torch would try to pin memory
        best = self.metric_for_best_model, self.greater_is_better
        super().__post_init__()
        if best[0] is None:  # transformers says "loss" where the best is to be loaded, which not every stage measures: `complete_arguments` knows the stage's
            self.metric_for_best_model, self.greater_is_better = best
        load_whole()


def hold_out(examples: list, fraction: float, seed: int) -> tuple[list, list]:
    """Hold a share of the records out, with all examples of each, at random but the same for the same seed. Raises UserError where nothing would be left."""
    of = [record_of(example, number) for number, example in enumerate(examples)]
    records = [*dict.fromkeys(of)]
    chosen = {records[at] for at in drawn(len(records), fraction, seed)}
    return [e for e, record in zip(examples, of) if record not in chosen], [e for e, record in zip(examples, of) if record in chosen]


def record_of(example: object, number: int) -> object:
    """What all examples of a record have in common, the example's number among all where it does not know."""
    return getattr(example, "record", None) or number


def drawn(records: int, fraction: float, seed: int) -> list[int]:
    """Which of so many records are held out. Raises UserError where nothing would be left."""
    count = max(1, round(records * fraction))
    if count >= records:
        raise UserError(f"eval_fraction {fraction} leaves nothing of {records} records to train on: lower it")
    return random.Random(seed).sample(range(records), count)
