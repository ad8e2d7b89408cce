"""What a bidirectional model has read and keeps for its next passes, though what it was read with has changed since: an approximate cache."""

from __future__ import annotations

from .canvas import CanvasSequence


class Kept:
    """Which positions each pass over a canvas reads where prompt and canvas all see one another, and what of them stays in the cache behind it.

    A full pass reads all of prompt and canvas. Without `cache_refresh` every pass is one. With it one is at the beginning of each block and whenever so
    many passes have been over the block since the last; the others read the block and what stands behind it, or with `dual_cache` the block alone. Of all else they see
    keys and values as the last full pass found them. Under a shift the position before the block, where its first token is read, goes with it.
    Source: Wu et al. 2025, Fast-dLLM (prefix cache, dual cache).

    Positions are those of the canvas, those of the prompt before it are below 0.
    """

    def __init__(self, sequence: CanvasSequence, length: int, shift: int):
        params = sequence.request.params
        self.sequence, self.prompt, self.length, self.shift = sequence, len(sequence.given), length, shift
        self.refresh, self.dual = params.cache_refresh or 1, bool(params.dual_cache)
        self._block: range | None = None
        self._passes = 0  # over the block since the last full one, it included

    def is_full(self, block: range) -> bool:
        """Whether the next pass, which is for this block, is a full one."""
        return block != self._block or self._passes >= self.refresh

    def window(self, block: range) -> range:
        """The positions that the next pass reads."""
        if self.is_full(block):
            return range(-self.prompt, self.length)
        return range(block.start - self.shift, block.stop if self.dual else self.length)

    def prepare(self, block: range) -> None:
        """Make the cache ready for the pass: empty for a full one, and for others what they do not read."""
        if self.is_full(block):
            self.sequence.rollback(self.sequence.cached)
            self._block, self._passes = block, 0
        elif self.dual:
            self.sequence.runner.rewrite(self.sequence.cache_slot, self.prompt + block.start - self.shift)
        self._passes += 1

    def leave(self) -> None:
        """Behind a pass, keep of it what later ones do not read: all where they read but the block, for they write it in its place."""
        if not self.dual:
            kept = 0 if self.refresh == 1 else self.prompt + self._block.start - self.shift
            self.sequence.rollback(self.sequence.cached - kept)
