"""A GGUF file's tokenizer as transformers' reader builds it, without its reading of the file again: that takes ten seconds."""

from __future__ import annotations

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

from ...data.errors import UserError
from .reading import GgufFile

SPECIAL = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a file; raises UserError for one without, and for a kind that transformers does not know."""
    told = {key.removeprefix("tokenizer."): value for key, value in file.values.items() if key.startswith("tokenizer.")}
    if not told.get("ggml.tokens") or "ggml.model" not in told:
        raise UserError(f"{file.path} holds no tokenizer: use a file with one, or the model's folder of safetensors")
    own, config = ({name: told[key] for key, name in GGUF_TOKENIZER_MAPPING[group].items() if key in told} for group in ("tokenizer", "tokenizer_config"))
    if own["tokenizer_type"] == "llama":
        config.setdefault("add_bos_token", True)  # as llama.cpp takes a file that does not say
    tokens = own["tokens"]
    for name, role in SPECIAL.items():
        number = told.get(f"ggml.{role}")
        config[name] = tokens[number] if number is not None and number < len(tokens) else None
    if "merges" in own:
        known = set(tokens)
        own["merges"] = [merge for merge in own["merges"] if merge.replace(" ", "", 1) in known]  # what makes no token falls apart again in llama.cpp
    try:
        backend, _ = convert_gguf_tokenizer(file.values["general.architecture"], own)
    except Exception as error:  # tokenizers raises no narrower one
        raise UserError(f"{file.path} has a tokenizer that cannot be built ({own['tokenizer_type']}: {error}): use the model's folder of safetensors") from None
    if backend.get_vocab_size() > len(tokens):
        backend = _without_others(backend, len(tokens))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **config)


def _without_others(backend: Tokenizer, size: int) -> Tokenizer:
    """A tokenizer without the tokens that the class which built it added of its own (GPT-2's <|endoftext|>), and which the model has no embedding for."""
    definition = json.loads(backend.to_str())
    definition["added_tokens"] = [added for added in definition["added_tokens"] if added["id"] < size]
    return Tokenizer.from_str(json.dumps(definition))
