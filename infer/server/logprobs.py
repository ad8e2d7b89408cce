"""Log-probabilities in the forms of OpenAI's completions, of its chat completions, and of vLLM's prompt_logprobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..requests.likelihoods import ScoredToken, TokenLogprobs, said


def name_of(token: ScoredToken) -> str:
    """A token as completions write it: its text, or where it is no whole characters its bytes (`bytes:\\xec`)."""
    if token.bytes is not None:
        try:
            return token.bytes.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.text


def completion_logprobs(tokens: Sequence[TokenLogprobs | ScoredToken], offsets: Sequence[int]) -> dict[str, list]:
    """The four lists of a completion; `offsets` say where in the text each token begins. Of a token that nothing stands before the logprob is null."""
    known = [each if isinstance(each, TokenLogprobs) else None for each in tokens]
    return {
        "tokens": [name_of(each) for each in tokens],
        "token_logprobs": [each and each.logprob for each in known],
        "top_logprobs": [each and {name_of(other): other.logprob for other in (each, *reversed(each.top))} for each in known],
        "text_offset": list(offsets),
    }


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], judged: Sequence[TokenLogprobs | None], most: int
) -> list[TokenLogprobs | ScoredToken]:
    """A prompt's tokens with the `most` likeliest in each place; the first, of which nothing is known, by its name alone."""
    return [
        ScoredToken(id, 0.0, *said(tokenizer, id)) if known is None else TokenLogprobs(known.id, known.logprob, known.text, known.bytes, known.top[:most])
        for id, known in zip(ids, judged)
    ]


def chat_logprobs(tokens: Sequence[TokenLogprobs]) -> list[dict[str, Any]]:
    """The list under `content` of a chat completion's logprobs."""
    return [{**chat_logprob(each), "top_logprobs": list(map(chat_logprob, each.top))} for each in tokens]


def chat_logprob(token: ScoredToken) -> dict[str, Any]:
    """A token of it; the bytes of several join to a character that is spread over them."""
    return {"token": name_of(token), "logprob": token.logprob, "bytes": list(token.bytes) if token.bytes is not None else None}


def prompt_logprobs(judged: Sequence[TokenLogprobs | None]) -> list[dict[str, Any] | None]:
    """What vLLM tells of a prompt: for each token, by id, itself and the likeliest in its place; the rank of one that is not among these is null."""
    return [each and {str(other.id): told(other, each.top) for other in (*each.top, each)} for each in judged]


def told(token: ScoredToken, top: Sequence[ScoredToken]) -> dict[str, Any]:
    """One of these, with its rank from 1."""
    rank = next((place for place, other in enumerate(top, 1) if other.id == token.id), None)
    return {"logprob": token.logprob, "rank": rank, "decoded_token": token.text}
