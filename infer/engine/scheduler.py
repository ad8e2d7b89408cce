"""Which requests come in, and when: first come, first served, while there is room."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from ..requests.generation import Generation, Stage
from ..requests.strategy import Host
from ..runners.contract import Runner
from .budget import Budget

MAX_NEW_POSITIONS = 16_384  # of prompts a pass, where nobody waits for a next token: bounds the memory of activations


class Scheduler:
    """Lets waiting requests in as long as the cache has slots for them, the budget has bytes, and a pass has positions for their prompts.

    A request is waiting, prefilling, running or done. From when it is let in until the step that runs its prompt is over, all slots that it
    may come to hold are reserved for it; from then on it counts for those that it holds, and what it gives back is there for the next. Of
    the budget it takes the most that it may come to until it is done and holds nothing. Who waits longest comes first: nobody overtakes, but
    where a prompt that is being read begins as theirs, who waits for it stands aside with the room that it has got.
    """

    def __init__(self, runner: Runner, max_slots: int, budget: Budget | None = None, prefix_cache: Any = None):
        """At most `max_slots` slots of the runner are in use at a time; those of other runners are not counted.

        With a budget, what requests may come to and what `prefix_cache` keeps stays within it; what is kept gives way to requests.
        """
        self.runner = runner
        self.max_slots = max_slots
        self.budget = budget
        self.prefix_cache = prefix_cache
        self.waiting: deque[Generation] = deque()
        self.aside: list[Generation] = []  # those that have room, and wait for another prompt to be read
        self.admitted: list[Generation] = []

    @property
    def running(self) -> int:
        """How many requests are let in and not done."""
        return sum(not generation.done for generation in self.admitted)

    @property
    def reserved(self) -> int:
        """How many bytes are reserved for the requests that are let in, and those that stand aside."""
        taking = [generation for generation in self.admitted if generation.slots_held or not generation.done]
        return sum(generation.bytes_reserved for generation in [*self.aside, *taking])

    def submit(self, generation: Generation, slots: int, host: Host | None = None) -> None:
        """Queue a request that may come to hold so many slots; raises UserError, with the numbers, for one that the budget can never hold.

        The budget asks `host` for the runners of further models.
        """
        if self.budget is not None and not generation.bytes_reserved:  # who hands it in may have asked the budget already
            generation.bytes_reserved = self.budget.check(generation.request, host)
        generation.slots_reserved = slots
        self.waiting.append(generation)

    def remove(self, generation: Generation) -> bool:
        """Take a request out of the queue; return whether it was there."""
        for queue in (self.waiting, self.aside):
            if generation in queue:
                queue.remove(generation)
                return True
        return False

    @property
    def streaming(self) -> bool:
        """Whether a request gets its tokens now."""
        return any(generation.stage is Stage.RUNNING for generation in self.admitted)

    @property
    def crowded(self) -> bool:
        """Whether at least as many requests wait as get their tokens: to spare these would cost the others more."""
        return len(self.waiting) >= sum(generation.stage is Stage.RUNNING for generation in self.admitted)

    def admit(self, idle: bool = False, positions: int = MAX_NEW_POSITIONS) -> Generation | None:
        """Let the next request in and return it, prefilling; None where none waits or there is no room for it now.

        Prompts that are read at once join a pass until it has so many positions; one that is longer goes in by parts, beside them. Where the
        engine is `idle`, nothing will come free by waiting, so one comes in whatever is held.
        """
        for generation in self.aside:
            if idle or not self._awaits(generation):
                if not (idle or self._has_positions(generation, positions)):
                    return None
                self.aside.remove(generation)
                return self._let_in(generation)
        while self.waiting:
            generation = self.waiting[0]
            has_room = idle or self._has_slots(generation) and self._has_positions(generation, positions)
            if not (has_room and self._has_bytes(generation) or idle):
                return None
            self.waiting.popleft()
            if idle or not self._awaits(generation):
                return self._let_in(generation)
            self.aside.append(generation)
        return None

    def _let_in(self, generation: Generation) -> Generation:
        generation.stage, generation.started = Stage.PREFILLING, time.monotonic()
        self.admitted.append(generation)
        return generation

    def track(self, generation: Generation) -> None:
        """Count the slots of a running request that was not let in here."""
        if generation not in self.admitted:
            generation.stage, generation.slots_reserved = Stage.RUNNING, 0
            self.admitted.append(generation)

    def prompts_were_run(self, generations: Iterable[Generation]) -> None:
        """Note that a pass has just run these requests: those that were prefilling are running, and may fork until the step ends."""
        for generation in generations:
            if generation.stage is Stage.PREFILLING:
                generation.stage = Stage.RUNNING

    def end_step(self) -> None:
        """Give up what is reserved for requests that have forked by now, and drop those that are done and hold nothing."""
        for generation in self.admitted:
            if generation.stage is Stage.RUNNING:
                generation.slots_reserved = 0
        self.admitted = [generation for generation in self.admitted if generation.slots_held or not generation.done]

    def close(self) -> None:
        """Drop all requests and give back their slots."""
        for generation in self.admitted:
            generation.release_all_slots()
        for queue in (self.admitted, self.aside, self.waiting):
            queue.clear()

    def slots_taken(self, generation: Generation) -> int:
        """Return how many slots a request that was let in counts for: those it holds, and at least those reserved for it until it is done."""
        held = sum(runner is self.runner for runner, _ in generation.slots_held)
        return held if generation.done else max(held, generation.slots_reserved)

    def _has_slots(self, generation: Generation) -> bool:
        """Whether there are as many slots as a request may come to hold; one that is wider than all of them comes in alone."""
        taken = sum(map(self.slots_taken, [*self.admitted, *self.aside]))
        return not taken or taken + generation.slots_reserved <= self.max_slots

    def _has_positions(self, generation: Generation, positions: int) -> bool:
        """Whether a pass of so many positions of prompts takes one more, or it goes in by parts; what a prefix cache has of a prompt is not run."""
        others = [other for other in self.admitted if other.stage is Stage.PREFILLING and not other.by_parts]
        length = generation.request.prompt_length - self._known(generation)
        by_parts = self.runner.capabilities.parts and generation.request.source_ids is None and length > positions  # an encoder reads at once
        return by_parts or not others or sum(other.request.prompt_length - other.cached_tokens for other in others) + length <= positions

    def _has_bytes(self, generation: Generation) -> bool:
        """Whether the budget holds a request beside the others; kept pasts are given up for it where that makes the room."""
        if self.budget is None:
            return True
        room = self.budget.limit - self.reserved - generation.bytes_reserved
        if room < 0 or self.prefix_cache is None:
            return room >= 0  # it waits for others: what is kept may serve them till then
        if self.prefix_cache.bytes > room:
            self._known(generation)  # what it will go on from goes last
            self.prefix_cache.make_room(self.prefix_cache.bytes - room)
        return self.prefix_cache.bytes <= room

    def _known(self, generation: Generation) -> int:
        """Return how much of a request's prompt the prefix cache has."""
        request = generation.request
        return 0 if request.prefix_cache is None else request.prefix_cache.known(request.prompt_ids, self.runner, request.salt)

    def _awaits(self, generation: Generation) -> bool:
        """Whether a prompt that is being read begins with much of this one's, which then need not be read twice."""
        request = generation.request
        if request.prefix_cache is None:
            return False
        return request.prefix_cache.awaited(request.prompt_ids, self.runner, request.salt, self.admitted)
