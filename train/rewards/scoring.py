"""Scores of answers by a reward model, many at a time, a prompt that neighbours share computed once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.chat import ending, prompt_ids, text_ids
from ...data.conversation import Conversation
from ...data.errors import UserError
from ...infer.runners.architecture import context_limit, evaluating, transformers_model
from ..models.branch_logprobs import choose_branch_collator
from ..models.reward_model import as_scores, check_reward_model, logits_at

BATCH = 16  # answers in a pass
SPECIAL = ("bos_token_id", "eos_token_id", "unk_token_id")  # not the padding: a reward model has its own

Pair = tuple[list[int], list[int]]  # ids of a prompt and of an answer to it


def score_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[dict]],
    completions: Sequence[str | list[int]],
    batch_size: int = BATCH,
) -> list[float]:
    """The score of each completion behind its prompt, a list of messages.

    A text is scored with the token that ends the turn, as a trained answer was; ids are scored as they are. `tokenizer` is the reward model's.
    Raises UserError where there is not one prompt a completion.
    """
    if len(prompts) != len(completions):
        raise UserError(f"{len(prompts)} prompts and {len(completions)} completions: give one prompt a completion")
    pairs = [encode_pair(tokenizer, prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
    return score_ids(model, pairs, batch_size).tolist()


def encode_pair(tokenizer: PreTrainedTokenizerBase, prompt: list[dict], completion: str | list[int]) -> Pair:
    """The ids of a prompt and a completion, as training laid them out.

    A text of nothing but white space, which no template writes as an answer, is an end of turn alone.
    """
    if not isinstance(completion, str):
        return prompt_ids(tokenizer, prompt), list(completion)
    if not completion.strip():
        stop = [tokenizer.convert_tokens_to_ids(token) for token in ending(tokenizer).stops[:1]]
        return prompt_ids(tokenizer, prompt), text_ids(tokenizer, completion, literal=True) + stop
    conversation = Conversation(tokenizer, [*prompt, {"role": "assistant", "content": completion}])
    turn = conversation.turn(conversation.messages[:-1], conversation.messages[-1])
    return turn.prompt_ids, turn.answer_ids


@torch.no_grad()
def score_ids(model: nn.Module, pairs: Sequence[Pair], batch_size: int = BATCH) -> Tensor:
    """The score of each (prompt_ids, answer_ids), [answers] in float32 at least, without gradient and without dropout.

    Answers of one prompt that follow each other share its computation. At most `batch_size` answers go through the model at once,
    those of like length together. Raises UserError for an empty prompt or answer, one beyond the context or the vocabulary.
    """
    model = transformers_model(model)
    check_reward_model(model)
    _check(model, pairs)
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    scores = torch.empty(len(pairs), dtype=torch.promote_types(model.dtype, torch.float32), device=model.device)
    with evaluating(model), _branch_collator(model) as collate:
        for rows in _batches(pairs, batch_size):
            batch = collate(rows)
            inputs = {name: batch[name] for name in ("input_ids", "position_ids", "attention_mask", "tree") if name in batch}
            inputs = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
            found = as_scores(logits_at(model, batch["ends"].to(model.device), **inputs))
            scores[[i for row in rows for i in row["places"]]] = found
    return scores


@contextmanager
def _branch_collator(model: PreTrainedModel) -> Iterator[Any]:
    """The model's layout of branches, its attention set to it and put back after."""
    before = model.config._attn_implementation
    pad = model.config.get_text_config().pad_token_id
    try:
        yield choose_branch_collator(model, 0 if pad is None else pad, keep_last=True)
    finally:
        if model.config._attn_implementation != before:
            model.set_attn_implementation(before)


def _batches(pairs: Sequence[Pair], size: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of a prompt and its answers, the longest first, so many at a time that their answers are no more than `size`."""
    rows = []
    for prompt, places in groupby(range(len(pairs)), key=lambda i: pairs[i][0]):
        places = list(places)
        for some in (places[start : start + size] for start in range(0, len(places), size)):
            rows.append({"prompt_ids": list(prompt), "branches": [list(pairs[i][1]) for i in some], "places": some})
    rows.sort(key=lambda row: -len(row["prompt_ids"]) - max(map(len, row["branches"])))
    batch: list[dict[str, Any]] = []
    for row in rows:
        if batch and sum(len(other["branches"]) for other in batch) + len(row["branches"]) > size:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _check(model: PreTrainedModel, pairs: Sequence[Pair]) -> None:
    limit, vocab = context_limit(model), model.get_input_embeddings().weight.shape[0]
    for number, (prompt, answer) in enumerate(pairs, start=1):
        if not len(prompt) or not len(answer):
            raise UserError(f"answer {number} has {'no prompt' if not len(prompt) else 'no token'}: there is nothing to score")
        if limit and len(prompt) + len(answer) > limit:
            whole = len(prompt) + len(answer)
            raise UserError(f"answer {number} has {whole} tokens with its prompt, the reward model's context only {limit}: shorten it")
        if max(max(prompt), max(answer)) >= vocab:
            raise UserError(f"answer {number}: token id {max(max(prompt), max(answer))} is beyond the reward model's vocabulary of {vocab}: "
                            "its ids come from another tokenizer")  # fmt: skip


def different_tokens(ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase) -> str | None:
    """What one id or special token means to two tokenizers that differ in it; None where all mean the same. Padding may differ."""
    own, other = ours.get_vocab(), theirs.get_vocab()
    for token in own.keys() | other.keys():
        if own.get(token) != other.get(token):
            return f"{token!r} is {own.get(token)} to one and {other.get(token)} to the other"
    return next((f"{name} is {getattr(ours, name)} to one and {getattr(theirs, name)} to the other" for name in SPECIAL
                 if getattr(ours, name) != getattr(theirs, name)), None)  # fmt: skip


def check_same_tokenizer(policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase) -> None:
    """Raise UserError unless both give every id the same meaning; padding may differ."""
    if (different := different_tokens(policy, reward)) is not None:
        raise UserError(
            f"the policy and the reward model have different tokenizers ({different}): train the reward model from the policy's family, "
            "or set retokenise=True to have the text of each answer encoded again"
        )
