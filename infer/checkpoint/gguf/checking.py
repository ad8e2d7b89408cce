"""Load a GGUF file back and compare it with the model and the tokenizer that it was written from."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGMLQuantizationType
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ....data.errors import UserError
from ...gguf.families import Family
from ...gguf.reading import GgufFile
from ..quiet import without_load_report
from .agreement import agrees, probes
from .encoding import Encoder
from .four_bits import BLOCK
from .vocabulary import Vocabulary, vocabulary_in
from .weights import file_tensors

# By how much of the largest weight of a tensor its rounding may move one; in q4_0, where a search may cut the largest off, a block's root of the mean square.
ROUNDING = {
    GGMLQuantizationType.F32: 0.0, GGMLQuantizationType.F16: 2**-11, GGMLQuantizationType.BF16: 2**-8,
    GGMLQuantizationType.Q8_0: 0.5 / 127 + 2**-11,  # of the weight, and of its block's scale
    GGMLQuantizationType.Q4_0: 1 / 8,  # no scale is worse than the plain one, by which no weight moves further
}  # fmt: skip
UNREAD = ("gemma",)  # by transformers


def check_weights(file: GgufFile, model: PreTrainedModel, family: Family) -> None:
    """Raise UserError where a tensor of the file is not the model's, but for rounding."""
    left = file.names
    for name, tensor in file_tensors(model, family):
        off, largest = np.abs(file.tensor(name) - tensor.numpy()), float(tensor.abs().max())
        moved = np.sqrt(np.square(off).reshape(-1, BLOCK).mean(axis=1)).max() if file.kind(name) == GGMLQuantizationType.Q4_0 else off.max()
        if not moved <= ROUNDING[file.kind(name)] * largest:
            kind = file.kind(name).name.lower()
            raise UserError(f"{name} is held only roughly in {kind}, up to {moved / largest:.1%} of its largest weight off: choose another --gguf")
        left.remove(name)
    if left:
        raise UserError(f"{file.path} holds {min(left)}, which the model has not: its writing failed, export again")


def check_ids(file: GgufFile, tokenizer: PreTrainedTokenizerBase, vocabulary: Vocabulary) -> None:
    """Raise UserError where the file's tokenizer is not the one that was written, or gives a conversation other ids than `tokenizer`."""
    read, scores = vocabulary_in(file), vocabulary.scores
    same = (read.tokens, read.types, read.merges) == (vocabulary.tokens, vocabulary.types, vocabulary.merges) and read.ids == dict(vocabulary.ids)
    if not same or read.scores != (scores and np.float32(scores).tolist()):
        raise UserError(f"{file.path} does not hold the tokenizer that was to be written: export again")
    texts, encoder = probes(read, tokenizer), Encoder(read)
    for text in texts["chat"] or texts["plain"]:
        if not agrees(encoder, tokenizer, text):
            raise UserError(f"{file.path} gives {text[:60]!r} other ids than the tokenizer: export again")


def read_model(file: GgufFile, config: PretrainedConfig) -> PreTrainedModel | None:
    """Return the model that transformers' own reader makes of the file, in float32; None for a family that it does not read."""
    if config.model_type in UNREAD:
        return None
    if config.model_type == "mistral":  # the reader knows llama.cpp's name alone
        others = ("model_type", "architectures", "sliding_window")
        config = LlamaConfig(**{name: value for name, value in config.to_dict().items() if name not in others})
    with without_load_report():
        model = AutoModelForCausalLM.from_pretrained(
            file.path.parent, gguf_file=file.path.name, config=config, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    return model.eval()
