"""How much of waiting prompts a pass takes, so that those who are being answered already do not wait long for it."""

from __future__ import annotations

from collections import deque
from statistics import median

from ...data.errors import UserError

FIRST = 32  # positions, as long as nothing is known of their cost
LEAST = 8  # positions: however slow a pass is, prompts come in
WHOLE = 128  # a prompt of so many positions is not worth a second pass
REMEMBERED = 9  # passes whose median is the usual one: a machine has its own hiccups
REST = 16  # passes with prompts in a row, behind which one goes without, to see what the usual one takes by now


class Pace:
    """Says how many positions of prompts go into a pass, and learns it from what passes take.

    Alone, prompts have `part` positions a pass. While others get their tokens, so many that a pass takes about `stall` times as long as one
    without prompts; a prompt of up to `WHOLE` is read at once all the same. With `stall=None` it is `part` in any case.
    """

    def __init__(self, part: int = 512, stall: float | None = 1.8):
        """Raises UserError for a part of no positions, and for a stall that leaves a pass no time for prompts."""
        if part < 1:
            raise UserError(f"part must be at least 1 position, got {part}")
        if stall is not None and not stall > 1:
            raise UserError(f"stall must be greater than 1, or None, got {stall}: a pass with prompts takes longer than one without")
        self.part, self.stall = part, stall
        self._usual: deque[float] = deque(maxlen=REMEMBERED)  # seconds of passes without prompts
        self._cost: float | None = None  # seconds that a position of a prompt adds to a pass
        self._last = FIRST
        self._in_a_row = 0  # passes with prompts

    def room(self, streaming: bool) -> int:
        """Return how many positions of prompts the next pass takes; `streaming`, it gives others their tokens too."""
        if self.stall is None or not streaming:
            return self.part
        if self._in_a_row == REST:
            return 0
        if not self._cost or not self._usual:
            return min(FIRST, self.part)
        spare = (self.stall - 1) * median(self._usual)
        return min(max(int(spare / self._cost), LEAST), 2 * self._last, self.part)

    def whole(self, streaming: bool) -> int:
        """Return how many positions of prompts that are read at once the next pass takes; what is longer goes by parts."""
        return self.part if self.stall is None else min(max(self.room(streaming), WHOLE), self.part)

    def took(self, seconds: float, positions: int, streaming: bool) -> None:
        """Learn from a pass that had so many positions of prompts."""
        rested, self._in_a_row = self._in_a_row == REST, self._in_a_row + 1
        if not positions or rested or not streaming:  # though a short prompt came in whole meanwhile
            self._in_a_row = 0
        if not positions:
            self._usual.append(seconds)
            return
        if streaming:
            self._last = max(positions, LEAST)
        spent = seconds - median(self._usual) if streaming and self._usual else seconds
        cost = max(spent, 0.0) / positions
        self._cost = cost if self._cost is None else (self._cost + cost) / 2
