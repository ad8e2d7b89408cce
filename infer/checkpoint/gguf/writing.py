"""Write a model and its tokenizer as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType, quants
from torch import Tensor
from transformers import PreTrainedModel

from ....data.errors import UserError
from ...gguf.families import Family
from .four_bits import q4_0
from .metadata import architecture
from .vocabulary import Vocabulary
from .weights import file_tensors

KINDS = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32), "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16), "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}  # fmt: skip
EDGES = ("token_embd.weight", "output.weight")  # embedding and head, which in 4 bits cost the most of what a text says: they take 8
PRECISE = ("position_embd.weight", "rope_freqs.weight")  # few, and added to everything


def write_gguf(path: Path, model: PreTrainedModel, family: Family, vocabulary: Vocabulary, kind: str, name: str) -> list[str]:
    """Write a model of float32 weights to `path` with matrices of the kind, one of KINDS; return what of it llama.cpp leaves out.

    Beside matrices in q4_0 embedding and head are in q8_0. Vectors stay in float32, and rows that are no whole number of a kind's blocks in
    float16. Raises UserError for weights that the kind cannot hold.
    """
    stored, file_type = KINDS[kind]
    values, notes = architecture(model.config, family)
    writer = GGUFWriter(path, family.arch)
    about = {"general.type": "model", "general.name": name, "general.file_type": int(file_type), "general.quantization_version": 2}
    for key, value in {**about, **values, **tokenizer_values(vocabulary)}.items():
        writer.add_key_value(key, value, *_types(value))
    if vocabulary.template:
        template = vocabulary.template
        writer.add_chat_template(template if isinstance(template, str) else [{"name": name, "template": text} for name, text in template.items()])
    for tensor_name, tensor in file_tensors(model, family):
        held = _stored(tensor_name, tensor, stored)
        block, size = GGML_QUANT_SIZES[held]
        writer.add_tensor_info(tensor_name, tuple(tensor.shape), np.dtype(np.float32), tensor.numel() // block * size, raw_dtype=held)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor_name, tensor in file_tensors(model, family):  # again, so that never more than one is held twice
            writer.write_tensor_data(_rounded(tensor_name, tensor, _stored(tensor_name, tensor, stored)))
    finally:
        writer.close()
    return notes


def tokenizer_values(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what the file says of the tokenizer, but for the chat template."""
    values = {
        "model": vocabulary.kind, "pre": vocabulary.pre or "default", "tokens": vocabulary.tokens, "token_type": vocabulary.types,
        "scores": vocabulary.scores, "merges": vocabulary.merges, **vocabulary.ids,
        "add_bos_token": vocabulary.add_bos, "add_eos_token": vocabulary.add_eos, "add_space_prefix": vocabulary.add_space,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def _types(value: Any) -> tuple[GGUFValueType, GGUFValueType | None]:
    """How a value is written: its type, and that of its elements."""
    if isinstance(value, list):
        return GGUFValueType.ARRAY, {str: GGUFValueType.STRING, int: GGUFValueType.INT32, float: GGUFValueType.FLOAT32}[type(value[0])]
    return {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}[type(value)], None


def _stored(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """In what a tensor is kept."""
    if tensor.dim() < 2 or name in PRECISE:
        return GGMLQuantizationType.F32
    if kind == GGMLQuantizationType.Q4_0 and name in EDGES:
        kind = GGMLQuantizationType.Q8_0
    return kind if tensor.shape[-1] % GGML_QUANT_SIZES[kind][0] == 0 else GGMLQuantizationType.F16


def _rounded(name: str, tensor: Tensor, kind: GGMLQuantizationType) -> np.ndarray:
    if kind == GGMLQuantizationType.Q4_0:
        return q4_0(tensor)
    with np.errstate(over="ignore"):  # said below
        rounded = quants.quantize(tensor.numpy(), kind)
    if kind == GGMLQuantizationType.F16 and not np.isfinite(rounded).all():
        raise UserError(f"{name} has weights up to {tensor.abs().max():.3g}, beyond what f16 holds (65504): choose --gguf bf16 or f32")
    return rounded
