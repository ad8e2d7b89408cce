"""How a vector is made of a text's hidden states: pooled, and then what else a sentence encoder has, in its order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data.errors import UserError
from ..filters.logits import wide

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")  # as sentence-transformers calls them, several in this order
ACTIVATIONS = {"Tanh": torch.tanh, "Identity": lambda x: x, "ReLU": F.relu, "GELU": F.gelu, "Sigmoid": torch.sigmoid, "SiLU": F.silu}


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer over vectors, weight [out, in], and the name of what follows it."""

    weight: Tensor
    bias: Tensor | None
    activation: str = "Tanh"

    def __call__(self, vectors: Tensor) -> Tensor:
        weight, bias = (x if x is None else x.to(vectors) for x in (self.weight, self.bias))
        return ACTIVATIONS[self.activation](F.linear(vectors, weight, bias))


@dataclass(frozen=True)
class Normalise:
    """To length 1; what has no length stays."""

    def __call__(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1)


@dataclass(frozen=True)
class Readout:
    """Pooling by `modes`, one behind the other where there are several, and `steps` behind it.

    `max_length` is how many tokens of a text are read, special ones counted (None: as many as the model has positions), `lower` whether its letters
    are made small first. `prompts` are beginnings of texts by their names, of which `default_prompt` stands before a text of which nothing is said.
    """

    modes: tuple[str, ...] = ("mean",)
    steps: tuple[Dense | Normalise, ...] = ()
    max_length: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    counts_prompt: bool = True  # whether a prompt's tokens are pooled too

    def __post_init__(self):
        for mode in self.modes or ("",):
            if mode not in MODES:
                raise UserError(f"pooling must be {', '.join(MODES[:-1])} or {MODES[-1]}, got {mode!r}")

    @property
    def normalised(self) -> bool:
        """Whether every vector has length 1."""
        return any(isinstance(step, Normalise) for step in self.steps[-1:])

    def __call__(self, states: Tensor, mask: Tensor) -> Tensor:
        """Vectors of hidden states, [rows, longest, hidden] padded on the right, and which of them are tokens, [rows, longest]: [rows, size], in float32 at least."""
        vectors = torch.cat([pooled(wide(states), mask, mode) for mode in self.modes], dim=-1)
        for step in self.steps:
            vectors = step(vectors)
        return vectors

    def size(self, hidden: int) -> int:
        """How many numbers a vector has over so wide states."""
        dense = [step.weight.shape[0] for step in self.steps if isinstance(step, Dense)]
        return dense[-1] if dense else len(self.modes) * hidden

    def prompt_of(self, name: str | None) -> str:
        """What stands before a text by the name of a prompt, or where none is named. Raises UserError for a name that there is not."""
        name = self.default_prompt if name is None else name
        if name is not None and name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise UserError(f"prompt {name!r} is none of the model's ({known}): name one of them, or put the words before the texts yourself")
        prompt = "" if name is None else self.prompts[name] or ""
        if prompt and not self.counts_prompt:
            raise UserError(f"prompt {name!r}: the model leaves the tokens of a prompt out of its pooling (include_prompt), which Seodang does not: use another model")
        return prompt


def pooled(states: Tensor, mask: Tensor, mode: str) -> Tensor:
    """One vector of each row of hidden states, [rows, longest, hidden] padded on the right, over its tokens, mask [rows, longest]: [rows, hidden].

    "cls" is the first, "lasttoken" the last, "weightedmean" a mean in which a token counts as much as its place, from 1 on (Muennighoff 2022,
    "SGPT"), "mean_sqrt_len_tokens" a sum over the root of the length.
    """
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    if mode == "max":
        return states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
    weights = mask.to(states.dtype)
    if mode == "weightedmean":
        weights = weights * torch.arange(1, mask.shape[1] + 1, device=mask.device)
    total = weights.sum(1, keepdim=True)
    return (weights[:, None] @ states)[:, 0] / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)
