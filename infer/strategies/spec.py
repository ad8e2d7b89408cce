"""What a strategy is besides its function: what it honours, needs and refuses, how it is recognised, and where it comes from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..requests.generation import Generation
from ..requests.options import CONFIG, Command, option, options_of, settings
from ..requests.params import RequestParams
from ..requests.request import Request, Select
from ..requests.rules import above_zero, share
from ..requests.strategy import Host, Strategy


@settings
class Guidance:
    """Classifier-free guidance; the first setting is the one that asks for it."""

    guidance_scale: float | None = option(
        None, "Classifier-free guidance, away from negative_prompt.", above_zero, example=1.5, same_in=(CONFIG,), off=1
    )
    negative_prompt: Any = option(None, "What guidance leads away from.", example="no", command=Command(str | None))


@settings
class Amateur:
    """Contrastive decoding; the first setting is the one that asks for it."""

    amateur_model: nn.Module | None = option(
        None, "Contrastive decoding: the model whose liking counts against a token.", example=nn.Identity(), command=Command(str | None)
    )
    amateur_alpha: float = option(0.1, "Tokens less likely than this times the likeliest are dropped there.", share, example=0.5)
    amateur_temperature: float = option(1.0, "Temperature of the amateur.", above_zero, example=0.2)


@dataclass(frozen=True)
class StrategySpec:
    """A strategy by its name: how a request's own is started, and what it honours.

    `start` returns None where its sequence has joined a strategy that requests share.
    `options` are the classes of the settings that are its own, or names of single ones; `guided` adds those of guidance. `least` are the fewest
    settings that mean it, and `meant` says whether a request's do without its name. `needs` are capabilities that the runner must
    have. `check` judges the values, `suits` whether the runner's model can take them; `width` counts its sequences; `select` makes what selects among the answers, of the settings,
    the prompt's text and how many first tokens of each answer are a given prefix. `samples`: whether
    it may draw, else do_sample and the filters of sampling are refused. `sees_logprobs`: its filters act on log-probabilities, not logits. `reads_prompt`: it reads the whole prompt
    itself, by parts where it is long. `left_to_right`: each token hangs on those before it alone; else filters that look back are refused
    unless the `orderly` settings are given, by which it goes from left to right. `streams` says when tokens are told, `about` is
    what is documented as its effect, or a text, `paper` where it comes from.
    """

    name: str
    start: Callable[[Generation, Host], Strategy | None]
    about: Callable | str
    options: tuple[type | str, ...] = ()
    least: Mapping[str, Any] = field(default_factory=dict)
    meant: Callable[[RequestParams], bool] = lambda params: False
    needs: tuple[str, ...] = ()
    check: Callable[[RequestParams], None] = lambda params: None
    suits: Callable[[RequestParams, Any], None] = lambda params, runner: None
    select: Callable[[RequestParams, str, int], Select] | None = None
    width: Callable[[Request], int] = lambda request: request.width
    guided: bool = True
    samples: bool = True
    encoder_decoder: bool = True
    sees_logprobs: bool = False
    reads_prompt: bool = False
    left_to_right: bool = True
    orderly: Mapping[str, Any] = field(default_factory=dict)
    streams: str = "as they come"
    paper: str = ""

    @property
    def own(self) -> tuple[str, ...]:
        """The names of its own settings."""
        return tuple(name for each in self.options for name in ((each,) if isinstance(each, str) else options_of(each)))

    def in_order(self, params: RequestParams) -> bool:
        """Whether tokens come one behind the other."""
        return self.left_to_right or bool(self.orderly) and all(getattr(params, name) == value for name, value in self.orderly.items())

    @property
    def summary(self) -> str:
        """What it does, in the first sentence of what documents it."""
        text = self.about if isinstance(self.about, str) else inspect.getdoc(self.about) or ""
        return " ".join(text.split("\n\n")[0].split()).rstrip(".")

    @property
    def honours(self) -> frozenset[str]:
        """The settings of strategies and guidance that it has a use for."""
        return frozenset((*self.own, *(options_of(Guidance) | options_of(Amateur) if self.guided else ())))
