"""What a model has read, kept from one call to the next: a prompt that begins alike is not read twice."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from torch import Tensor, nn

from ...data.errors import UserError
from ..requests.sequence import TokenSequence, shared_length
from ..runners.architecture import transformers_model
from ..runners.contract import Runner
from ..runners.layers import is_foreign, is_replaced
from ..runners.model_lock import locked
from ..runners.open import open_runner

KEPT = 8  # sequences; the one that was longest unused goes first


@dataclass(eq=False)
class Kept:
    """A sequence that outlives its call: the ids that it has seen, and where it lies."""

    ids: list[int]
    runner: Runner
    slot: int


class PrefixCache:
    """Keeps the keys and values of finished sequences, and gives a new sequence the longest past that fits its prompt.

    It belongs to one model. What was read with other weights, adapters or hooks than the model has now is kept apart, and is there again once
    they are switched back (`disable_adapter`). Changes of weights are known by torch's own count of them, which what writes to `.data` passes
    by: call `clear()` after that. Calls may overlap, as a stream that is half read and another call do; not for several threads.
    """

    def __init__(self, model: nn.Module, sequences: int = KEPT):
        """At most so many sequences are kept; raises UserError for less than one, and for a model whose past cannot be continued or cut."""
        if sequences < 1:
            raise UserError(f"sequences must be at least 1, got {sequences}")
        self.runner = open_runner(model)
        if self.runner.model.config.is_encoder_decoder:
            raise UserError(f"a {self.runner.config.model_type} model reads its prompt in the encoder, whose past nothing continues: use no cache")
        if not (self.runner.capabilities.fork and self.runner.capabilities.truncate):
            raise UserError(f"a {self.runner.config.model_type} model's state cannot be cut back to a shared beginning: use no cache")
        self.sequences = sequences
        self._kept: list[Kept] = []  # the longest unused first
        # one runner for each state of the model: a sequence's past is only ever continued in the state that it was read in
        self._runners: WeakValueDictionary[Hashable, Runner] = WeakValueDictionary({state_of(self.runner.model): self.runner})

    def runner_for(self, model: nn.Module) -> Runner:
        """Return the runner whose past is that of the model as it is now; raises UserError for another model."""
        if transformers_model(model) is not self.runner.model:
            raise UserError("the cache was made for another model: make a PrefixCache of this one")
        state = state_of(self.runner.model)
        if self._runners.get(state) is not self.runner:
            self.runner = self._runners[state] = self._runners.get(state) or open_runner(model)
        return self.runner

    @property
    def slots(self) -> list[int]:
        """The slots of the runner in use that are kept between calls."""
        return [kept.slot for kept in self._kept if kept.runner is self.runner]

    def recall(self, ids: list[int], runner: Runner) -> int:
        """Return a new slot of the runner for a prompt, with the longest past that is kept of it; the last id is always left to run."""
        known = [kept for kept in self._kept if kept.runner is runner]
        best = max(known, key=lambda kept: shared_length(kept.ids, ids), default=None)
        seen = 0 if best is None else min(shared_length(best.ids, ids), len(ids) - 1)
        if not seen:
            return runner.allocate()
        self._kept.remove(best)
        self._kept.append(best)
        [slot] = runner.fork([best.slot])
        runner.truncate(slot, seen)
        return slot

    def known(self, ids, runner):
        return max([min(shared_length(kept.ids, ids), len(ids) - 1) for kept in self._kept if kept.runner is runner], default=0)

    def remember(self, sequence: TokenSequence) -> None:
        """Take over a finished sequence's slot, and release those of sequences that it continues and of the longest unused.

        The slot of a sequence during which the model has changed is released itself.
        """
        new = Kept(sequence.ids[: sequence.seen], sequence.runner, sequence.cache_slot)
        if self._runners.get(state_of(new.runner.model)) is not new.runner:
            new.runner.release([new.slot])
            return
        continued = [kept for kept in self._kept if kept.runner is new.runner and shared_length(kept.ids, new.ids) == len(kept.ids)]
        kept = [each for each in self._kept if each not in continued] + [new]
        self._kept = kept[-self.sequences :]
        release_kept([*continued, *kept[: -self.sequences]])

    def clear(self) -> None:
        """Release everything that is kept, and look at the model anew; calls under way go on with what they have."""
        release_kept(self._kept)
        self._kept = []
        self.runner = open_runner(self.runner.model)
        self._runners = WeakValueDictionary({state_of(self.runner.model): self.runner})


def release_kept(sequences: list[Kept]) -> None:
    """Give back the sequences' slots."""
    for kept in sequences:
        kept.runner.release([kept.slot])


def state_of(model: nn.Module) -> Hashable:
    """Return what the numbers of a model hang on, as far as torch and peft tell: equal states have equal keys and values.

    Its modules and tensors with how often each was changed in place; hooks; adapters, those active, disabled, merged, and their scales.
    """
    found: list[Hashable] = []
    with locked(model):  # another thread's pass may have it changed
        modules = list(model.modules())
    for module in modules:
        found += [id(module), is_replaced(module), *module._forward_pre_hooks]
        found += [handle for handle, hook in module._forward_hooks.items() if is_foreign(hook)]
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                found.append((tensor.data_ptr(), version(tensor), tensor.dtype))
        if hasattr(type(module), "merged_adapters"):  # peft's
            found.append((module.disable_adapters, *map(str, (module.active_adapters, module.merged_adapters, vars(module).get("scaling")))))
    return tuple(found)


def version(tensor: Tensor) -> int:
    """How often the tensor was changed in place; those of inference mode are not counted."""
    return 0 if tensor.is_inference() else tensor._version
