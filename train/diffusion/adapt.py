"""A checkpoint that is to speak by diffusion: its mask token, and what its config says of it."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.chat import end_of_turn_ids
from ...data.errors import UserError
from ...infer.runners.architecture import attention_is_replaceable, carries_state
from ...infer.runners.paradigm import ATTENTIONS, BIDIRECTIONAL, BLOCK_CAUSAL, Diffusion, declare, diffusion_of

LIKE_A_SLIDING_WINDOW = ("sliding_attention", "chunked_attention")


def adapt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    mask_token: str | None = None,
    shift: int | None = None,
    attention: str | None = None,
    block_length: int | None = None,
    autoregressive: bool = False,
    trained: bool = True,
    may_grow: bool = True,
) -> Diffusion:
    """Make the model one that speaks by diffusion, its config and the tokenizer saying so; return what it is.

    `mask_token` is the tokenizer's own unless it is named: a special token of its that is not used, or a new one, for which the embeddings grow.
    Unless it was the mask before, its embedding becomes the mean of the others. `shift` and `attention` are 1 and bidirectional for weights that
    were trained from left to right, and 0 for ones that were not `trained` at all; a diffusion model keeps what it has. `block_length` is how
    many tokens a block has, where the attention is block_causal. `autoregressive` says that it is trained to speak from left to right beside. Where
    the embeddings may not grow, as beneath an adapter, a new token is refused.
    Raises UserError for an architecture that cannot, for a tokenizer without a mask token where none is named, and for what contradicts itself or a
    diffusion model's config.
    """
    was = diffusion_of(model.config)
    sight = was.attention if was is not None else BIDIRECTIONAL if attention is None else attention
    refuse_one_way(model)
    refuse_attention(model, sight, autoregressive)
    if was is not None:
        diffusion = replace(_unchanged(was, tokenizer, mask_token, shift, attention, block_length), autoregressive=autoregressive)
    else:
        refuse_blocks(sight, block_length)
        id = set_mask_token(model, tokenizer, mask_token, may_grow)
        diffusion = Diffusion(id, int(trained) if shift is None else shift, sight, block_length, autoregressive)
    declare(model.config, diffusion)
    return diffusion


def refuse_attention(model: PreTrainedModel, attention: str, autoregressive: bool = False) -> None:
    """Raise UserError for who sees whom where the model cannot be trained so."""
    if attention not in ATTENTIONS:
        raise UserError(f"there is no attention {attention!r}: choose {', '.join(ATTENTIONS[:-1])} or {ATTENTIONS[-1]}")
    if not lies_end_to_end(model) and (attention != BIDIRECTIONAL or autoregressive):
        asked = "a co-loss" if attention == BIDIRECTIONAL else f"attention {attention}"
        raise UserError(f"{model.config.model_type} has an attention of its own, which cannot do {asked}: train it {BIDIRECTIONAL}, without a co-loss")


def refuse_blocks(attention: str, block_length: int | None) -> None:
    """Raise UserError for blocks that an attention does not have, or that are not said."""
    if attention == BLOCK_CAUSAL and block_length is None:
        raise UserError(f"attention {BLOCK_CAUSAL} goes by blocks: say of how many tokens, --block_length 4 say")
    if attention != BLOCK_CAUSAL and block_length is not None:
        raise UserError(f"block_length {block_length} is for attention {BLOCK_CAUSAL}, and {attention} knows no blocks: leave it out, or ask for that attention")
    if block_length is not None and block_length < 1:
        raise UserError(f"block_length must be at least 1, got {block_length}")


def lies_end_to_end(model: PreTrainedModel) -> bool:
    """Whether the model's attention can be told who sees whom; else its records are padded, and its config alone says that all see all."""
    return attention_is_replaceable(model)


