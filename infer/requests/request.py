"""A request: one prompt with its settings and all that its answers will need, made once and never changed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..kernels.low_rank import Adapter
from ..runners.contract import Runner
from .events import Answer
from .params import RequestParams
from .rng import hashed
from .stop import AnswerText

Combine = Callable[[Tensor, Tensor], Tensor]  # logits of the sequence and of its guidance, [n, vocab] each, to the sequence's
Select = Callable[[Sequence[Answer]], Sequence[Answer]]  # of all finished answers those to return, best first


class Guidance(NamedTuple):
    """A second run that a request's logits are measured against: of another model (None for the request's own) or behind another prompt."""

    runner: Runner | None
    prompt_ids: list[int]
    combine: Combine


@dataclass(frozen=True, eq=False)
class Request:
    """What was asked: one prompt with its settings and where its answer ends.

    An encoder-decoder's prompt is `source_ids`, and `prompt_ids` are then the decoder's first ids. `strategy` is the specification of the
    strategy that the settings mean; a request whose strategy its caller starts needs none. `select`, where given, takes all `width`
    finished answers and returns the ones to publish, best first.
    """

    index: int
    prompt_ids: list[int]
    params: RequestParams
    seed: int
    end_ids: frozenset[int]
    new_text: Callable[[], AnswerText]
    strategy: Any = None
    source_ids: list[int] | None = None
    breaker_ids: frozenset[int] = frozenset()  # tokens that DRY's repetitions do not reach across
    masked_positions: tuple[int, ...] = ()  # positions of the prompt that no token sees
    prefix_ids: Sequence[int] = ()  # the answer begins with these
    pinned: Mapping[int, int] = field(default_factory=dict)  # of a canvas all that is given, the prefix too: ids by their positions
    new_constraints: Callable[[], list] = list  # what steers the text of one sequence, made anew for each
    guidance: Guidance | None = None
    select: Select | None = None
    prefix_cache: Any = None  # a PrefixCache that the sequences' past comes from and goes to
    cache_salt: str | None = None
    adapter: Adapter | None = None  # beside the weights of the model
    tokenizer: PreTrainedTokenizerBase | None = None  # of the model
    known_ids: int | None = None  # how many ids the tokenizer knows; those beyond are never offered
    traced: bool = False
    include_steps: bool = False  # each step of diffusion is told, whether the request is traced or not

    @property
    def width(self) -> int:
        """How many answers grow for this request."""
        return max(self.params.num_return_sequences, self.params.best_of or 1)

    @property
    def salt(self) -> Hashable:
        """Pasts are shared among requests of equal salts alone: those of the same adapter that give the same one."""
        return self.cache_salt if self.adapter is None else (self.adapter, self.cache_salt)

    @property
    def prompt_length(self) -> int:
        """How many tokens the prompt has, an encoder-decoder's source."""
        return len(self.source_ids or self.prompt_ids)

    @property
    def ends(self) -> frozenset[int]:
        """Every id that ends the answer: the model's own and the caller's."""
        return self.end_ids | frozenset(self.params.stop_token_ids)

    @property
    def least(self) -> int:
        """How many tokens the answer must have before one may end it."""
        return least_tokens(self.params, len(self.prompt_ids))

    def seed_of(self, choice: int) -> int:
        """What the noise of an answer is drawn from: the request's seed, and for its further answers one derived from it."""
        return self.seed if choice == 0 else derived(self.seed, choice)


def least_tokens(params: RequestParams, prompt_length: int) -> int:
    """Return how many tokens an answer behind a prompt of this length must have before one may end it."""
    return max(params.min_new_tokens or 0, (params.min_length or 0) - prompt_length)


def derived(seed: int, choice: int) -> int:
    """The seed of a request's further answer, which repeats that answer alone."""
    return hashed(seed, choice, size=4)
