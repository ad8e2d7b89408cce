"""Options of `seodang seq2seq`: the records, the encoder-decoder, the answers that are measured while it trains."""

from dataclasses import dataclass, field
from typing import Any

from seodang.data.accounting import check_unusable
from seodang.data.errors import UserError
from seodang.data.labels import EMPTY_ANSWERS
from seodang.data.seq2seq.records import one_exchange, seq2seq_shapes
from seodang.data.seq2seq.rows import TOO_LONG
from seodang.infer.engine.checkpoint_settings import known_config
from seodang.recipes.options.record import FileOptions, check_held_out
from seodang.recipes.options.tasks import TaskOptions, refuse_turns
from seodang.recipes.options.training import Arguments, ModelOptions
from seodang.train.encoder_decoder.pairs import refuse_other_kinds


@dataclass
class Seq2SeqOptions(TaskOptions, FileOptions):
    """The records, and what becomes of them."""

    data: list[str] = field(metadata={"help": "Files, folders or hub names: source/target, translation, triplets, ..."})
    eval_data: list[str] | None = field(default=None, metadata={"help": "Held-out sources of the same shapes."})
    eval_fraction: float = field(default=0.0, metadata={"help": "Without --eval_data: the share of records held out."})
    weights: list[float] | None = field(default=None, metadata={"help": "Share of each source in the mix."})
    shape: str | None = field(default=None, metadata={"help": "Record shape; recognised from the keys by default."})
    split: str = field(default="train", metadata={"help": "Which split of a hub dataset."})
    source_lang: str | None = field(default=None, metadata={"help": "The sources' language: the checkpoint's code, a translation's key."})
    target_lang: str | None = field(default=None, metadata={"help": "The targets' language: the checkpoint's code, a translation's key."})
    source_prefix: str = field(default="", metadata={"help": "A text before every source: 'translate Korean to English: ', of T5."})
    chat_template: str | None = field(default=None, metadata={"help": "For messages: a built-in template's name or a Jinja file, saved with the checkpoint."})
    max_source_length: int | None = field(default=None, metadata={"help": "Longer sources lose their end. By default the encoder's positions, or 512. They are counted."})
    max_target_length: int | None = field(default=None, metadata={"help": "Longer targets are left out. By default the decoder's positions, or 512. They are counted."})
    too_long: str = field(default="truncate", metadata={"help": "Sources longer than max_source_length: truncate, drop or error."})
    literal: bool = field(default=True, metadata={"help": "Encode special-token text inside sources as plain text."})
    empty_answers: str = field(default="error", metadata={"help": "error or drop: records whose source or target is empty."})
    unusable: str = field(default="drop", metadata={"help": "drop or error: records in which nothing can be learned."})
    packing: bool = field(default=True, metadata={"help": "Fill rows with several records, kept apart."})

    def __post_init__(self):
        check_held_out(self.eval_fraction, self.eval_data)
        refuse_turns(self.layout())
        check_unusable(self.unusable)
        for name, allowed in (("too_long", TOO_LONG), ("empty_answers", EMPTY_ANSWERS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]}, got {getattr(self, name)!r}")
        for name in ("max_source_length", "max_target_length"):
            if getattr(self, name) is not None and getattr(self, name) < 2:
                raise UserError(f"{name} must be at least 2, got {getattr(self, name)}")

    def reading(self) -> dict[str, Any]:
        """What `read` has to know beside the sources."""
        return {**super().reading(), "shape": self.shape, "shapes": self.shapes(seq2seq_shapes(self.source_lang, self.target_lang), one_exchange)}

    def labelling(self) -> dict[str, Any]:
        """What `seq2seq_rows` has to know beside the records, the tokenizer and the lengths."""
        return {name: getattr(self, name) for name in ("source_prefix", "too_long", "literal", "empty_answers", "unusable")}


@dataclass
class EncoderDecoderOptions(ModelOptions):
    """Which encoder-decoder is trained, where, and how much of it."""

    model: str = field(metadata={"help": "Folder or hub name of an encoder-decoder. T5, BART, Marian, mBART, M2M100, NLLB and their kin."})
    scratch: bool = field(default=False, metadata={"help": "Begin from random weights. Of the model only its config and tokenizer are used."})

    def checked(self) -> None:
        """Raise UserError for an adapter, and for a model that is no encoder-decoder, by its config and the command that trains it."""
        self.refuse_adapter()
        if self.scratch and self.lora_r > 0:
            raise UserError("scratch begins from random weights, which an adapter would leave as they are: drop --lora_r")
        if (config := known_config(self.model)) is not None:
            refuse_other_kinds(config)


@dataclass
class EvaluationOptions:
    """How held-out sources are answered while it trains."""

    eval_new_tokens: int = field(default=128, metadata={"help": "Tokens at most of an answer to a held-out source."})
    eval_num_beams: int = field(default=1, metadata={"help": "Beams of an answer to a held-out source."})

    def __post_init__(self):
        for name in ("eval_new_tokens", "eval_num_beams"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass
class Seq2SeqArguments(Arguments):
    """transformers' own arguments with defaults that suit an encoder-decoder."""

    output_dir: str | None = field(default="runs/seq2seq", metadata={"help": "Folder of the checkpoints and the final model."})
    learning_rate: float = field(default=1e-4, metadata={"help": "The highest learning rate. With LoRA ten times as much does well."})
