"""Guesses that a masked-diffusion model drafts: all of a guess out of one pass over a canvas."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ...data.errors import UserError
from ..diffusion.canvas import aligned
from ..diffusion.denoising import that_fit
from ..requests.sequence import TokenSequence
from ..requests.strategy import Forward
from ..runners.architecture import refuse_both_ways_under_window
from ..runners.contract import Runner
from ..runners.paradigm import BLOCK_CAUSAL, Diffusion, diffusion_of, is_bidirectional
from .drafts import DraftSequence, ModelDrafts

AHEAD = 16  # masks of a canvas, where the answer may be so long: a model that fills in an answer crowds its end into fewer


class CanvasDraft(DraftSequence):
    """A draft model's sequence of which the cache has the prompt alone, or nothing where that is read with the canvas.

    Each pass brings all of the canvas: the answer so far and masks behind it, as the model has learnt to read one.
    """

    before: Tensor | None = None  # the logits behind the prompt, [1, vocab], where the canvas' first token is read there

    @cached_property
    def diffusion(self) -> Diffusion:
        """What the draft model is."""
        return diffusion_of(self.runner.model.config)

    @cached_property
    def whole(self) -> bool:
        """Whether the prompt is read with the canvas, in every pass."""
        return is_bidirectional(self.runner.model.config)

    @property
    def unseen(self) -> list[int]:
        """What is to be read of the prompt before a canvas can be."""
        if self.whole:
            return []
        new = super().unseen
        return new[: len(new) - self.position]

    @property
    def masks(self) -> int:
        """How many masks the canvas has: never more than the answer could have tokens, or the model positions."""
        left = self.request.params.max_new_tokens - self.position
        return min(max(AHEAD, self.tokens), left, left if self.runner.limit is None else self.runner.limit - len(self.ids))

    @property
    def room(self) -> int:
        """How many tokens are worth drafting now: a pass of the target gives one more than is guessed."""
        return min(self.tokens, self.request.params.max_new_tokens - self.target.position - 1, self.masks)

    def forget(self, count: int) -> None:
        """Leave the cache as it is: no pass over a canvas leaves anything there."""

    @property
    def canvas(self) -> list[int]:
        """The ids of a pass over the canvas."""
        return [*super().unseen, *[self.diffusion.mask_token_id] * self.masks]

    @property
    def keep(self) -> int:
        """Of how many of these, the newest, the logits are wanted: where there is one before the first mask, a shift reads that."""
        return self.masks + (self.diffusion.shift if self.whole or self.position else 0)

    def read(self, logits: Tensor) -> Tensor:
        """Take the canvas out of the cache, and return the logits of its masks, [masks, vocab], by those of the pass; the mask's own are -inf."""
        kept = 0 if self.whole else len(self.request.prompt_ids) - len(self.request.masked_positions)
        self.rollback(self.cached - kept)
        self.runner.attend_both_ways(self.cache_slot, False)
        rows = aligned(logits, self.masks, self.diffusion.shift, None if self.whole or self.position else self.before)
        return rows.index_fill(1, torch.tensor([self.diffusion.mask_token_id], device=rows.device), -torch.inf)


class CanvasDrafts(ModelDrafts):
    """Guesses for sequences from a model that fills in masks: one pass drafts for all as many tokens as each has room for, two where that would be too large.

    What a token is drawn from hangs on what the target has and on its position; on what was drawn before it by the request's filters alone, as with any
    draft. It is judged against just that, so what stays is distributed as the target's own (Leviathan et al., 2023).
    """

    def _open(self, sequences: Sequence[TokenSequence]) -> Generator[Forward, Tensor, None]:
        """As of any draft model; what drafts for itself waits until its prompt is read, and then has it without reading it again."""
        return super()._open([sequence for sequence in sequences if sequence.runner is not self.runner or not sequence.reads_prompt])

    def _open_one(self, sequence: TokenSequence) -> CanvasDraft:
        if sequence.runner is not self.runner or is_bidirectional(self.runner.model.config):
            return CanvasDraft.open_for(sequence, self.runner)
        draft = CanvasDraft(sequence.generation, self.runner, sequence.fork_slot(), list(sequence.request.prompt_ids), sequence.text).begin(sequence)
        draft.rollback(draft.cached - len(sequence.request.prompt_ids) + len(sequence.request.masked_positions))
        return draft

    def _draft(
        self, going: list[CanvasDraft], room: Mapping[CanvasDraft, int], sequences: Sequence[TokenSequence]
    ) -> Generator[Forward, Tensor, None]:
        """Draft for these, each as long as it is sure and has room, after what is left of prompts was read."""
        if reading := [draft for draft in going if draft.unseen]:
            keep = [draft.diffusion.shift for draft in reading]
            logits = yield Forward(reading, [draft.unseen for draft in reading], keep)
            for draft, before in zip(reading, logits.split(keep)):
                draft.before = before
            self._let_go(sequences)
            going = [draft for draft in going if not draft.target.finished]
        rows: dict[CanvasDraft, Tensor] = {}
        while going:
            running, going = that_fit(going, [(len(draft.canvas), draft.keep * draft.runner.vocab_size) for draft in going])
            for draft in running:
                draft.runner.attend_both_ways(draft.cache_slot, True)
            keep = [draft.keep for draft in running]
            logits = yield Forward(running, [draft.canvas for draft in running], keep)
            rows |= {draft: draft.read(part) for draft, part in zip(running, logits.split(keep)) if not draft.target.finished}
            self._let_go(sequences)
            going = [draft for draft in going if not draft.target.finished]
        going, place = list(rows), 0
        while going:
            going, place = self._go_on(going, torch.stack([rows[draft][place] for draft in going]), room), place + 1


def check_canvas_drafts(draft: Runner, diffusion: Diffusion, translated: bool) -> None:
    """Raise UserError for a diffusion model that cannot draft, or not in ids of another tokenizer (`translated`)."""
    kind = f"the assistant ({draft.config.model_type}, masked diffusion)"
    if diffusion.attention == BLOCK_CAUSAL:
        remedy = "use one that is prompt_causal or bidirectional"
        raise UserError(f"{kind} fills in blocks (attention={BLOCK_CAUSAL!r}), of which no draft is made yet: {remedy}")
    if translated:
        remedy = "drop assistant_tokenizer, or use an assistant that writes from left to right"
        raise UserError(f"{kind} drafts on a canvas of the model's own ids: {remedy}")
    if not draft.capabilities.both_ways:
        raise UserError(f"{kind} has no runner whose positions see one another: use another assistant")
    refuse_both_ways_under_window(draft.config)
