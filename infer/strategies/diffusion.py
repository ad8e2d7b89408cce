"""Masked diffusion: all positions of the answer at once, from masks to text."""

from __future__ import annotations

from ...data.errors import UserError
from ..diffusion.canvas import CanvasSequence
from ..diffusion.denoising import DEFAULT_ORDER, denoised
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


def diffusion(generation: Generation, host: Host) -> Strategy | None:
    """Fill in a canvas of `max_new_tokens` masks: each pass reads all of it and makes the surest positions certain.

    What is certain up to the first mask is published as it stands; what ends the answer drops all behind it. A prompt that sees no answer is read once,
    and then all canvases of all requests run in the passes of one generator.
    """
    sequence = CanvasSequence.open(generation, host.runner)
    if sequence.whole:
        return join(sequence, host)
    return read_and_join(sequence, host, diffusion_of(host.runner.model.config).shift)


def read_and_join(sequence: CanvasSequence, host: Host, shift: int) -> Strategy:
    """Read the prompt, by parts where it is long, with the logits of its last position under a shift; then let its answers begin."""
    while sequence.unseen:
        logits = yield Forward([sequence], [sequence.unseen], [shift], partial=sequence.runner.capabilities.parts)
    if shift:
        sequence.before = logits, sequence.place
    join(sequence, host)


def join(sequence: CanvasSequence, host: Host) -> None:
    """Hand the sequence, and forks of it for its request's further answers, to the generator that fills in all canvases."""
    for choice in range(sequence.request.width):
        answer = sequence.fork() if choice else sequence
        answer.choice, answer.before = choice, sequence.before
        host.join("diffusion", answer, denoised)


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
