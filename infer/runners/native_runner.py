"""The forward pass of a few new tokens in one native call, for the direct families on CPUs; and whether a model runs so."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..kernels.rotary import Rotation
from .architecture import ModelOutput
from .contract import Runner
from .direct import DirectRunner
from .native.compiler import NotBuilt
from .native.library import OFF, ROW, NativeModel, is_off, library
from .native.supported import refuses
from .probe import agree, probe_ids, tolerance
from .ragged_attention import ForwardBatch, Long

MANY = 17  # new tokens of a slot, from which on torch reads them where its products of many rows are the faster, or may be (`reads_prompts`)
AT_ONCE = 512  # rows of a call, which needs memory for all of them
TOGETHER = 6  # rows that a kernel of `step.c` takes at a time, at most: each number has code of its own
OF_A_LAYER = 0.1  # share of their spread by which its numbers may be off in bfloat16, where torch's are by a hundredth
FLOATS = {"dtype": torch.float32, "device": "cpu"}  # what `step.c` reads and writes, whatever torch's defaults are
_WRONG: WeakKeyDictionary[PreTrainedModel, dict[tuple[torch.dtype, str | None], str | None]] = WeakKeyDictionary()
_KEPT: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()  # what kept a model from native steps when its runner was chosen


class NativeRunner(DirectRunner):
    """A DirectRunner whose passes are calls of `step.c`: every weight is read once a call, for single steps, guesses and prompts alike.

    Passes under autocast, those with an adapter over more than the linear layers of attention and feed-forward, and prompts where torch may be the faster
    (`NativeModel.reads_prompts`), run as a DirectRunner runs them. The numbers of a token that runs natively are the same to the bit whatever runs beside it,
    and however many of its neighbours are read at once. In bfloat16 the residual stream and the logits stay in float32.
    """

    def _read(self) -> None:
        super()._read()
        self._native: NativeModel | None = None
        self._looked = False  # it is laid out at the next pass: a runner of the first layers takes the others away behind this

    def _run(self, plan: ForwardBatch, tokens: list[int], positions: list[int], wanted: list[int], layers: Sequence[int]) -> ModelOutput:
        if not self._ready("cpu") or not self._laid_out() or not self._fits(plan):
            return super()._run(plan, tokens, positions, wanted, layers)
        long = set() if self._native.reads_prompts else {lane(each) for each in plan.longer if each.tokens.stop - each.tokens.start >= MANY}
        if not long:
            return self._step(plan, tokens, positions, wanted, layers)
        prompts = [each for each in plan.longer if lane(each) in long]
        theirs = [i for each in prompts for i in range(each.tokens.start, each.tokens.stop)]
        if len(theirs) == len(tokens):
            return super()._run(plan, tokens, positions, wanted, layers)
        ours = sorted(set(range(len(tokens))) - set(theirs))
        guesses = [each for each in plan.longer if lane(each) not in long]
        parts = [(ours, self._step, plan.runs, guesses), (theirs, super()._run, [], prompts)]
        return in_parts(parts, tokens, positions, wanted, layers, lambda rows: self._adapters.among(rows, self._device))

    def _laid_out(self) -> bool:
        """Whether `step.c` can read the model, which is laid out for it where it is not yet."""
        if not self._looked and refuses(self.model) is None:
            parts, weights = self.decoder.parts, (*self.model.parameters(), *self.model.buffers())
            self._native = NativeModel(parts, [block.parts for block in self.decoder.blocks], weights, bool(self.kv_cache_dtype))
            self._turns = None if parts.rotary is None else Rotation(parts.rotary, torch.empty(0, **FLOATS))
        self._looked = True
        return self._native is not None

    def _fits(self, plan: ForwardBatch) -> bool:
        """Whether cache and adapters are such as `step.c` reads; where the model was converted behind a slot's back, torch says what it makes of that."""
        native, embed = self._native, self._native.embed
        if not all(map(native.adapters.lay_out, self._adapters.at_work)):
            return False
        kept = torch.int8 if self.kv_cache_dtype else embed.dtype
        return all(each.pool.ready(embed).dtype == kept for each in (*plan.runs, *plan.longer))

    def _step(self, plan: ForwardBatch, tokens: list[int], positions: list[int], wanted: list[int], layers: Sequence[int]) -> ModelOutput:
        """Take the plan's tokens through the model natively, each over the keys that it sees."""
        native, embed = self._native, self._native.embed
        if max(tokens) >= native.ids:  # its configuration promises more
            raise IndexError(f"id {max(tokens)} is none of the {native.ids} that the embedding has")
        if native.positions is not None and max(positions) >= native.positions:
            raise IndexError(f"position {max(positions)} is none of the {native.positions} that the model has learned")
        parts = calls(plan, len(tokens))
        of_logits, of_parts = [-1] * len(tokens), [[i for i, token in enumerate(wanted) if token in part] for part in parts]
        for own in of_parts:
            for i, place in enumerate(own):
                of_logits[wanted[place]] = i
        rows: list[int] = []
        adapters = {token: self._native.adapters.address(adapter) for token, adapter in self._adapters.by_row().items()}

        def add(pool_at: tuple[int, int, int, int], token: int, place: int, seen: int) -> None:
            rows.extend((*pool_at, place, seen, positions[token], tokens[token], of_logits[token], adapters.get(token, 0)))

        for run in plan.runs:
            stack = run.pool.ready(embed)
            for i, place in enumerate(run.positions):
                add(lane_at(stack, run.lanes.start + i), run.tokens.start + i, place, place + 1)
        for pool, lane_number, part, past, seen, causal in plan.longer:
            at = lane_at(pool.ready(embed), lane_number)
            for i, token in enumerate(range(part.start, part.stop)):
                add(at, token, past + i, past + i + 1 if causal else seen)
        if self._turns is not None:
            self._turns.reach(max(positions))
        logits = torch.empty(len(wanted), native.whole.vocab, **FLOATS)
        states = {layer % (len(native.layers) + 1): torch.empty(len(tokens), native.whole.hidden, **FLOATS) for layer in layers}
        turns = None if self._turns is None else (self._turns.cos, self._turns.sin)
        for part, places in zip(parts, of_parts):
            own = logits if len(parts) == 1 else torch.empty(len(places), native.whole.vocab, **FLOATS)
            native.run(rows[part.start * ROW : part.stop * ROW], turns, own, {layer: state[part.start : part.stop] for layer, state in states.items()})
            if len(parts) > 1:
                logits[torch.tensor(places, dtype=torch.long)] = own
        return ModelOutput(logits, {layer: states[layer % (len(native.layers) + 1)].to(embed.dtype) for layer in layers})


