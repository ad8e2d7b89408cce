"""Prompts to answers: all at once, one by one as they finish, or token by token."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterator, Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.chat import end_of_turn_ids, prompt_ids, text_ids
from ..data.formats import Dialogue
from ..data.refusal import UserError
from .detokenise import detokeniser
from .engine import MAX_ROWS, Engine
from .events import Event, Finished, Result
from .params import SamplingParams
from .row import Request
from .runner import open_runner
from .stop import AnswerText, end_ids

Prompt = str | list[dict] | Dialogue | list[int]  # a text to continue, messages (with tools) to answer, or ids


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
    *,
    trace: bool = False,
    max_rows: int = MAX_ROWS,
) -> list[Result]:
    """Answer every prompt; one result a prompt, in their order.

    A text is continued as it stands, messages (a list, or a Dialogue with tools) go through the chat template, ids are taken as they are.
    `params` are one for all or one a prompt. At most `max_rows` answers grow at the same time. Raises UserError, before
    anything is computed, for a prompt that is empty or too long for the model with its `max_new_tokens`.
    """
    if trace:
        raise UserError("trace=True is not available yet: leave it out")
    results = answers(model, tokenizer, prompts, params, max_rows=max_rows)
    return sorted(results, key=lambda result: result.row)


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams] = SamplingParams(),
    *,
    max_rows: int = MAX_ROWS,
) -> Iterator[Result]:
    """As `generate`, but each result comes as soon as it is there; `result.row` counts the prompts."""
    runner = open_runner(model)
    requests = new_requests(model, tokenizer, prompts, params, runner.limit)
    return (requests[event.row].result for event in run(runner, requests, max_rows) if isinstance(event, Finished))


def stream(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, params: SamplingParams = SamplingParams()
) -> Iterator[Event]:
    """Answer one prompt, token by token; the texts of the events join to the answer's text.

    Raises UserError as `generate` does, at once and not at the first event.
    """
    runner = open_runner(model)
    return run(runner, new_requests(model, tokenizer, [prompt], params, runner.limit), max_rows=1)


def run(runner, requests: Sequence[Request], max_rows: int = MAX_ROWS) -> Iterator[Event]:
    """Run the requests together to their ends and yield what happens; rows are given back if the caller stops early."""
    heard: deque[Event] = deque()
    engine = Engine(runner, max_rows)
    for request in requests:
        request.hear = heard.append
        engine.submit(request)
    try:
        going = True
        while going:
            going = engine.step()
            while heard:
                yield heard.popleft()
    finally:
        engine.close()


def new_requests(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    params: SamplingParams | Sequence[SamplingParams],
    limit: int | None,
) -> list[Request]:
    """Encode and check every prompt."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise UserError(f"prompts must be a list of prompts, got {type(prompts).__name__}: put the one prompt in a list")
    each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
    if len(each) != len(prompts):
        raise UserError(f"{len(each)} params for {len(prompts)} prompts: give one for all or one a prompt")
    ends = end_ids(model, tokenizer)
    template_ends = frozenset(end_of_turn_ids(tokenizer)) if any(map(is_dialogue, prompts)) else frozenset()
    requests = []
    for index, (prompt, own) in enumerate(zip(prompts, each)):
        ids = encode(tokenizer, prompt, f"prompt {index + 1}")
        check_length(len(ids), own.max_new_tokens, limit, f"prompt {index + 1}")
        seed = secrets.randbits(32) if own.seed is None else own.seed
        stops = ends | template_ends if is_dialogue(prompt) else ends
        requests.append(Request(index, ids, own, seed, stops, text_maker(tokenizer, own.stop)))
    return requests


def text_maker(tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]):
    """Return what makes the empty text of an answer."""
    return lambda: AnswerText(detokeniser(tokenizer), stops)


def is_dialogue(prompt: Prompt) -> bool:
    """Whether the prompt is messages, which go through the chat template."""
    return isinstance(prompt, Dialogue) or not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], dict)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, name: str = "the prompt") -> list[int]:
    """Return a prompt's ids; raises UserError for one that is empty or of another type."""
    if isinstance(prompt, Dialogue):
        ids = prompt_ids(tokenizer, prompt.messages, prompt.tools)
    elif is_dialogue(prompt):
        ids = prompt_ids(tokenizer, prompt)
    elif isinstance(prompt, str):
        ids = text_ids(tokenizer, prompt)
    else:
        ids = [int(id) for id in prompt]
    if not ids:
        raise UserError(f"{name} is empty: give at least one token to continue")
    if max(ids) >= len(tokenizer) or min(ids) < 0:
        raise UserError(f"{name} has the id {max(ids)}, but the tokenizer's {len(tokenizer)} ids begin at 0")
    return ids


def check_length(tokens: int, new: int, limit: int | None, name: str) -> None:
    """Raise UserError where prompt and answer together would pass the end of the model's positions."""
    if limit is not None and tokens + new > limit:
        raise UserError(
            f"{name} has {tokens} tokens, which with max_new_tokens={new} is more than the {limit} positions of the model: "
            "shorten the prompt or lower max_new_tokens"
        )
