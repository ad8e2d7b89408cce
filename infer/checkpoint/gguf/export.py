"""A model as a GGUF file, in two steps: what can be refused before anything is loaded, and the file, checked by loading it back."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ....data.errors import UserError
from ...gguf.families import family_of, left_to_right_alone
from ...gguf.reading import GgufFile
from ..logit_change import largest_change
from .agreement import settled
from .checking import check_ids, check_weights, read_model
from .metadata import architecture
from .vocabulary import ENDS, Vocabulary, vocabulary_of
from .writing import write_gguf

# The largest share of the logits' spread by which rounding may move one.
TOLERANCE = {"f32": 1e-4, "f16": 0.01, "bf16": 0.05, "q8_0": 0.15, "q4_0": 0.6}


def plan_gguf(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> Vocabulary:
    """Return the tokenizer as the file will have it; `ends` are the ids that end a text.

    Raises UserError for a family, a configuration or a tokenizer that llama.cpp does not know.
    """
    architecture(config, family_of(config))
    return settled(vocabulary_of(tokenizer, config.vocab_size, ends), tokenizer)


@torch.no_grad()
def save_gguf(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary, kind: str, probe: Tensor
) -> tuple[list[str], float]:
    """Write a model of float32 weights and check it; return what differs in llama.cpp, and the largest change of a logit of `probe`, [1, tokens].

    The change is a share of the logits' spread, by transformers' own reader of the file; of a family that this does not read it is nan, and the
    weights alone are compared. Raises UserError where the file is not the model.
    """
    family = family_of(model.config)
    if (rows := model.get_input_embeddings().weight.shape[0]) != len(vocabulary.tokens):
        vocabulary = settled(vocabulary_of(tokenizer, rows, [id for role, id in vocabulary.ids.items() if role in ENDS]), tokenizer)
    notes = vocabulary.notes + write_gguf(path, model, family, vocabulary, kind, path.stem.removesuffix(f"-{kind.upper()}"))
    if lost := left_to_right_alone(model.config):
        notes.append(lost)
    file = GgufFile(path)
    check_weights(file, model, family)
    check_ids(file, tokenizer, vocabulary)
    read = read_model(file, model.config)
    if read is None:
        return notes, float("nan")
    before, after = (each(input_ids=probe).logits[0].float() for each in (model, read))
    change = largest_change(before, after)
    if not change <= TOLERANCE[kind]:
        raise UserError(f"{path.name} gives logits that differ by {change:.1%} of their spread: choose another --gguf, f32 loses nothing")
    return notes, change
