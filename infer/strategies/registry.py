"""The decoding strategies by name, and which one a request's options mean. A new one is a file of its own and a line in each list."""

from __future__ import annotations

from transformers import PreTrainedConfig

from ...data.errors import UserError
from ..diffusion.infilling import Infilling
from ..filters.registry import FILTERS
from ..requests.options import options_of, settings
from ..requests.params import RequestParams
from ..runners.architecture import Capabilities
from ..runners.paradigm import Diffusion, diffusion_of
from .assistants import Assistants
from .assisted import ASSISTED
from .beam import BEAM, Beams
from .constrained_beam import CONSTRAINED_BEAM, ForcedWordsOptions
from .contrastive import CONTRASTIVE, Contrastive
from .diffusion import DIFFUSION, DiffusionOptions
from .diverse_beam import DIVERSE_BEAM, BeamGroups
from .dola import DOLA, DolaOptions
from .sampling import SAMPLING
from .selection import BEST_OF_N, MINIMUM_BAYES_RISK, SELF_CONSISTENCY, BestOf, Risk, Several, Vote
from .spec import Amateur, Guidance, StrategySpec
from .stochastic_beam import STOCHASTIC_BEAM

# from the most general to the most particular: where the options mean several, they mean the last of them
STRATEGIES: dict[str, StrategySpec] = {
    spec.name: spec
    for spec in (
        SAMPLING, BEST_OF_N, MINIMUM_BAYES_RISK, SELF_CONSISTENCY, BEAM, STOCHASTIC_BEAM, DIVERSE_BEAM, CONSTRAINED_BEAM, DOLA, CONTRASTIVE,
        ASSISTED, DIFFUSION,
    )
}  # fmt: skip


@settings
class StrategyOptions(
    Beams, BeamGroups, ForcedWordsOptions, Contrastive, DolaOptions, Guidance, Amateur, Assistants, Several, BestOf, Vote, Risk, DiffusionOptions,
    Infilling,
):  # fmt: skip
    """The settings of all strategies, in the order in which they are read about (written out, so that editors know them)."""


OWNED = frozenset(options_of(StrategyOptions))  # each belongs to some strategies and is an error under the others


def named(params: RequestParams, diffusion: Diffusion | None = None) -> str:
    """Return the name of the strategy that the options mean, unless `strategy` says it; what a model speaks by where they mean none."""
    if params.strategy is not None:
        return params.strategy
    usual = SAMPLING if diffusion is None else DIFFUSION
    return next((spec.name for spec in reversed(STRATEGIES.values()) if spec.meant(params)), usual.name)


def choose(params: RequestParams, diffusion: Diffusion | None = None) -> StrategySpec:
    """Return the strategy of a request, of a diffusion model or another; raises UserError for an unknown name."""
    name = named(params, diffusion)
    if name not in STRATEGIES:
        raise UserError(f"strategy {name!r} is unknown: choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def check(
    params: RequestParams, capabilities: Capabilities, encoder_decoder: bool = False, diffusion: Diffusion | None = None
) -> StrategySpec:
    """Return the request's strategy, of a diffusion model or another; raises UserError for an option that it, or the model's runner, cannot honour."""
    spec = choose(params, diffusion)
    for name, value in params.given.items():
        if name in OWNED and name not in spec.honours:
            raise UserError(f"strategy {spec.name!r} has no use for {name}={shown(value)}: drop it, or choose the strategy that it is meant for")
    if params.samples and not spec.samples:
        raise UserError(f"strategy {spec.name!r} takes no random choices: drop do_sample and the filters of sampling")
    if encoder_decoder and not spec.encoder_decoder:
        raise UserError(f"strategy {spec.name!r} is not made for encoder-decoder models: choose another, or a decoder")
    for need in spec.needs:
        if not getattr(capabilities, need):
            raise UserError(f"strategy {spec.name!r} needs {need.replace('_', ' ')}, which this architecture's runner does not offer: choose another strategy")
    check_guidance(params)
    refuse_looking_back(params, spec)
    spec.check(params)
    return spec


def refuse_looking_back(params: RequestParams, spec: StrategySpec, written: RequestParams | None = None) -> None:
    """Raise UserError for a filter that hangs on what was said before; `written` are the settings before their texts were put into ids."""
    if spec.in_order(params):
        return
    for filter in FILTERS.values():
        if filter.asks(params) and (names := filter.looks_back(params)):
            name = next(iter(names))
            if written is not None and name not in written.given:
                name = "logit_bias"  # of a text of several tokens
            remedy = "".join(f", or give {each}={value}, by which it goes from left to right" for each, value in spec.orderly.items())
            raise UserError(f"{name} hangs on the tokens before one, but strategy {spec.name!r} fills in positions in any order: drop it{remedy}")


def speaks(spec: StrategySpec, diffusion: Diffusion | None) -> bool:
    """Whether a model, by diffusion or another, has learnt to speak so."""
    return spec.left_to_right if diffusion is None else diffusion.autoregressive or not spec.left_to_right


def spoken(diffusion: Diffusion | None) -> frozenset[str]:
    """The settings of strategies that a model, by diffusion or another, has a use for."""
    return frozenset(name for spec in STRATEGIES.values() if speaks(spec, diffusion) for name in spec.honours)


def check_paradigm(spec: StrategySpec, params: RequestParams, config: PreTrainedConfig) -> None:
    """Raise UserError where a model is to speak in a way that it has not learnt: by diffusion, or from left to right."""
    diffusion = diffusion_of(config)
    if speaks(spec, diffusion):
        return
    given = [f"{name}={shown(value)}" for name, value in params.given.items() if name in spec.own or name == "strategy"]
    asked = given[0] if given else f"strategy={spec.name!r}"
    if diffusion is None:
        raise UserError(f"{asked} asks for diffusion, but this {config.model_type} speaks from left to right: drop it, or load a diffusion checkpoint")
    raise UserError(
        f"{asked} asks for a text from left to right, but this {config.model_type} is a masked-diffusion model: "
        f"drop it, for its strategy is {DIFFUSION.name!r}"
    )


def check_steps(spec: StrategySpec, asked: str) -> None:
    """Raise UserError where the steps of diffusion are asked for, by this name, of an answer from left to right."""
    if spec.left_to_right:
        raise UserError(f"{asked} asks for the steps of diffusion, but the strategy {spec.name!r} writes from left to right: leave it out")


def check_guidance(params: RequestParams) -> None:
    """Raise UserError for guidance by a scale and by an amateur, and for a part of one of them without it."""
    given = params.given
    if "guidance_scale" in given and "amateur_model" in given:
        raise UserError("guidance_scale and amateur_model both change the model's logits before anything else: drop one of them")
    for owner, *parts in (options_of(Guidance), options_of(Amateur)):
        for name in parts:
            if name in given and owner not in given:
                raise UserError(f"{name}={shown(given[name])} says nothing without {owner}: give both")


def shown(value: object) -> str:
    """A value as an error names it: models and functions by their type."""
    plain = isinstance(value, bool | int | float | str | tuple | list | dict)
    text = repr(value) if plain else getattr(value, "__name__", type(value).__name__)
    return text if len(text) <= 60 else text[:57] + "..."
