"""Let the policy answer prompts through the engine, and keep what it said with how likely it found each token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...data.errors import UserError
from ...infer import SamplingParams, generate
from ...infer.requests.rng import hashed
from ...infer.runners.architecture import context_limit, transformers_model

MAX_ROWS = 64  # answers that grow at the same time


@dataclass
class Rollout:
    """One sampled answer: its ids end in an end token where it `ended` by itself; `logprobs` are the sampler's, one a token."""

    row: dict[str, Any]  # the prompt's row: prompt_ids, messages, columns
    answer_ids: list[int]
    logprobs: list[float]
    text: str
    ended: bool

    @property
    def branch(self) -> dict[str, Any]:
        """What `collate_branches` takes."""
        return {"prompt_ids": self.row["prompt_ids"], "branches": [self.answer_ids]}


def roll_out(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: Sequence[Any] = (0,),
    places: Sequence[int] | None = None,
    max_rows: int = MAX_ROWS,
) -> list[Rollout]:
    """Answer each row's `prompt_ids` once, sampled from the model's whole distribution at a temperature; greedily at 0.

    Nothing else may shape the distribution (top-p and the like), or the sampler would not be the policy that is trained. Each answer's noise
    comes from `seed` and its place alone: that in `rows`, or `places` where the rows are a share of several processes.
    """
    params = [
        SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=hashed(*seed, place, size=4))
        for place in (range(len(rows)) if places is None else places)
    ]
    with torch.no_grad():
        results = generate(model, tokenizer, [row["prompt_ids"] for row in rows], params, max_rows=max_rows, on_error="raise")
    return [Rollout(row, result.ids, result.logprobs, result.text, result.finish_reason == "eos") for row, result in zip(rows, results, strict=True)]


def check_prompts(rows: Sequence[dict[str, Any]], model: PreTrainedModel, max_new_tokens: int) -> None:
    """Refuse prompts that leave no room for an answer in the model's context, or hold ids beyond its vocabulary."""
    if not rows:
        raise UserError("there are no prompts to answer: check the data with `seodang preview`")
    limit = context_limit(transformers_model(model))
    vocab = model.get_input_embeddings().weight.shape[0]
    for number, row in enumerate(rows, start=1):
        where, length = row.get("where") or f"prompt {number}", len(row["prompt_ids"])
        if limit is not None and length + max_new_tokens > limit:
            raise UserError(
                f"{where} has {length} tokens, which with max_new_tokens {max_new_tokens} is more than the model's context of {limit}: "
                "shorten it, leave it out (--max_prompt_length), or lower --max_new_tokens"
            )
        if max(row["prompt_ids"]) >= vocab:
            raise UserError(f"{where}: token id {max(row['prompt_ids'])} is beyond the model's vocabulary of {vocab}: the tokenizer is another model's")
