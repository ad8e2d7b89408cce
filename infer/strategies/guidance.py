"""Guidance: a second run of the model, or of a weaker one, that a request's logits are measured against."""

from __future__ import annotations

import torch
from torch import Tensor

from ...data.errors import UserError
from ..constraints.plausible import Plausible, among_plausible
from ..filters.logits import logprobs
from ..requests.params import SamplingParams
from ..requests.request import Combine, Guidance, Request
from ..requests.strategy import Host
from .registry import choose


def guidance_of(params: SamplingParams, prompt_ids: list[int], negative_ids: list[int] | None, host: Host) -> Guidance | None:
    """Return the runner (None for the request's own), the prompt and the way to combine; None where a request asks for none.

    Guidance by a scale of 1 is none. Without a negative prompt the guidance is shown the prompt's last token, as in transformers. Raises
    UserError for an amateur of another vocabulary, and where guidance cannot run.
    """
    scale, amateur = params.guidance_scale, params.amateur_model
    if amateur is not None:
        runner = host.runner_of(amateur)
        check_amateur(params, runner, host.runner)
        return runner, list(prompt_ids), expert_minus_amateur(params.amateur_alpha, params.amateur_temperature)
    if scale is None or scale == 1:
        return None
    if host.runner.model.config.is_encoder_decoder:
        raise UserError(
            f"guidance_scale={scale} compares two prompts of a decoder, but {kind(host.runner)} is an encoder-decoder: drop it"
        )
    return None, list(prompt_ids[-1:] if negative_ids is None else negative_ids), classifier_free(scale)


def with_guidance(request: Request, guidance: Guidance | None) -> None:
    """Give the request its guidance; against an amateur, its sequences drop implausible tokens too."""
    request.guidance = guidance
    if request.params.amateur_model is not None:
        others, alpha = request.new_constraints, request.params.amateur_alpha
        request.new_constraints = lambda: [*others(), Plausible(alpha)]


def check_amateur(params: SamplingParams, amateur, expert) -> None:
    """Raise UserError for an amateur, given by its runner, that cannot be measured against the expert's."""
    for runner in (amateur, expert):
        if runner.model.config.is_encoder_decoder:
            raise UserError(f"amateur_model compares two decoders, but {kind(runner)} is an encoder-decoder: drop it")
    sizes = [runner.config.vocab_size for runner in (amateur, expert)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"amateur_model has a vocabulary of {sizes[0]} tokens, the model one of {sizes[1]}: use an amateur with the same tokenizer"
        )
    if not amateur.capabilities.truncate and choose(params).start is not None:
        raise UserError(
            f"amateur_model is a {kind(amateur)}, whose state cannot follow strategy {choose(params).name!r}: sample, or use another amateur"
        )
    if params.hide or params.attention_mask is not None:
        raise UserError("amateur_model reads the whole prompt, so nothing of it can be hidden: drop hide and attention_mask, or the amateur")


def kind(runner) -> str:
    return runner.model.config.model_type


def classifier_free(scale: float) -> Combine:
    """Move away from what the model says to the negative prompt (Sanchez et al. 2023), in log-probabilities as transformers does."""

    def combine(logits: Tensor, negative: Tensor) -> Tensor:
        positive, negative = logprobs(logits), logprobs(negative)
        return (scale * (positive - negative) + negative).masked_fill(positive == -torch.inf, -torch.inf)

    return combine


def expert_minus_amateur(alpha: float, temperature: float) -> Combine:
    """Contrastive decoding (Li et al. 2023): log p_expert - log p_amateur among the expert's plausible tokens.

    These are at least `alpha` times as likely as its likeliest; all others lie far below (see `among_plausible`). The amateur has a
    temperature of its own.
    """

    def combine(logits: Tensor, amateur: Tensor) -> Tensor:
        expert = logprobs(logits)
        return among_plausible(expert - logprobs(amateur / temperature), expert, alpha)

    return combine
