"""Masked diffusion: all positions of the answer at once, from masks to text."""

from __future__ import annotations

from torch import Tensor

from ...data.errors import UserError
from ..diffusion.canvas import CanvasSequence
from ..diffusion.denoising import DEFAULT_ORDER, Denoising, together
from ..diffusion.orders import ORDERS, ORIGIN
from ..requests.generation import Generation
from ..requests.options import CONFIG, option, settings
from ..requests.params import RequestParams
from ..requests.rules import must_be, not_negative, whole
from ..requests.strategy import Forward, Host, Strategy
from ..runners.architecture import refuse_both_ways_under_window
from ..runners.contract import Runner
from ..runners.paradigm import diffusion_of
from .spec import StrategySpec


def diffusion(generation: Generation, host: Host) -> Strategy:
    """Fill in a canvas of `max_new_tokens` masks: each pass reads all of it and makes the surest positions certain (Austin et al. 2021; Nie et al. 2025).

    What is certain up to the first mask is published as it stands; what ends the answer drops all behind it. Where the model's prompt sees no answer,
    it is read once.
    """
    runner, told = host.runner, diffusion_of(host.runner.model.config)
    sequence = CanvasSequence.open(generation, runner)
    before = None
    if not sequence.whole:
        before = yield from read(sequence, told.shift)
    answers = [sequence, *(forked(sequence, choice) for choice in range(1, generation.request.width))]
    yield from together([Denoising(each, told, before).passes() for each in answers])


def read(sequence: CanvasSequence, keep: int) -> Strategy:
    """Read the prompt, by parts where it is long; return the logits of its newest `keep` positions, [keep, vocab]."""
    logits: Tensor | None = None
    while sequence.unseen:
        logits = yield Forward([sequence], [sequence.unseen], [keep], partial=sequence.runner.capabilities.parts)
    return logits


def forked(sequence: CanvasSequence, choice: int) -> CanvasSequence:
    """Return a fork of the sequence that grows another answer of its request."""
    fork = sequence.fork()
    fork.choice = choice
    return fork


def check_diffusion(params: RequestParams) -> None:
    """Raise UserError where several answers would all be the same, and for settings that say nothing here."""
    if params.alg_temp and params.alg == ORIGIN:
        raise UserError(f"alg_temp={params.alg_temp} draws among the surest positions, but alg='origin' asks how sure none is: drop one of them")
    if params.num_return_sequences > 1 and not (params.samples or params.alg_temp or params.alg == ORIGIN):
        raise UserError(
            f"num_return_sequences={params.num_return_sequences} answers of diffusion without chance would all be the same: give do_sample or alg_temp"
        )
    if params.prompt_logprobs is not None:
        raise UserError(
            f"prompt_logprobs={params.prompt_logprobs} tells how likely each token is behind those before it, which diffusion does not ask: drop it"
        )


def suits_diffusion(params: RequestParams, runner: Runner) -> None:
    """Raise UserError for a model whose positions cannot all see one another."""
    refuse_both_ways_under_window(runner.config)


@settings
class DiffusionOptions:
    steps: int | None = option(
        None, "Diffusion: passes that fill in the answer, as many as it has positions unless fewer are given.", whole(1), example=3, same_in=(CONFIG,)
    )
    alg: str | None = option(
        None,
        f"Which positions become certain first: {', '.join(ORDERS[:-1])} or {ORDERS[-1]}; {DEFAULT_ORDER} unless another is given.",
        must_be(f"one of {', '.join(ORDERS)}", lambda value: value in ORDERS),
        example="maskgit_plus", same_in=(CONFIG,),
    )  # fmt: skip
    alg_temp: float | None = option(
        None, "Draw these positions by how sure they are, at this temperature; 0 takes the surest.", not_negative, example=0.5, same_in=(CONFIG,)
    )


DIFFUSION = StrategySpec(
    "diffusion", diffusion, about=diffusion, options=(DiffusionOptions,), least={"steps": 4},
    meant=lambda params: any(each is not None for each in (params.steps, params.alg, params.alg_temp)),
    needs=("truncate", "fork", "both_ways"), check=check_diffusion, suits=suits_diffusion, guided=False, encoder_decoder=False,
    reads_prompt=True, left_to_right=False, streams="as far as all before is certain",
    paper="Austin et al. 2021, Structured denoising diffusion models in discrete state-spaces; Ye et al. 2025, Dream 7B",
)  # fmt: skip
