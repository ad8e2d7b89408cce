"""A model's weights under the names that llama.cpp has for them, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

from ....data.errors import UserError
from ...gguf.families import Family, held_as
from .metadata import rope_factors


def file_tensors(model: PreTrainedModel, family: Family) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of the file with its name, in float32, as llama.cpp reads it; a tied head is the embedding and not written.

    Raises UserError for a weight that the family's mapping does not know.
    """
    config = model.config
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        module, _, part = name.rpartition(".")
        called, layer = held_as(module, family)
        if called is None or part not in ("weight", "bias"):
            raise UserError(f"there is no place for {name} in a GGUF file of a {config.model_type}: export without --gguf")
        yield f"{layer}{called}.{part}", family.change(tensor.detach().float(), called, config).contiguous()
    factors = rope_factors(config, family)
    if factors is not None:
        yield "rope_freqs.weight", factors
