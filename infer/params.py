"""What a caller may ask of the generation of one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from transformers import LogitsProcessor

from ..data.refusal import UserError

DEFAULT_MAX_NEW_TOKENS = 256

# a function (logits [1, vocab], history [1, n]) -> logits [1, vocab], or a transformers LogitsProcessor
UserFilter = Callable[[Tensor, Tensor], Tensor] | LogitsProcessor


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request, under transformers' names; None leaves a filter out.

    Without `do_sample`, a request is sampled where temperature, top_k, top_p or min_p is given, and greedy elsewhere; a
    temperature of 0 is greedy too. `seed` makes sampled text repeatable; without one a fresh seed is drawn and reported.
    `stop` strings and `stop_token_ids` end the answer besides the model's own end tokens. `filters` are the caller's own,
    applied after the repetition penalty and before temperature. Raises UserError for a value out of range.
    """

    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    filters: Sequence[UserFilter] = ()

    def __post_init__(self):
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()))
        self._check_ranges()
        if self.do_sample is False:
            given = [name for name in ("top_k", "top_p", "min_p") if getattr(self, name)]
            given += ["temperature"] if self.temperature else []
            if given:
                raise UserError(f"{given[0]}={getattr(self, given[0])} asks for sampling, but do_sample is false: drop one of them")
        if self.do_sample and self.temperature == 0:
            raise UserError("temperature=0 is greedy, but do_sample is true: drop one of them")

    def _check_ranges(self) -> None:
        def check(name: str, fits: Callable[[float], bool], wanted: str, kind: type | tuple = (int, float)) -> None:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind) or not fits(value)):
                raise UserError(f"{name} must be {wanted}, got {value!r}")

        check("max_new_tokens", lambda n: n >= 1, "a whole number from 1", int)
        check("temperature", lambda t: 0 <= t < float("inf"), "a number from 0")
        check("top_k", lambda k: k >= 0, "a whole number from 0 (0 is off)", int)
        check("top_p", lambda p: 0 < p <= 1, "in (0, 1]")
        check("min_p", lambda p: 0 <= p <= 1, "in [0, 1]")
        check("repetition_penalty", lambda r: 0 < r < float("inf"), "a number above 0")
        check("seed", lambda s: True, "a whole number", int)
        if any(not isinstance(stop, str) or not stop for stop in self.stop):
            raise UserError(f"stop must be texts of at least one character, got {self.stop!r}")
        for each in self.filters:
            if not callable(each):
                raise UserError(f"a filter must be a function or a LogitsProcessor, got {each!r}")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn; else the likeliest is taken."""
        if self.do_sample is not None:
            return self.do_sample
        return self.temperature != 0 and any((self.temperature, self.top_k, self.top_p, self.min_p))
