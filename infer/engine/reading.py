"""Prompts read before their answers begin: long ones by parts, and those of which it is asked how likely the model finds them."""

from __future__ import annotations

from ..requests.generation import Generation
from ..requests.likelihoods import MAX_LOGITS, Likelihoods, TokenLogprobs
from ..requests.request import Request
from ..requests.sequence import TokenSequence, held_slot, new_slot, recalled_slot
from ..requests.strategy import Forward, Host, Strategy
from ..runners.contract import Runner


class PromptReading(TokenSequence):
    """What is given to a request on its way into the cache: `ids` are those that are read, masked ones left out."""

    def __init__(self, generation: Generation, runner: Runner, cache_slot: int, ids: list[int]):
        super().__init__(generation, runner, cache_slot, ids, text=None)

    @property
    def asks_likelihoods(self) -> bool:
        """Never: what is judged of a prompt is judged by who reads it."""
        return False

    @property
    def reads_prompt(self) -> bool:
        """Always: whatever it reads."""
        return True

    @property
    def position(self) -> int:
        """The answer's first."""
        return 0

    @property
    def seen(self) -> int:
        """How many first ids are read."""
        return self.cached

    def part(self, end: int, keep: int = 0) -> Forward:
        """The pass that reads on to `end`, as far as it goes, with the logits of the newest `keep` positions."""
        return Forward([self], [self.ids[self.seen : end]], [keep], partial=self.runner.capabilities.parts)


def asks_to_read(request: Request) -> bool:
    """Whether the likelihoods of the prompt's tokens are wanted, or those of a given beginning of the answer."""
    given = () if request.strategy is None or not request.strategy.left_to_right else request.prefix_ids  # of a canvas it is certain from the start
    return request.params.prompt_logprobs is not None or request.params.logprobs is not None and len(given) > 0


def left_to_read(request: Request, host: Host) -> int:
    """Return how many positions the request's first pass would bring, or that of its guidance where it is longer."""
    known = 0 if request.prefix_cache is None else request.prefix_cache.known(request.prompt_ids, host.runner, request.salt)
    own = len(request.prompt_ids) - known - len(request.masked_positions) + len(request.prefix_ids)
    return own if request.guidance is None else max(own, len(request.guidance.prompt_ids))


def goes_by_parts(request: Request, host: Host, room: int) -> bool:
    """Whether so much of the request is to be read that it goes in by parts, where a pass has room for so many positions of prompts."""
    return host.runner.capabilities.parts and left_to_read(request, host) > room


def read_first(generation: Generation, host: Host) -> Strategy:
    """Read all that is given to a request but its last token, and what its guidance is given, by parts; then go on with its strategy.

    `generation.past` and `guidance_past` are then slots with what was read. Where the model's judgement of what is given is asked for, no
    prefix cache is: what is said of a prompt does not hang on what was read before it. A strategy that reads the prompt itself is left to it.
    """
    request, runner = generation.request, host.runner
    masked, cache = frozenset(request.masked_positions), request.prefix_cache
    given = [id for position, id in enumerate([*request.prompt_ids, *request.prefix_ids]) if position not in masked]
    if asks_to_read(request):
        reading = PromptReading(generation, runner, new_slot(generation, runner), given)
        yield from judged(reading)
        generation.past = reading.cache_slot
    elif not request.strategy.reads_prompt:
        reading = PromptReading(generation, runner, recalled_slot(generation, runner), given)
        if cache is not None:
            cache.watch(reading)
        yield from read(reading)
        generation.past = reading.cache_slot
    if (guidance := request.guidance) is not None:
        other = guidance.runner or runner
        reading = PromptReading(generation, other, held_slot(generation, other, other.allocate()), list(guidance.prompt_ids))
        yield from read(reading)
        generation.guidance_past = reading.cache_slot
    strategy = request.strategy.start(generation, host)
    if strategy is not None:
        yield from strategy


def read(reading: PromptReading) -> Strategy:
    """Read all but the last id."""
    while reading.seen < len(reading.ids) - 1:
        yield reading.part(len(reading.ids) - 1)


def judged(reading: PromptReading) -> Strategy:
    """Read all but the last id, and let the request know how likely the model finds each: the prompt's, where that is asked, and the prefix'."""
    generation, request, ids = reading.generation, reading.request, reading.ids
    params, prefix = request.params, len(request.prefix_ids)
    first = 1 if params.prompt_logprobs is not None else len(ids) - prefix  # of those that are judged
    most = max(params.prompt_logprobs or 0, params.logprobs or 0)
    counts = [params.prompt_logprobs] * (len(request.prompt_ids) - 1) if params.prompt_logprobs is not None else []
    counts += [params.logprobs] * prefix
    found: list[TokenLogprobs | None] = []
    while reading.seen < len(ids) - 1:
        begin = max(reading.seen, first - 1)
        end = min(begin + MAX_LOGITS, len(ids) - 1)
        logits = yield reading.part(end, keep=end - begin)
        if not len(logits):
            continue
        known = Likelihoods(logits, most)
        for row, id in enumerate(ids[reading.seen + 1 - len(logits) : reading.seen + 1]):
            count = counts[len(found)]
            found.append(None if count is None else known.at(row, id, count, request.tokenizer))
    read = len(found) - prefix
    generation.prefix_logprobs = found[read:]
    if params.prompt_logprobs is not None:
        generation.tell_prompt([None, *found[:read]])
