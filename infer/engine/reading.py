"""A prompt read before its answer begins, where it is asked how likely the model finds what is given to it."""

from __future__ import annotations

from ..requests.generation import Generation
from ..requests.likelihoods import Likelihoods, TokenLogprobs
from ..requests.request import Request
from ..requests.sequence import new_slot
from ..runners.contract import Runner

MAX_LOGITS = 512  # rows of logits a pass: 100 MB of float32 at a vocabulary of 49,152


def asks_to_read(request: Request) -> bool:
    """Whether the likelihoods of the prompt's tokens are wanted, or those of a given beginning of the answer."""
    return request.params.prompt_logprobs is not None or request.params.logprobs is not None and len(request.prefix_ids) > 0


def read_given(generation: Generation, runner: Runner) -> None:
    """Read all that is given to a request but its last token, in passes of bounded size, and keep what the model thought of it.

    `generation.past` is then a slot with what was read, from which the answer goes on; a prefix cache is not asked, so that what is said
    of a prompt does not hang on what was read before it.
    """
    request, params = generation.request, generation.request.params
    masked, length = frozenset(request.masked_positions), len(request.prompt_ids)
    given = [*request.prompt_ids, *request.prefix_ids]
    seen = [id for position, id in enumerate(given) if position not in masked]
    first = 1 if params.prompt_logprobs is not None else len(seen) - len(request.prefix_ids)  # of those that are judged
    most = max(params.prompt_logprobs or 0, params.logprobs or 0)
    counts = [params.prompt_logprobs] * (length - 1) if params.prompt_logprobs is not None else []
    counts += [params.logprobs] * len(request.prefix_ids)
    judged: list[TokenLogprobs | None] = []
    if len(seen) > 1:
        slot = generation.past = new_slot(generation, runner)
        done = 0
        while done < len(seen) - 1:
            begin = max(done, first - 1)
            end = min(begin + MAX_LOGITS, len(seen) - 1)
            known = Likelihoods(runner.forward([slot], [seen[done:end]], [end - begin]), most)
            for row, id in enumerate(seen[begin + 1 : end + 1]):
                count = counts[len(judged)]
                judged.append(None if count is None else known.at(row, id, count, request.tokenizer))
            done = end
    read = len(judged) - len(request.prefix_ids)
    generation.prefix_logprobs = judged[read:]
    if params.prompt_logprobs is not None:
        generation.tell_prompt([None, *judged[:read]])
