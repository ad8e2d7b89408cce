"""What every stage does on the way to its trainer: look at the rows, make the model ready, keep the caller's arguments as they were."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from ...data.chat import all_end_ids
from ...data.errors import UserError
from ...data.preference_rows import preference_pairs
from ...data.versions import versions_named
from ...infer.checkpoint.quantise import is_quantised
from ...infer.checkpoint.quiet import silence_old_names
from ...infer.runners.architecture import context_limit, transformers_model
from ...infer.runners.paradigm import diffusion_of, refuse_encoder, refuse_encoder_decoder
from ..models.adapters import add_adapter, prepare_quantised, speed_up_adapters
from ..models.extended_forward import release_from_accelerate
from ..models.reference import has_adapter
from ..run.callbacks import RunLog
from ..run.overrides import check_overrides

Row = dict[str, Any]
Rows = Sequence[Row]
Size = tuple[int, int]  # the tokens of the longest sequence that a row makes, and the highest of its ids


@dataclass(frozen=True)
class Stage:
    """What sets a stage apart from the others before it trains; what it does beside that, all do alike."""

    trainer: Callable[..., Trainer]
    trains_on: str  # what its rows are, in words
    size_of: Callable[[Row, str], Size]  # of a row and where it stands; raises UserError for one that teaches nothing
    extend: Callable[[PreTrainedModel], None] | None = None  # how the model's forward is extended
    generates: bool = True  # a reward model ends no turn
    trainer_adds_adapter: bool = False  # trl's do, and take no model that has one
    left_to_right: bool = True  # it teaches each token behind those before it, which is not a diffusion model's way

    def check(
        self,
        model: PreTrainedModel,
        rows: Rows | IterableDataset,
        eval_rows: Rows | None = None,
        *,
        lora: LoraConfig | None = None,
        max_length: int | None = None,
        answer_tokens: int = 0,
    ) -> None:
        """Raise UserError for rows, held out or not, that cannot be trained on, a model that would get a second adapter, and one of another paradigm.

        None may be longer than `max_length`, or leave less than `answer_tokens` of the model's context, or hold ids beyond its vocabulary.
        Of a stream it is known how long its rows may be.
        """
        self.refuse_model(transformers_model(model))
        if has_adapter(model) and (lora is not None or self.trainer_adds_adapter):
            raise UserError("the model has an adapter already: merge it first, `seodang export`")
        if not isinstance(rows, IterableDataset) and not len(rows):
            raise UserError(f"there are no {self.trains_on}: check the data with `seodang preview`")
        self.check_rows(model, rows, "row", max_length, answer_tokens)
        self.check_rows(model, eval_rows or (), "held-out row", max_length, answer_tokens)

    def refuse_model(self, model: PreTrainedModel) -> None:
        """Raise UserError for a model of another paradigm, and for one whose weights cannot change."""
        if is_quantised(model):
            raise UserError(
                "weights in few bits cannot be trained: load the model with a dtype, float32 or bfloat16, which writes a GGUF file's out, or the one that a folder was made of"
            )
        if not self.left_to_right:
            return
        name = self.trainer.__name__.removesuffix("Trainer").lower()
        if diffusion_of(model.config) is not None:
            raise UserError(f"{name} teaches text from left to right, but this model is one of masked diffusion: train it by `seodang diffusion`, on preferences by `seodang dpo`")
        if self.generates:
            refuse_encoder_decoder(model.config, name)
            refuse_encoder(model.config, "learn to continue a text", "train it with `seodang mlm`, or use a decoder")

    def check_rows(self, model: nn.Module, rows: Rows | IterableDataset, name: str, max_length: int | None, answer_tokens: int) -> None:
        """Raise UserError for the first row that the model cannot take, each being called by where it stands, or by `name` and number."""
        if isinstance(rows, IterableDataset):
            check_stream(model, rows)
        else:
            check_fits(model, self._sizes(rows, name, max_length), answer_tokens)

    def named(self, rows: Rows, name: str) -> Iterator[tuple[str, Row]]:
        """Each row behind where it stands."""
        for number, row in enumerate(rows, start=1):
            yield row.get("where") or f"{name} {number}", row

    def _sizes(self, rows: Rows, name: str, max_length: int | None) -> Iterable[tuple[str, int, int]]:
        if (size := getattr(rows, "size", None)) is not None:  # rows that are made when they are asked for know what they come to
            yield name, *size
            return
        for where, row in self.named(rows, name):
            tokens, highest = self.size_of(row, where)
            if max_length is not None and tokens > max_length:
                raise UserError(f"{where} has {tokens} tokens, max_length is {max_length}: prepare the rows with the same max_length, or raise it")
            yield where, tokens, highest

    def prepare(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lora: LoraConfig | None, args: TrainingArguments, loss_chunk: int | None = None
    ) -> nn.Module:
        """The model, changed in place, as the trainer takes it: it stops where a turn ends, its forward extended, with an adapter where `lora` asks for one.

        A loss that reads the head makes the logits of `loss_chunk` positions at a time.
        """
        if loss_chunk is not None and loss_chunk < 1:
            raise UserError(f"loss_chunk must be at least 1, got {loss_chunk}: 512 is usual")
        silence_old_names()
        if self.generates:
            set_eos_token_ids(model, tokenizer)
        release_from_accelerate(model)
        if self.extend is not None:
            self.extend(transformers_model(model))  # beneath an adapter that is trained on
        if loss_chunk is not None:
            transformers_model(model).loss_chunk = loss_chunk
        if lora is None:
            return model
        return prepare_quantised(model) if self.trainer_adds_adapter else add_adapter(model, lora, args.activation_checkpointing)

    def build(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        args: TrainingArguments,
        rows: Any,
        eval_rows: Any,
        *,
        callbacks: Sequence[TrainerCallback] = (),
        **options: Any,
    ) -> Any:
        """The stage's trainer; `args` are copied, `options` are those of the trainer alone."""
        check_overrides(self.trainer)
        with no_new_folder(Path(args.output_dir) if args.should_save else None), versions_named():
            trainer = self.trainer(
                model=model,
                args=own_arguments(args),
                train_dataset=rows,
                eval_dataset=eval_rows or None,
                processing_class=tokenizer,
                callbacks=[RunLog(), *callbacks],
                **options,
            )
        if self.trainer_adds_adapter:
            speed_up_adapters(trainer.model)
        return trainer