def calls(plan: ForwardBatch, count: int) -> list[range]:
    """Which of so many tokens each call of `step.c` takes: at most AT_ONCE, but those that see one another together; each finds the keys of those before it in the cache."""
    found, begin = [], 0
    together = [each.tokens for each in plan.longer if not each.causal]
    while begin < count:
        end = min(begin + AT_ONCE, count)
        for tokens in together:
            if tokens.start < end < tokens.stop:
                end = tokens.start if tokens.start > begin else tokens.stop
        found.append(range(begin, end))
        begin = end
    return found


def lane(part: Long) -> tuple[int, int]:
    """Which lane of which pool new tokens come to; the stretches of one slot have the same."""
    return id(part.pool), part.lane


def lane_at(stack: Tensor, number: int) -> tuple[int, int, int, int]:
    """Where a lane's keys of the first layer lie in memory, and how many numbers there are from a layer, a part and a head to the next."""
    layer, part, a_lane, head, *_ = stack.stride()
    return stack.data_ptr() + number * a_lane * stack.itemsize, layer, part, head


def in_parts(
    parts: Sequence[tuple[list[int], Callable[..., ModelOutput], list, list[Long]]],
    tokens: list[int],
    positions: list[int],
    wanted: list[int],
    layers: Sequence[int],
    among: Callable[[list[int]], AbstractContextManager],
) -> ModelOutput:
    """Run a pass in parts, of which each has tokens of its own, how they are run, and their runs and longer stretches; put together what they give.

    A part runs within `among` of its tokens. Single steps come first among a pass's tokens, so that the part that has them all finds them where they stand.
    """
    logits: list[Tensor] = []
    rows: list[int] = []
    states: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for own, run, runs, longer in parts:
        place = {token: i for i, token in enumerate(own)}
        longer = [each._replace(tokens=slice(place[each.tokens.start], place[each.tokens.stop - 1] + 1)) for each in longer]
        kept = [i for i, token in enumerate(wanted) if token in place]
        with among(own):
            out = run(ForwardBatch(runs, longer), [tokens[i] for i in own], [positions[i] for i in own], [place[wanted[i]] for i in kept], layers)
        logits.append(out.logits.float())
        rows += kept
        for layer in layers:
            states[layer].append(out.states[layer])
    order = torch.tensor([i for own, *_ in parts for i in own])
    return ModelOutput(
        torch.cat(logits)[torch.tensor(rows, dtype=torch.long).argsort()], {layer: torch.cat(each)[order.argsort()] for layer, each in states.items()}
    )


