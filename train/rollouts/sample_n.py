"""Several different answers to each prompt, for somebody to compare."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .rollout import roll_out


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
    asked = [row for row in rows for _ in range(count)]
    said = roll_out(model, tokenizer, asked, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    texts = [rollout.text.strip() for rollout in said]
    return [list(dict.fromkeys(filter(None, texts[start : start + count]))) for start in range(0, len(texts), count)]