@contextmanager
def no_new_folder(folder: Path | None) -> Iterator[None]:
    """Take away an empty folder, and those above it, that were not there before: the Trainer makes the run's before there is anything to keep.

    None is the folder of a process that makes none, and must not take away another's.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()] if folder is not None else []
    try:
        yield
    finally:
        with suppress(OSError):  # something lies in it, or another process has been here first
            for each in new:
                each.rmdir()


def own_arguments(args: TrainingArguments) -> TrainingArguments:
    """A copy of the caller's arguments, for rows that are laid out by ourselves."""
    args = copy.copy(args)
    args.remove_unused_columns = False  # the Trainer would drop what it finds no parameter of the model for: borders, branches, numbers
    args.dataloader_pin_memory &= args.device.type not in ("cpu", "mps")  # which have no other memory to copy to: torch would warn
    args.accelerator_config = copy.copy(args.accelerator_config)
    args.accelerator_config.dispatch_batches = False  # rows laid end to end cannot be cut along the batch
    return args


def set_eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the generation config every id that ends a turn, those it has already included."""
    model.generation_config.eos_token_id = all_end_ids(model.generation_config.eos_token_id, tokenizer)


# Sizes of rows


def labelled_size(row: Row, where: str) -> Size:
    """Of `input_ids`, and of a packed row its longest record by `lengths`. Raises UserError for a row without tokens."""
    if not row["input_ids"]:
        raise UserError(f"{where} has no tokens: leave it out")
    return max(row.get("lengths") or [len(row["input_ids"])]), max(row["input_ids"])


def ranked_size(row: Row, where: str) -> Size:
    """Of `prompt_ids` and `branches`, of which `ranks` must make a pair. Raises UserError for a row without a pair, a prompt or an answer."""
    if not preference_pairs(row["ranks"]):
        raise UserError(f"{where} has no pair of a better and a worse answer: give it a rejected side, or leave it out")
    return answered_size(row["prompt_ids"], row["branches"], where)


def unpaired_size(row: Row, where: str) -> Size:
    """Of `prompt_ids` and `completion_ids`."""
    return answered_size(row["prompt_ids"], [row["completion_ids"]], where)


def answered_size(prompt: Sequence[int], answers: Sequence[Sequence[int]], where: str) -> Size:
    """Of a prompt behind which each of the answers stands alone. Raises UserError where one of them is empty."""
    if not prompt or not all(answers):
        raise UserError(f"{where} has an empty prompt or answer: fill it in, or leave it out")
    return len(prompt) + max(map(len, answers)), max(max(prompt), *map(max, answers))


def prompt_size(row: Row, where: str) -> Size:
    """Of `prompt_ids` alone. Raises UserError for an empty one."""
    if not row["prompt_ids"]:
        raise UserError(f"{where} has an empty prompt: fill it in, or leave it out")
    return len(row["prompt_ids"]), max(row["prompt_ids"])


def check_fits(model: nn.Module, sizes: Iterable[tuple[str, int, int]], answer_tokens: int = 0) -> None:
    """Raise UserError for the first row that the model cannot take; each is where it stands, its tokens and its highest id.

    `answer_tokens` are those that an answer may take behind it.
    """
    model = transformers_model(model)
    context, vocab = context_limit(model), model.get_input_embeddings().weight.shape[0]
    for where, tokens, highest in sizes:
        if context and tokens + answer_tokens > context and answer_tokens:
            raise UserError(
                f"{where} has {tokens} tokens, which with max_new_tokens {answer_tokens} is more than the model's context of {context}: "
                "shorten it, leave it out (--max_prompt_length), or lower --max_new_tokens"
            )
        if context and tokens > context:
            raise UserError(f"{where} has {tokens} tokens, the model's context only {context}: set --max_length {context} or less")
        if highest >= vocab:
            raise UserError(f"{where}: token id {highest} is beyond the model's vocabulary of {vocab}: the tokenizer belongs to another model")


def check_stream(model: nn.Module, rows: IterableDataset) -> None:
    """Raise UserError where the rows of a stream may be longer than the model's context."""
    longest, context = getattr(rows, "longest", None), context_limit(transformers_model(model))
    if longest and context and longest > context:
        raise UserError(f"streamed rows may have {longest} tokens, the model's context only {context}: set --max_length {context} or less")
