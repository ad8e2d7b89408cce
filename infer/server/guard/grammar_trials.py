"""Grammars that nobody has asked for yet are compiled elsewhere first: one that takes too long is refused, and has held nobody else."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter, OrderedDict
from contextlib import suppress

from transformers import PreTrainedTokenizerBase

from ....data.errors import UserError
from ...constraints import trial_process
from ...constraints.grammar import compiled, grammar_asked, source, tokenizer_text
from ...engine.live import QueueFull
from ...engine.params import SamplingParams

SECONDS = 0.5  # of computing, in that process and then again in this one, to compile a grammar and go some tokens into a text of it
WALL = 20.0  # seconds by the clock, where the process gets no time to compute, and where the system counts none
WAITING = 64  # new grammars that wait to be tried, each for any number of requests
KEPT = 256  # grammars whose trial is remembered, each by its hash


class GrammarTrials:
    """Tries the grammars of requests in a process of its own, one at a time, before the engine compiles them; for one event loop."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._known: OrderedDict[int, bool] = OrderedDict()  # whether it held
        self._one_by_one = asyncio.Lock()
        self._waiting: Counter[int] = Counter()  # the requests of each that is not known yet
        self._process: asyncio.subprocess.Process | None = None

    async def hold(self, params: SamplingParams) -> None:
        """Have the settings' grammar compiled, if they have one.

        Raises UserError where it is none, or takes more than `SECONDS`; QueueFull where too many others are to be tried before.
        """
        name = grammar_asked(params)
        if name is None:
            return
        written = await asyncio.to_thread(source, name, getattr(params, name))
        if (key := hash(written)) not in self._known:
            await self._in_turn(key, written)
        self._known.move_to_end(key)
        if not self._known[key]:
            raise UserError(f"{name} takes more than {SECONDS:g} s to compile: make it smaller, with fewer alternatives, or fewer repeats within repeats")
        if (end := self._tokenizer.eos_token_id) is not None:
            await asyncio.to_thread(compiled, self._tokenizer, name, written, [end])  # here, and not where others wait for it

    async def _in_turn(self, key: int, written: str) -> None:
        """Have a grammar tried behind those that came before, unless that was done by then."""
        if key not in self._waiting and len(self._waiting) >= WAITING:
            raise QueueFull(f"{len(self._waiting)} new grammars wait to be compiled already, as many as may: ask again later")
        self._waiting[key] += 1
        try:
            async with self._one_by_one:
                if key not in self._known:
                    self._remember(key, await self._tried(written))
        finally:
            self._waiting[key] -= 1
            self._waiting += Counter()  # drops what nobody waits for

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _remember(self, key: int, held: bool) -> None:
        self._known[key] = held
        if len(self._known) > KEPT:
            self._known.popitem(last=False)

    async def _tried(self, written: str) -> bool:
        """Whether the process has tried a grammar in time; where it has not, it is gone. Raises UserError where that cannot be told."""
        done = False
        try:
            async with asyncio.timeout(WALL):
                process = await self._running()
                process.stdin.write(json.dumps({"grammar": written, "seconds": SECONDS}).encode() + b"\n")
                await process.stdin.drain()
                done = await process.stdout.readline() == b"tried\n"
        except TimeoutError:
            raise UserError(f"the grammar could not be compiled within {WALL:g} s: ask again, or make it smaller") from None
        except ConnectionError:
            pass  # it was ended while it was written to
        finally:
            if not done:  # also where its client has gone
                await self.close()
        return done

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
            self._process = await asyncio.create_subprocess_exec(sys.executable, "-I", trial_process.__file__, stdin=pipe, stdout=pipe, stderr=none)
            told = {"tokenizer": await asyncio.to_thread(tokenizer_text, self._tokenizer), "eos": self._tokenizer.eos_token_id}
            self._process.stdin.write(json.dumps(told).encode() + b"\n")
        return self._process