def refuse_one_way(model: PreTrainedModel) -> None:
    """Raise UserError for an architecture that cannot look in both directions, or of which that is not known."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    window = any(kind in LIKE_A_SLIDING_WINDOW for kind in kinds) if kinds else getattr(config, "sliding_window", None)
    for wrong, why in (
        (model.config.is_encoder_decoder, "is an encoder-decoder model"),
        (window, "attends in a sliding window, which does not go both ways"),
        (not window and carries_state(model), "remembers by a state, which runs from left to right"),
        (model.get_output_embeddings() is None, "has no language model head"),
    ):
        if wrong:
            raise UserError(f"{config.model_type} {why}: diffusion needs a decoder with full attention, of the Llama or Qwen kind say")


def _unchanged(
    was: Diffusion, tokenizer: PreTrainedTokenizerBase, mask_token: str | None, shift: int | None, attention: str | None, block_length: int | None
) -> Diffusion:
    """What a diffusion model is and stays; a tokenizer that did not know its mask token does then."""
    own = tokenizer.convert_ids_to_tokens(was.mask_token_id)
    if own is None:
        raise UserError(f"the tokenizer has no token {was.mask_token_id}, which the checkpoint's config calls its mask token: use the checkpoint's tokenizer")
    asked_of = {"mask_token": (mask_token, own), "shift": (shift, was.shift), "attention": (attention, was.attention), "block_length": (block_length, was.block_length)}
    for name, (asked, has) in asked_of.items():
        if asked is not None and asked != has:
            raise UserError(f"{name} {asked} does not go with this checkpoint, which was trained by diffusion with {name} {has}: leave it out")
    _declare_mask(tokenizer, own)
    return was


# The mask token


def set_mask_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, named: str | None = None, may_grow: bool = True) -> int:
    """Give tokenizer and model a mask token; return its id. See `adapt`."""
    token = tokenizer.mask_token if named is None else named
    if token is None:
        unused = ", ".join(unused_tokens(tokenizer)[-4:])
        raise UserError(
            "the tokenizer has no mask token: name one, --mask_token '<|mask|>' to add it"
            + (f", or a special token that is not used ({unused})" if unused else "")
        )
    vocabulary, rows = tokenizer.get_vocab(), model.get_input_embeddings().weight.shape[0]
    if vocabulary.get(token, len(tokenizer)) >= rows and not may_grow:
        raise UserError(f"mask_token {token!r} is new, and an adapter has no room for its embedding: name a special token that is not used, or train all weights")
    if token in vocabulary:
        used = {*end_of_turn_ids(tokenizer), *(getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk"))}
        if vocabulary[token] not in tokenizer.added_tokens_decoder or vocabulary[token] in used or token in _template(tokenizer):
            raise UserError(f"mask_token {token!r} is a token that texts need: name a special token that is not used, or a new one")
    _declare_mask(tokenizer, token)
    id = tokenizer.mask_token_id
    if id >= rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    reset_to_mean(model, id, rows)
    return id


def unused_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens that neither the template nor the tokenizer itself gives a meaning, as far as can be seen, by their ids."""
    named, template = set(tokenizer.special_tokens_map.values()), _template(tokenizer)
    added = sorted(tokenizer.added_tokens_decoder.items())
    return [token.content for _, token in added if token.special and token.content not in named and token.content not in template]


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.chat_template or "")  # several of them, by name, are a dictionary


def _declare_mask(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    if tokenizer.mask_token != token:
        tokenizer.add_special_tokens({"mask_token": token})


def reset_to_mean(model: PreTrainedModel, id: int, known: int) -> None:
    """Let a token's embedding be the mean of the first `known` ones, but its own: what it meant before would only mislead. Its row of the head too."""
    layers = [model.get_input_embeddings()]
    if model.get_output_embeddings().weight is not layers[0].weight:
        layers.append(model.get_output_embeddings())
    with torch.no_grad():
        for layer in layers:
            others = torch.arange(known, device=layer.weight.device) != id
            layer.weight[id] = layer.weight[:known][others].float().mean(dim=0).to(layer.weight.dtype)
