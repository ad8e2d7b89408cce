"""The decoding strategies by name, what each honours, and which one a request's options mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...data.errors import UserError
from ..requests.generation import Generation
from ..requests.params import SamplingParams
from ..requests.request import Request
from ..requests.strategy import Host, Strategy
from ..runners.architecture import Capabilities
from .assistants import ASSISTED_OPTIONS, check_assisted
from .assisted import assisted
from .beam import beam, check_beams
from .constrained_beam import check_constrained, constrained_beam
from .contrastive import check_contrastive, contrastive
from .diverse_beam import check_groups, diverse_beam
from .dola import check_dola, dola, suits_dola
from .sampling import check_sampling, sampling
from .selection import check_risk, check_selection, check_vote

GUIDANCE = ("guidance_scale", "negative_prompt")
AMATEUR = ("amateur_model", "amateur_alpha", "amateur_temperature")
GUIDANCE_OPTIONS = (*GUIDANCE, *AMATEUR)
BEAM = ("num_beams", "length_penalty", "early_stopping")
# each of these belongs to some strategies and is an error under the others
OWNED = (
    "num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "force_words", "force_words_ids",
    "penalty_alpha", "dola_layers", "assistant_model", "assistant_tokenizer", "assistant_early_exit", "prompt_lookup_num_tokens",
    "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
    "best_of", "reward", "answer_of", "utility", *GUIDANCE_OPTIONS,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A strategy: how it is started for a request (returning None: its sequence has joined one that requests share) and what it honours.

    `options` are the ones of `OWNED` that it knows. `needs` are capabilities that the runner must have. `check` judges the values, `suits`
    whether the runner's model can take them; `width` counts its sequences.
    """

    name: str
    start: Callable[[Generation, Host], Strategy | None]
    options: frozenset[str]
    needs: tuple[str, ...] = ()
    check: Callable[[SamplingParams], None] = lambda params: None
    suits: Callable[[SamplingParams, Any], None] = lambda params, runner: None
    width: Callable[[Request], int] = lambda request: request.width
    samples: bool = True  # else do_sample and the filters of sampling are refused
    encoder_decoder: bool = True


def beams(request: Request) -> int:
    """How many sequences a search of beams runs."""
    return request.params.num_beams


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("sampling", sampling, frozenset(GUIDANCE_OPTIONS), check=check_sampling),
        Kind("best_of_n", sampling, frozenset(("best_of", "reward", *GUIDANCE_OPTIONS)), check=check_selection),
        Kind("self_consistency", sampling, frozenset(("best_of", "answer_of", *GUIDANCE_OPTIONS)), check=check_vote),
        Kind("minimum_bayes_risk", sampling, frozenset(("best_of", "utility", *GUIDANCE_OPTIONS)), check=check_risk),
        Kind(
            "contrastive", contrastive, frozenset(("penalty_alpha", *GUIDANCE_OPTIONS)), ("hidden_states", "fork"), check_contrastive,
            width=lambda request: request.params.top_k, samples=False,
        ),
        Kind(
            "assisted", assisted, frozenset((*ASSISTED_OPTIONS, *GUIDANCE_OPTIONS)), ("truncate", "all_positions", "fork"), check_assisted,
        ),
        Kind("beam", beam, frozenset((*BEAM, *GUIDANCE_OPTIONS)), ("fork",), check_beams, width=beams),
        Kind(
            "diverse_beam", diverse_beam, frozenset((*BEAM, "num_beam_groups", "diversity_penalty", *GUIDANCE_OPTIONS)), ("fork",),
            check_groups, width=beams, samples=False,
        ),
        Kind(
            "constrained_beam", constrained_beam, frozenset((*BEAM, "force_words", "force_words_ids", *GUIDANCE_OPTIONS)), ("fork",),
            check_constrained, width=beams, samples=False,
        ),
        Kind("dola", dola, frozenset(("dola_layers",)), ("hidden_states",), check_dola, suits_dola, encoder_decoder=False),
    )
}  # fmt: skip


def named(params: SamplingParams) -> str:
    """Return the name of the strategy that the options mean, unless `strategy` says it."""
    if params.strategy is not None:
        return params.strategy
    if params.assistant_model is not None or params.assistant_early_exit or params.prompt_lookup_num_tokens:
        return "assisted"
    if params.penalty_alpha is not None:
        return "contrastive"
    if params.dola_layers is not None:
        return "dola"
    if params.force_words or params.force_words_ids:
        return "constrained_beam"
    if params.num_beam_groups > 1:
        return "diverse_beam"
    if params.num_beams > 1:
        return "beam"
    if params.answer_of is not None:
        return "self_consistency"
    if params.utility is not None:
        return "minimum_bayes_risk"
    return "best_of_n" if params.best_of is not None else "sampling"


def choose(params: SamplingParams) -> Kind:
    """Return the strategy of a request; raises UserError for an unknown name."""
    name = named(params)
    if name not in KINDS:
        raise UserError(f"strategy {name!r} is unknown: choose one of {', '.join(KINDS)}")
    return KINDS[name]


def check(params: SamplingParams, capabilities: Capabilities, encoder_decoder: bool = False) -> Kind:
    """Return the request's strategy; raises UserError for an option that it, or the model's runner, cannot honour."""
    kind = choose(params)
    given = params.given
    for name, value in given.items():
        if name in OWNED and name not in kind.options:
            raise UserError(f"strategy {kind.name!r} has no use for {name}={shown(value)}: drop it, or choose the strategy that it is meant for")
    if params.samples and not kind.samples:
        raise UserError(f"strategy {kind.name!r} takes no random choices: drop do_sample and the filters of sampling")
    if encoder_decoder and not kind.encoder_decoder:
        raise UserError(f"strategy {kind.name!r} is not made for encoder-decoder models: choose another, or a decoder")
    for need in kind.needs:
        if not getattr(capabilities, need):
            raise UserError(f"strategy {kind.name!r} needs {need.replace('_', ' ')}, which this architecture's runner does not offer")
    if "guidance_scale" in given and "amateur_model" in given:
        raise UserError("guidance_scale and amateur_model both change the model's logits before anything else: drop one of them")
    for name in (*GUIDANCE[1:], *AMATEUR[1:]):
        owner = "guidance_scale" if name in GUIDANCE else "amateur_model"
        if name in given and owner not in given:
            raise UserError(f"{name}={shown(given[name])} says nothing without {owner}: give both")
    kind.check(params)
    return kind


def shown(value: object) -> str:
    """A value as an error names it: models and functions by their type."""
    plain = isinstance(value, bool | int | float | str | tuple | list | dict)
    text = repr(value) if plain else getattr(value, "__name__", type(value).__name__)
    return text if len(text) <= 60 else text[:57] + "..."
