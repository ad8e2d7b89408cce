"""The functions of a caller's that see a canvas in each step: its logits before tokens are chosen, its tokens behind the step; they may change both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...data.errors import UserError
from ..requests.user_functions import called, name_of
from .canvas import Canvas, CanvasSequence

Hook = Callable[[int | None, Tensor, Tensor | None], Tensor]  # step, canvas [batch, length], logits [batch, length, vocab]
LOGITS, TOKENS = "generation_logits_hook_func", "generation_tokens_hook_func"  # Dream's names


class Hooks:
    """A request's hooks over one canvas, without the prompt: [1, length] and [1, length, vocab].

    Each raises UserError, with the function's name, for what it does wrong.
    """

    def __init__(self, sequence: CanvasSequence, canvas: Canvas, mask_token_id: int):
        params = sequence.request.params
        self.sequence, self.canvas, self.mask = sequence, canvas, mask_token_id
        self.of_logits, self.of_tokens = params.generation_logits_hook_func, params.generation_tokens_hook_func
        self._logits: Tensor | None = None  # of the newest step

    def logits(self, step: int, positions: list[int], rows: Tensor) -> Tensor:
        """What the hook makes of the logits of some positions, [n, vocab]; it is shown zeros where none are asked for."""
        if self.of_logits is None and self.of_tokens is None:
            return rows
        index = torch.tensor(positions, device=rows.device)
        self._logits = rows.new_zeros(1, len(self.canvas.ids), rows.shape[-1]).index_copy(1, index, rows[None])
        if self.of_logits is not None:
            found = called(LOGITS, self.of_logits, step, self._shown, self._logits.clone())
            self._logits = self._checked(LOGITS, self.of_logits, found, self._logits.shape, floating=True)
            if not bool((self._logits < torch.inf).all()):
                raise UserError(f"{LOGITS} {name_of(self.of_logits)} returned nan or infinity in step {step}: what is not to come has -inf")
        return self._logits[0, index].to(rows)

    def tokens(self, step: int | None) -> dict[int, int]:
        """The tokens that the hook puts, by their positions: none in place of a published one, and no mask."""
        if self.of_tokens is None:
            return {}
        logits, self._logits = self._logits, None
        found = self._checked(TOKENS, self.of_tokens, called(TOKENS, self.of_tokens, step, self._shown, logits), self._shown.shape, floating=False)
        new = {place: id for place, (old, id) in enumerate(zip(self.canvas.ids, found[0].tolist())) if id != old}
        name, published, vocab = name_of(self.of_tokens), self.sequence.position, self.sequence.runner.vocab_size
        for position, id in new.items():
            if position < published:
                raise UserError(f"{TOKENS} {name} changes position {position} of the answer, but its first {published} tokens are published")
            if position in self.sequence.request.pinned:
                raise UserError(f"{TOKENS} {name} changes position {position} of the answer, which is given: leave it, or give less")
            if not 0 <= id < vocab:
                raise UserError(f"{TOKENS} {name} puts the id {id} at position {position}, but the model's {vocab} ids begin at 0")
            if id == self.mask:
                raise UserError(f"{TOKENS} {name} makes a mask of position {position}: it may put tokens, and the setting remask takes some back")
        return new

    @property
    def _shown(self) -> Tensor:
        return torch.tensor([self.canvas.ids])

    @staticmethod
    def _checked(setting: str, hook: Hook, found: object, shape: torch.Size, floating: bool) -> Tensor:
        if isinstance(found, Tensor) and found.shape == shape and found.is_floating_point() is floating:
            return found
        got = f"{tuple(found.shape)} of {str(found.dtype).removeprefix('torch.')}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"{setting} {name_of(hook)} must return a tensor of shape {tuple(shape)}, {'logits' if floating else 'ids'}, got {got}")
