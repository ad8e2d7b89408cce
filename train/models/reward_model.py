"""A reward model: a causal trunk with a head of one label, read at an answer's last token."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from ...data.chat import end_of_turn_ids
from ...data.errors import UserError
from .extended_forward import Forward, extend_forward


def check_reward_model(model: PreTrainedModel) -> None:
    """Refuse what has no `score` head of one label over a causal trunk."""
    if model.config.is_encoder_decoder or not isinstance(getattr(model, "score", None), nn.Module):
        raise UserError(
            f"{type(model).__name__} has no head that scores the last token: "
            "load a causal model with model_class=AutoModelForSequenceClassification, num_labels=1"
        )
    if model.config.num_labels != 1:
        raise UserError(f"a reward model gives one number, this one has num_labels={model.config.num_labels}: load it with num_labels=1")


def patch_reward_head(model: PreTrainedModel) -> None:
    """Make `model(**batch)` with the places `ends` [answers] of last tokens return `logits` [answers, 1]; without them it answers as before.

    Places count along the flattened batch. transformers' own forward would run the head over every token, and look for the last one by what
    is not padding.
    """

    def at_ends(before: Forward) -> Forward:
        def forward(self, *args, ends: Tensor | None = None, **kwargs):
            if ends is None:
                return before(self, *args, **kwargs)
            kwargs.pop("labels", None)  # an adapter's wrapper hands on a None
            return SequenceClassifierOutput(logits=logits_at(self, ends, *args, **kwargs))

        return forward

    extend_forward(model, "reward head", at_ends)


def logits_at(model: PreTrainedModel, ends: Tensor, *args, **kwargs) -> Tensor:
    """The head's output at some places of the flattened batch: [answers, labels]."""
    hidden = getattr(model, model.base_model_prefix)(*args, use_cache=False, **kwargs).last_hidden_state
    return model.score(hidden.flatten(0, 1).index_select(0, ends))


def as_scores(logits: Tensor) -> Tensor:
    """[answers, 1] to scores, [answers] in float32 at least."""
    return logits.squeeze(-1).to(torch.promote_types(logits.dtype, torch.float32))


def with_distinct_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer that pads on the right with a token that ends no answer; the model's config gets that token too.

    Classification models take the last token that is not padding for the end. Where padding is the token that ends a turn, they
    would read one token early, and could not tell an answer that ended from one that was cut off.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = padding_token(tokenizer, model.get_input_embeddings().weight.shape[0])
    tokenizer.padding_side = "right"
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def padding_token(tokenizer: PreTrainedTokenizerBase, vocab: int) -> str:
    """A token to pad with that ends no turn: the tokenizer's own, the unknown token, a special one named after padding, the beginning of text.

    Raises UserError where every candidate ends an answer.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    candidates = [tokenizer.pad_token, tokenizer.unk_token, *(token for token in special if "pad" in token.lower()), tokenizer.bos_token]
    ends = end_of_turn_ids(tokenizer)
    for token in filter(None, candidates):
        id = tokenizer.convert_tokens_to_ids(token)
        if id not in ends and id < vocab:
            return token
    raise UserError(
        f"every token that could pad also ends an answer ({', '.join(tokenizer.convert_ids_to_tokens(ends))}): "
        "give the tokenizer one with add_special_tokens({'pad_token': '<pad>'}) and the model room for it with resize_token_embeddings"
    )
