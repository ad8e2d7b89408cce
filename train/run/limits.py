"""What a model can take: rows longer than its context, or with ids beyond its vocabulary, are refused before they are trained on or measured."""

from collections.abc import Iterable

from transformers import PreTrainedModel

from ...data.errors import UserError
from ...infer.runners.architecture import context_limit, transformers_model


def check_fits(model: PreTrainedModel, rows: Iterable[tuple[str, int, int]]) -> None:
    """Raise UserError for the first row that the model cannot take; each is what it is called, its tokens and its highest id."""
    model = transformers_model(model)
    context, vocab = context_limit(model), model.get_input_embeddings().weight.shape[0]
    for where, tokens, highest in rows:
        if context and tokens > context:
            raise UserError(f"{where} has {tokens} tokens, the model's context only {context}: set --max_length {context} or less")
        if highest >= vocab:
            raise UserError(f"{where}: token id {highest} is beyond the model's vocabulary of {vocab}: the tokenizer belongs to another model")
