"""Guidance: a second run of the model, or of a weaker one, that a request's logits are measured against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...data.errors import UserError
from ..constraints.plausible import Plausible, among_plausible
from ..filters.logits import logprobs
from ..requests.params import RequestParams
from ..requests.request import Combine, Guidance
from ..requests.strategy import Host
from ..runners.architecture import transformers_model
from ..runners.contract import Runner
from ..runners.paradigm import diffusion_of, refuse_diffusion
from .spec import StrategySpec


def guidance_of(params: RequestParams, strategy: StrategySpec, prompt_ids: list[int], negative_ids: list[int] | None, host: Host) -> Guidance | None:
    """Return the guidance that the settings ask for behind this prompt, None where they ask for none.

    Guidance by a scale of 1 is none. Without a negative prompt the guidance is shown the prompt's last token, as in transformers. Raises
    UserError for an amateur of another vocabulary, and where guidance cannot run.
    """
    scale, amateur = params.guidance_scale, params.amateur_model
    if params.cfg_scale:
        return Guidance(None, [diffusion_of(host.runner.model.config).mask_token_id] * len(prompt_ids), away_from_masks(params.cfg_scale))
    if amateur is not None:
        refuse_diffusion(transformers_model(amateur).config, "an amateur")
        runner = host.runner_of(amateur)
        check_amateur(params, strategy, runner, host.runner)
        return Guidance(runner, list(prompt_ids), expert_minus_amateur(params.amateur_alpha, params.amateur_temperature))
    if scale is None or scale == 1:
        return None
    if host.runner.model.config.is_encoder_decoder:
        raise UserError(
            f"guidance_scale={scale} compares two prompts of a decoder, but {model_type(host.runner)} is an encoder-decoder: drop it"
        )
    return Guidance(None, list(prompt_ids[-1:] if negative_ids is None else negative_ids), classifier_free(scale))


def with_plausibility(new_constraints: Callable[[], list], params: RequestParams) -> Callable[[], list]:
    """Return what makes a sequence's constraints, with the one more that measuring against an amateur takes: implausible tokens are dropped."""
    if params.amateur_model is None:
        return new_constraints
    return lambda: [*new_constraints(), Plausible(params.amateur_alpha)]


def check_amateur(params: RequestParams, strategy: StrategySpec, amateur: Runner, expert: Runner) -> None:
    """Raise UserError for an amateur, given by its runner, that cannot be measured against the expert's."""
    for runner in (amateur, expert):
        if runner.model.config.is_encoder_decoder:
            raise UserError(f"amateur_model compares two decoders, but {model_type(runner)} is an encoder-decoder: drop it")
    sizes = [runner.config.vocab_size for runner in (amateur, expert)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"amateur_model has a vocabulary of {sizes[0]} tokens, the model one of {sizes[1]}: use an amateur with the same tokenizer"
        )
    if not amateur.capabilities.truncate and strategy.needs:  # those that need nothing of the runner take one token after the other
        raise UserError(
            f"amateur_model is a {model_type(amateur)}, whose state cannot follow strategy {strategy.name!r}: sample, or use another amateur"
        )
    if params.hide or params.attention_mask is not None:
        raise UserError("amateur_model reads the whole prompt, so nothing of it can be hidden: drop hide and attention_mask, or the amateur")


def model_type(runner: Runner) -> str:
    """The architecture's name, as errors say it."""
    return runner.model.config.model_type


def classifier_free(scale: float) -> Combine:
    """Return what moves away from what the model says to the negative prompt (Sanchez et al. 2023), in log-probabilities as transformers does.

    It combines the model's logits, [n, vocab], with those behind the negative prompt; tokens that the model excludes stay excluded.
    """

    def combine(logits: Tensor, negative: Tensor) -> Tensor:
        positive, negative = logprobs(logits), logprobs(negative)
        return (scale * (positive - negative) + negative).masked_fill(positive == -torch.inf, -torch.inf)

    return combine


def away_from_masks(scale: float) -> Combine:
    """Return what moves away from what a diffusion model says to a prompt of masks (Nie et al. 2024), in logits, as LLaDA does."""
    return lambda logits, unconditional: unconditional + (1 + scale) * (logits - unconditional)


def expert_minus_amateur(alpha: float, temperature: float) -> Combine:
    """Return what combines two models' logits, [n, vocab], by contrastive decoding (Li et al. 2023): log p_expert - log p_amateur.

    It is taken among the expert's plausible tokens, which are at least `alpha` times as likely as its likeliest; all others lie far below (see
    `among_plausible`). The amateur has a temperature of its own.
    """

    def combine(logits: Tensor, amateur: Tensor) -> Tensor:
        expert = logprobs(logits)
        return among_plausible(expert - logprobs(amateur / temperature), expert, alpha)

    return combine
