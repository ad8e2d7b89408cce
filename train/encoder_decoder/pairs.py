"""What an encoder-decoder is trained on, checked before anything is computed, and how it takes several pairs at once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.labels import IGNORE_INDEX
from ...data.packing import padding_id
from ...data.seq2seq.packing import Row, collate_padded_pairs, collate_pairs, lengths_of
from ...infer.runners.architecture import transformers_model
from ...infer.runners.encoder_decoder import decoder_start, position_limit, refuse_unfit
from ...infer.runners.end_to_end import can_run_end_to_end
from ...infer.runners.paradigm import diffusion_of, is_encoder
from ..stages.build import Stage

PairSize = tuple[int, int, int, int]  # the tokens of the longest source and of the longest target, and the highest id of either side
SIDES = (("source", "encoder"), ("target", "decoder"))


@dataclass(frozen=True)
class PairStage(Stage):
    """A stage whose rows are pairs of a source and a target: `size_of` gives a `PairSize`."""

    def refuse_model(self, model: PreTrainedModel) -> None:
        """Raise UserError for what is no encoder-decoder from text to text, by the command that trains it, and for one that does not say how a target begins."""
        refuse_other_kinds(model.config)
        refuse_unfit(model)
        decoder_start(model)

    def check_rows(self, model: nn.Module, rows: Any, name: str, max_length: int | None, answer_tokens: int) -> None:
        """Raise UserError for the first row that the model cannot take, by its source or its target."""
        if isinstance(rows, IterableDataset):
            longest = getattr(rows, "longest", None)  # a number for both sides, or one each
            sizes = [] if longest is None else [("a streamed row", *(longest if isinstance(longest, tuple) else (longest, longest)), 0, 0)]
        elif (size := getattr(rows, "size", None)) is not None:  # rows that are made when they are asked for know what they come to
            sizes = [(name, *size)]
        else:
            sizes = ((where, *self.size_of(row, where)) for where, row in self.named(rows, name))
        check_pairs_fit(transformers_model(model), sizes)


def refuse_other_kinds(config: Any) -> None:
    """Raise UserError for a decoder and an encoder, each by the command that trains it."""
    kind = config.model_type
    if diffusion_of(config) is not None:
        raise UserError(f"this {kind} is a model of masked diffusion, which has no encoder: train it by `seodang diffusion`")
    if is_encoder(config):
        raise UserError(f"{kind} is an encoder, which writes nothing: train it by `seodang mlm` on text, by `seodang classify` on labels")
    if not config.is_encoder_decoder:
        raise UserError(f"{kind} is a decoder, which reads a prompt as the beginning of its answer: train it by `seodang sft`; seq2seq takes T5, BART, Marian and their kin")


def pair_size(row: Row, where: str) -> PairSize:
    """Of the pairs of a row, packed or not. Raises UserError for an empty side, and sides of the target that do not go together."""
    source, shown, labels = row["input_ids"], row["decoder_input_ids"], row["labels"]
    sources, targets = lengths_of(row)
    if not source or min(sources) < 1:
        raise UserError(f"{where} has an empty source: fill it in, or leave it out")
    if not labels or min(targets) < 1:
        raise UserError(f"{where} has an empty target: fill it in, or leave it out")
    if len(shown) != len(labels):
        raise UserError(f"{where} shows the decoder {len(shown)} tokens and has {len(labels)} labels: one is said where one is shown, give as many")
    if len(sources) != len(targets) or sum(sources) != len(source) or sum(targets) != len(labels):
        raise UserError(f"{where} has {len(source)} source and {len(labels)} target tokens, its lengths {sources} and {targets} say otherwise")
    if all(label == IGNORE_INDEX for label in labels):
        raise UserError(f"{where} teaches nothing: all of its target is given, leave it out")
    return max(sources), max(targets), max(source), max(max(shown), max(labels))


def check_pairs_fit(model: PreTrainedModel, sizes: Iterable[tuple[str, int, int, int, int]]) -> None:
    """Raise UserError for the first of rows, each where it stands and its `PairSize`, that is longer than the model's positions or has ids beyond its vocabulary."""
    limits = [position_limit(model, side) for _, side in SIDES]
    vocabularies = [model.get_input_embeddings().weight.shape[0], model.get_output_embeddings().weight.shape[0]]
    for where, *both in sizes:
        for (name, side), tokens, highest, limit, vocab in zip(SIDES, both[:2], both[2:], limits, vocabularies, strict=True):
            if limit is not None and tokens > limit:
                raise UserError(f"{where} has a {name} of {tokens} tokens, the {side} only {limit} positions: set --max_{name}_length {limit} or less")
            if highest >= vocab:
                raise UserError(f"{where}: token id {highest} of the {name} is beyond the model's vocabulary of {vocab}: the tokenizer belongs to another model")


@dataclass(frozen=True)
class PaddedPairs:
    """Pairs to a batch of padded rows; `told` says why, for the plan."""

    pad_token_id: int
    told: str

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        return collate_padded_pairs(rows, self.pad_token_id)


def pair_collator(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Row]], dict[str, Tensor]]:
    """How pairs become a batch: end to end, the model's attention set to it, where each then comes out as it does alone; else padded on the right."""
    if can_run_end_to_end(model):
        return collate_pairs
    kind = transformers_model(model).config.model_type
    return PaddedPairs(padding_id(tokenizer), f"padded to the longest of a step: pairs end to end would not be kept apart by this {kind}")
