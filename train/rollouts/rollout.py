"""The policy answers prompts through the engine: once with the probability of each token, or several times for somebody to compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...infer import SamplingParams, generate
from ...infer.engine.core import MAX_ROWS
from ...infer.requests.rng import hashed


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


def sample_n(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    count: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: Sequence[Any] = (0,),
) -> list[list[str]]:
    """Sample `count` answers to each row's prompt; those that are empty or the same as an earlier one are left out.

    Each answer's noise comes from `seed` and its place alone. An answer cut off at `max_new_tokens` counts as it stands.
    """
    repeated = [row for row in rows for _ in range(count)]
    rollouts = roll_out(model, tokenizer, repeated, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    texts = [rollout.text.strip() for rollout in rollouts]
    return [list(dict.fromkeys(filter(None, texts[start : start + count]))) for start in range(0, len(texts), count)]
