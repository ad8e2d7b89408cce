"""Which requests come in, and when: first come, first served, while there is room."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable

from ..requests.generation import Generation, Stage
from ..runners.contract import Runner

MAX_NEW_POSITIONS = 16_384  # of prompts a pass, where nobody waits for a next token: bounds the memory of activations


class Scheduler:
    """Lets waiting requests in as long as the cache has slots for them and a pass has positions for their prompts.

    A request is waiting, prefilling, running or done. From when it is let in until the step that runs its prompt is over, all slots that it
    may come to hold are reserved for it; from then on it counts for those that it holds, and what it gives back is there for the next.
    """

    def __init__(self, runner: Runner, max_slots: int):
        """At most `max_slots` slots of the runner are in use at a time; those of other runners are not counted."""
        self.runner = runner
        self.max_slots = max_slots
        self.waiting: deque[Generation] = deque()
        self.admitted: list[Generation] = []

    def submit(self, generation: Generation, slots: int) -> None:
        """Queue a request that may come to hold so many slots."""
        generation.slots_reserved = slots
        self.waiting.append(generation)

    def remove(self, generation: Generation) -> None:
        """Take a request out of those that wait, if it is one of them."""
        if generation in self.waiting:
            self.waiting.remove(generation)

    @property
    def streaming(self) -> bool:
        """Whether a request gets its tokens now."""
        return any(generation.stage is Stage.RUNNING for generation in self.admitted)

    def admit(self, idle: bool = False, positions: int = MAX_NEW_POSITIONS) -> Generation | None:
        """Let the next request in and return it, prefilling; None where none waits or there is no room for it now.

        Prompts that are read at once join a pass until it has so many positions; one that is longer goes in by parts, beside them. Where the engine is `idle`, nothing will come free by waiting, so one comes in whatever is held.
        """
        if not self.waiting or not (idle or self._has_room(self.waiting[0], positions)):
            return None
        generation = self.waiting.popleft()
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
        self.admitted.clear()
        self.waiting.clear()

    def slots_taken(self, generation: Generation) -> int:
        """Return how many slots a request that was let in counts for: those it holds, and at least those reserved for it until it is done."""
        held = sum(runner is self.runner for runner, _ in generation.slots_held)
        return held if generation.done else max(held, generation.slots_reserved)

    def _has_room(self, generation: Generation, positions: int) -> bool:
        """Whether a request can come in; one that is wider than the room comes in alone."""
        taken = sum(map(self.slots_taken, self.admitted))
        prompts = [other.request.prompt_length for other in self.admitted if other.stage is Stage.PREFILLING and not other.by_parts]
        length = generation.request.prompt_length
        by_parts = self.runner.capabilities.parts and length > positions
        has_slots = not taken or taken + generation.slots_reserved <= self.max_slots
        return has_slots and (by_parts or not prompts or sum(prompts) + length <= positions)