def speaks_natively(model: PreTrainedModel) -> bool:
    """Whether a model that the direct runner covers runs natively here, by a check of its first layer when it is first asked for.

    Says once, in a warning, what keeps a model from it that would: no compiler, one that fails, numbers that are not torch's.
    """
    reason = f"{OFF}=0" if is_off() else refuses(model)
    if reason is None and (reason := failure(model)) is not None:
        say(reason)
    _KEPT[model] = reason
    return reason is None


def failure(model: PreTrainedModel, kv_cache_dtype: str | None = None) -> str | None:
    """Say what keeps a model that `refuses` has no word against from native steps here, over such a cache; None where nothing does."""
    try:
        library()
    except NotBuilt as error:
        return str(error)
    known, key = _WRONG.setdefault(model, {}), (model.get_input_embeddings().weight.dtype, kv_cache_dtype)
    if key not in known:
        with torch.autocast("cpu", enabled=False):
            known[key] = wrong_numbers(model, kv_cache_dtype)
    return known[key]


def kept_from(runner: Runner) -> str | None:
    """Say in words what keeps a runner on a CPU from native steps, as it is now; None where it has them. Compiles and computes nothing."""
    if is_off():
        return f"{OFF}=0"
    if (refused := refuses(runner.model)) is not None:
        return refused
    if not (isinstance(runner, DirectRunner) and runner.covers):
        return "something was put in, on or around its layers"
    if isinstance(runner, NativeRunner):
        return None
    return _KEPT.get(runner.model) or "its runner was opened as a direct one"


@cache
def say(reason: str) -> None:
    """Warn that steps run through torch, once for each reason."""
    warnings.warn(f"no native decoding, so a token on this CPU takes 2 to 3 times as long: {reason}; {OFF}=0 says that this is as it should be", stacklevel=2)


def wrong_numbers(model: PreTrainedModel, kv_cache_dtype: str | None = None) -> str | None:
    """Say what a pass over the model's first layer gets wrong, beside torch's or in a batch beside alone; None where nothing."""
    native, direct = NativeRunner(model, kv_cache_dtype), DirectRunner(model, kv_cache_dtype)
    for runner in (native, direct):
        runner.decoder.blocks = runner.decoder.blocks[:1]
    ours, theirs = tried(native).float(), tried(direct).float()
    many = native.decoder.parts.layers[0].experts is not None  # of which rounding may choose another
    if not agree(ours, theirs, tolerance(model, theirs) if many else min(tolerance(model, theirs), OF_A_LAYER)):
        return "what the compiler made does not compute what torch does (CC=... names another)"
    same = in_company(native)
    if not torch.equal(same, same[:1].expand_as(same)) and not same.isnan().any():
        return "what the compiler made computes a row otherwise beside others than alone (CC=... names another)"
    return None


def read_two(runner: DirectRunner, ids: list[list[int]]) -> tuple[list[int], Tensor]:
    """Two slots of unlike lengths, read by a runner of one layer, and the hidden states of their tokens."""
    slots = [runner.allocate(), runner.allocate()]
    return slots, runner.observe(slots, [ids[0][:3], ids[1][:2]], [0, 0], [1]).states[1]


def tried(runner: DirectRunner) -> Tensor:
    """The hidden states of two texts that a runner of one layer is taken through, at once and going on."""
    a, b = probe_ids(runner.vocab_size)
    slots, read = read_two(runner, [a, b])
    beside = runner.observe(slots, [a[3:], b[2:3]], [0, 0], [1]).states[1]
    runner.release(slots)
    return torch.cat([read, beside])


def in_company(runner: NativeRunner) -> Tensor:
    """One token's logits as a row alone, among as many as a kernel takes at a time, and among more than two kernels do, which widen bfloat16 first."""
    a, b = probe_ids(runner.vocab_size)
    (own, other), _ = read_two(runner, [a, b])
    others, found = runner.fork([other] * (2 * TOGETHER)), []
    for count in (*range(TOGETHER), 2 * TOGETHER):
        found.append(runner.forward([own, *others[:count]], [a[3:4], *[b[2:3]] * count], [1, *[0] * count]))
        for slot, length in ((own, 3), *((slot, 2) for slot in others[:count])):
            runner.truncate(slot, length)
    runner.release([own, other, *others])
    return torch.cat(found)
