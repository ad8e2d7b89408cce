"""What a model thought of tokens, for a file and for the terminal."""

from collections.abc import Iterator, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from seodang.infer.requests.likelihoods import ScoredToken, TokenLogprobs
from seodang.infer.text.token_labels import TokenLabels, seen


def as_json(told: ScoredToken) -> dict[str, Any]:
    """Return a token as OpenAI's answers have it, with its id: `token`, `logprob`, `bytes` (null for a control token), `top_logprobs`."""
    found = {"id": told.id, "token": told.text, "logprob": told.logprob, "bytes": None if told.bytes is None else list(told.bytes)}
    return found | ({"top_logprobs": [as_json(each) for each in told.top]} if isinstance(told, TokenLogprobs) else {})


def lines(of_prompt: Sequence[TokenLogprobs | None], of_answer: Sequence[TokenLogprobs], tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    """Return a line a token: its log-probability, itself, and the likeliest in its place; under a heading where there are both kinds.

    Without a tokenizer a token is called what it says.
    """
    labels = TokenLabels(tokenizer) if tokenizer is not None and (of_prompt or of_answer) else None
    names = (lambda told: labels(told.id)) if labels else (lambda told: seen(told.text))
    for heading, told in (("prompt", of_prompt), ("answer", of_answer)):
        if told:
            yield f"{heading}: log-probabilities by the model alone"
        for each in told:
            if each is not None:
                others = "  ".join(f"{names(top)} {top.logprob:.3f}" for top in each.top)
                yield f"{each.logprob:9.3f}  {names(each)}" + (f"   | {others}" if others else "")
