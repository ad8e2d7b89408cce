"""What a model has read, kept from one request to the next: a prompt that begins alike is not read twice."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass
from typing import NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, WeakValueDictionary, ref

from torch import nn

from ...data.errors import UserError
from ..requests.generation import Generation
from ..requests.sequence import TokenSequence, shared_length
from ..runners.architecture import transformers_model
from ..runners.contract import Runner
from ..runners.open import open_runner
from ..runners.paradigm import is_bidirectional
from .model_state import Glance, state_of

KEPT = 8  # sequences; the one that was longest unused goes first
WORTH_WAITING = 64  # ids that another request is about to read: for fewer none waits


@dataclass(eq=False)
class Kept:
    """A sequence that outlives its request: the ids that it has seen, where it lies, and what it takes."""

    ids: list[int]
    runner: Runner
    slot: int
    salt: Hashable
    bytes: int


class Donor(NamedTuple):
    """A slot with the longest past of a prompt, `length` positions of it; `kept` where it is nobody's."""

    slot: int
    length: int
    kept: Kept | None = None


class PrefixCache:
    """Gives a new sequence the longest past that fits its prompt, of sequences that are finished and of those that grow.

    The keys and values of finished sequences are kept, at most `sequences` of them in at most `max_bytes`; the longest unused go first. What a
    sequence that grows has read is shared as long as it lives. A past is only given to a request of the salt of the one that read it, so
    that neither time nor `cached_tokens` tell anything of a prompt of another salt.

    It belongs to one model. What was read with other weights, adapters or hooks than the model has now is kept apart, and is there again once
    they are switched back (`disable_adapter`). Changes of weights are known by torch's own count of them, which what writes to `.data` passes
    by: call `clear()` after that. Calls may overlap, as a stream that is half read and another call do; not for several threads.
    """

    def __init__(self, model: nn.Module, sequences: int | None = KEPT, max_bytes: int | None = None):
        """Without a number of `sequences` the bytes alone bound what is kept.

        Raises UserError for bounds less than one or none at all, and for a model whose past cannot be continued or cut.
        """
        if sequences is None and max_bytes is None:
            raise UserError("sequences=None and max_bytes=None leave the cache without a bound: give one of them")
        for name, bound in (("sequences", sequences), ("max_bytes", max_bytes)):
            if bound is not None and bound < 1:
                raise UserError(f"{name} must be at least 1, got {bound}")
        self.runner = open_runner(model)
        if self.runner.model.config.is_encoder_decoder:
            raise UserError(f"a {self.runner.config.model_type} model reads its prompt in the encoder, whose past nothing continues: use no cache")
        if is_bidirectional(self.runner.model.config):
            raise UserError(f"what a {self.runner.config.model_type} model reads hangs on all that follows, its answer too: use no cache")
        if not (self.runner.capabilities.fork and self.runner.capabilities.truncate):
            raise UserError(f"a {self.runner.config.model_type} model's state cannot be cut back to a shared beginning: use no cache")
        self.sequences, self.max_bytes = sequences, max_bytes
        self.bytes = 0  # of what is kept
        self._kept: dict[Kept, None] = {}  # the longest unused first
        self._groups: dict[tuple[Runner, Hashable], list[Kept]] = {}  # by runner and salt, in the order of their ids
        self._live: WeakKeyDictionary[Generation, list[ReferenceType[TokenSequence]]] = WeakKeyDictionary()
        self._start()

    def _start(self) -> None:
        # one runner for each state of the model: a sequence's past is only ever continued in the state that it was read in
        self._runners: WeakValueDictionary[Hashable, Runner] = WeakValueDictionary({state_of(self.runner.model): self.runner})
        self._glance = Glance(self.runner.model)
        self._current: Runner | None = self.runner  # that of the model's state when it was last looked at

    def runner_for(self, model: nn.Module) -> Runner:
        """Return the runner whose past is that of the model as it is now; raises UserError for another model."""
        if transformers_model(model) is not self.runner.model:
            raise UserError("the cache was made for another model: make a PrefixCache of this one")
        state = state_of(self.runner.model)
        if self._runners.get(state) is not self.runner:
            self.runner = self._runners[state] = self._runners.get(state) or open_runner(model)
        self._current = self.runner
        return self.runner

    def look(self, runner: Runner) -> None:
        """Take note of the model's state before a pass of the runner; what that is going to mix with a past of another state is never shared."""
        if self._glance.changed():
            self._current = self._runners.get(state_of(self.runner.model))
        if self._current is not runner:
            for generation, _ in self._watched(runner):
                self._live.pop(generation, None)

    @property
    def slots(self) -> list[int]:
        """The slots of the runner in use that are kept, the longest unused first; for any thread."""
        return [kept.slot for kept in list(self._kept) if kept.runner is self.runner]

    def recall(self, ids: list[int], runner: Runner, salt: Hashable = None) -> int:
        """Return a new slot of the runner for a prompt, with the longest past that there is of it; the last id is always left to run."""
        donor, slot = self._donor(ids, runner, salt), runner.allocate()
        if donor is not None:
            runner.copy(donor.slot, slot, 0, donor.length)
            runner.attend_both_ways(slot, False)  # as the donor may do just now
        return slot

    def known(self, ids: list[int], runner: Runner, salt: Hashable = None) -> int:
        """Return how many of a prompt's ids `recall` would bring; what is asked for counts as used."""
        donor = self._donor(ids, runner, salt)
        return 0 if donor is None else donor.length

    def awaited(self, ids: list[int], runner: Runner, salt: Hashable = None, among: Collection[Generation] | None = None) -> bool:
        """Whether a prompt should wait until another one, which begins alike and is being read, has been read so far.

        That is so where it shares at least `WORTH_WAITING` ids more than `recall` brings now. `among` are the requests that are certain to be read
        on, those of the engine that asks: those of another call may stand still.
        """
        if runner is not self._current:
            return False
        reading = [each for generation, each in self._watched(runner, salt) if (among is None or generation in among) and is_being_read(each)]
        if not reading:
            return False
        needed = self.known(ids, runner, salt) + WORTH_WAITING
        return needed < len(ids) and any(begins_with(each.request.prompt_ids, ids[:needed]) for each in reading)

    def watch(self, sequence: TokenSequence) -> None:
        """Share what a sequence that grows has read, and will have, as long as its request holds its slot; not where its tokens did not see all."""
        if sequence.runner is self._current and not sequence.request.masked_positions:
            self._live.setdefault(sequence.generation, []).append(ref(sequence))

    def remember(self, sequence: TokenSequence) -> None:
        """Take over a finished sequence's slot, and release those of sequences that it continues and of the longest unused.

        The slot is released itself where the model has changed meanwhile, or the adapter that it was read with has been unloaded, where more of it is
        kept, and where it is beyond `max_bytes` alone.
        """
        generation, runner, salt = sequence.generation, sequence.runner, sequence.request.salt
        ids = sequence.ids[: sequence.continuable]
        adapter = sequence.request.adapter
        sound = bool(ids) and generation in self._live and runner is self._current and not (adapter and adapter.unloaded)
        if not generation.slots_held:
            self._live.pop(generation, None)
        new = Kept(ids, runner, sequence.cache_slot, salt, runner.bytes_for(max(len(ids), sequence.reached)))
        if not sound or self.max_bytes is not None and new.bytes > self.max_bytes:
            runner.release([new.slot])
            return
        group = self._groups.setdefault((runner, salt), [])
        at = place_of(ids, group)
        if at < len(group) and group[at].ids[: len(ids)] == ids:
            self._use(group[at])
            runner.release([new.slot])
            return
        for kept in [kept for kept in group if begins_with(ids, kept.ids)]:
            self._drop(kept)
        group = self._groups.setdefault((runner, salt), [])
        group.insert(place_of(ids, group), new)
        self._kept[new] = None
        self.bytes += new.bytes
        runner.shelve([new.slot])
        while self.sequences is not None and len(self._kept) > self.sequences or self.max_bytes is not None and self.bytes > self.max_bytes:
            self._drop(next(iter(self._kept)))

    def make_room(self, bytes: int) -> None:
        """Release the longest unused until so many bytes are free that were kept, or nothing is kept."""
        least = self.bytes - bytes
        while self._kept and self.bytes > least:
            self._drop(next(iter(self._kept)))

    def forget(self, which: Callable[[Hashable], bool]) -> None:
        """Release what is kept for these salts."""
        for kept in [kept for kept in self._kept if which(kept.salt)]:
            self._drop(kept)

    def clear(self) -> None:
        """Release everything that is kept, and look at the model anew; calls under way go on with what they have, and share nothing of it."""
        for kept in list(self._kept):
            self._drop(kept)
        self._live.clear()
        self.runner = open_runner(self.runner.model)
        self._start()

    def _donor(self, ids: list[int], runner: Runner, salt: Hashable) -> Donor | None:
        """Return the slot with the longest past of a prompt but its last id; None where there is none."""
        if runner is not self._current:
            return None
        best, most = None, len(ids) - 1
        group = self._groups.get((runner, salt), [])
        at = place_of(ids, group)
        for kept in group[max(at - 1, 0) : at + 1]:  # what begins most alike stands beside the place of the ids in their order
            length = min(shared_length(kept.ids, ids), most)
            if length > (best.length if best else 0):
                best = Donor(kept.slot, length, kept)
        if best is not None:
            self._use(best.kept)
        for _, sequence in self._watched(runner, salt):
            length = best.length if best else 0
            there = min(sequence.continuable, len(sequence.ids), most)  # what is beyond its ids are guesses
            if there > length and sequence.ids[length] == ids[length]:  # cheaper than to compare what cannot be longer
                shared = min(shared_length(sequence.ids, ids), there)
                best = Donor(sequence.cache_slot, shared) if shared > length else best
        return best

    def _watched(self, runner: Runner, *salt: Hashable) -> Iterator[tuple[Generation, TokenSequence]]:
        """Yield the sequences of the runner, and of a salt, that grow and hold their slots; forget the requests that hold none any more."""
        for generation, references in list(self._live.items()):
            if not generation.slots_held:
                self._live.pop(generation, None)
            elif not salt or generation.request.salt == salt[0]:
                for reference in references:
                    sequence = reference()
                    if sequence is not None and sequence.runner is runner and (runner, sequence.cache_slot) in generation.slots_held:
                        yield generation, sequence

    def _use(self, kept: Kept) -> None:
        """Make it the last to go."""
        del self._kept[kept]
        self._kept[kept] = None

    def _drop(self, kept: Kept) -> None:
        """Give back its slot."""
        del self._kept[kept]
        self.bytes -= kept.bytes
        key = kept.runner, kept.salt
        self._groups[key].remove(kept)
        if not self._groups[key]:
            del self._groups[key]
        kept.runner.release([kept.slot])


def place_of(ids: list[int], group: list[Kept]) -> int:
    """Return where ids stand among sequences in the order of their ids."""
    return bisect_left(group, ids, key=lambda kept: kept.ids)


def begins_with(ids: list[int], first: list[int]) -> bool:
    """Whether `first` is the beginning of the ids; most are told by one comparison."""
    return len(first) <= len(ids) and first[-1:] == ids[len(first) - 1 : len(first)] and first == ids[: len(first)]


def is_being_read(sequence: TokenSequence) -> bool:
    """Whether the model has not seen all of the sequence's prompt."""
    return sequence.seen < len(sequence.request.prompt_ids)
