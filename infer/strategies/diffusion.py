"""Masked diffusion: all positions of the answer at once, from masks to text."""

from __future__ import annotations

from ...data.errors import UserError
from ..diffusion.canvas import CanvasSequence
from ..diffusion.denoising import denoised
from ..diffusion.hooks import Hook
from ..diffusion.infilling import Infilling, check_infilling
from ..diffusion.orders import BY_CHANCE, DEFAULT_ORDER, ORDERS, ORIGIN
from ..requests.generation import Generation
from ..requests.options import CONFIG, option, options_of, settings
from ..requests.params import RequestParams, refuse
from ..requests.rules import above_zero, function, must_be, not_negative, share, whole, yes_or_no
from ..requests.strategy import Forward, Host, Strategy
from ..runners.architecture import refuse_both_ways_under_window
from ..runners.contract import Runner
from ..runners.paradigm import BIDIRECTIONAL, BLOCK_CAUSAL, diffusion_of
from .spec import StrategySpec

WITH_CANVAS = 128  # positions of a prompt that other requests' passes hardly notice


def diffusion(generation: Generation, host: Host) -> Strategy | None:
    """Fill in a canvas of `max_new_tokens` masks: each pass reads all of it and makes the surest positions certain.

    What is certain up to the first mask is published as it stands; what ends the answer drops all behind it. A prompt that sees no answer is read once,
    and then all canvases of all requests run in the passes of one generator.
    """
    sequence = CanvasSequence.open(generation, host.runner)
    if goes_with_canvas(sequence):
        return join(sequence, host)
    if not sequence.whole:
        return read_and_join(sequence, host, diffusion_of(host.runner.model.config).shift)
    if sequence.guidance is not None:  # what was read of its prompt saw nothing of the canvas
        sequence.guidance.runner.truncate(sequence.guidance.cache_slot, 0)
    return join(sequence, host)


def goes_with_canvas(sequence: CanvasSequence) -> bool:
    """Whether what is not read of a prompt goes with the first pass of its canvas, looking back in it: where it is one answer's and short, that saves a pass."""
    alone = sequence.request.width == 1 and sequence.guidance is None and not sequence.whole
    return alone and sequence.runner.capabilities.parts and len(sequence.unseen) <= WITH_CANVAS


def read_and_join(sequence: CanvasSequence, host: Host, shift: int) -> Strategy:
    """Read the prompt, by parts where it is long, with the logits of its last position under a shift; then let its answers begin."""
    while sequence.unseen:
        logits = yield Forward([sequence], [sequence.unseen], [sequence.least_kept(shift)], partial=sequence.runner.capabilities.parts)
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
    """Raise UserError for settings that contradict each other, for several answers that would all be the same, and for what says nothing here."""
    check_infilling(params)
    refuse(of_no_order(params))
    refuse(of_two_schedules(params))
    if params.num_return_sequences > 1 and not (params.samples or params.alg_temp or params.remask or params.alg in BY_CHANCE):
        raise UserError(
            f"num_return_sequences={params.num_return_sequences} answers of diffusion without chance would all be the same: give do_sample or alg_temp"
        )
    if params.prompt_logprobs is not None:
        raise UserError(
            f"prompt_logprobs={params.prompt_logprobs} tells how likely each token is behind those before it, which diffusion does not ask: drop it"
        )
    refuse(of_no_cache(params))
    if params.cfg_scale and (params.hide or params.attention_mask is not None):
        raise UserError(f"cfg_scale={params.cfg_scale} reads masks in place of the whole prompt, what is hidden too: drop hide and attention_mask, or it")


def of_no_order(params: RequestParams) -> str | None:
    """Why a setting says nothing with an order that does not ask how sure a position is."""
    if params.alg in BY_CHANCE:
        if params.alg_temp:
            return f"alg_temp={params.alg_temp} draws among the surest positions, but alg={params.alg!r} asks how sure none is: drop one of them"
        if params.eos_penalty:
            return f"eos_penalty={params.eos_penalty} makes ends less sure, but alg={params.alg!r} asks how sure none is: drop one of them"
    return None


def of_two_schedules(params: RequestParams) -> str | None:
    """Why two settings that each say how many tokens a pass makes certain do not go together."""
    given = [name for name in ("confidence_threshold", "entropy_bound") if getattr(params, name) is not None]
    if not given:
        return None
    rule = f"{given[0]}={getattr(params, given[0])} lets what the model is sure of say how many tokens a pass makes certain"
    if len(given) > 1:
        return f"{rule}, and so does {given[1]}={getattr(params, given[1])}: drop one of them"
    if params.alg == ORIGIN:
        return f"{rule}, but alg={ORIGIN!r} draws the step of each: drop one of them"
    if params.steps is not None:
        return f"{rule}, but steps={params.steps} says how many passes there are: drop one of them"
    if params.remask is not None:
        return f"{rule}, but remask={params.remask} needs to know how far the answer is, which steps say: drop one of them"
    return None


def of_no_cache(params: RequestParams) -> str | None:
    """Why what is said of an approximate cache says nothing beside another setting."""
    if params.cache_refresh is None:
        return None
    if params.block_length == 1:
        return f"cache_refresh={params.cache_refresh} says nothing with block_length=1: each block is one pass, which reads all; drop one of them"
    if params.dual_cache and params.block_length is None:
        return "dual_cache keeps what stands behind a block, but without block_length the canvas is one: give block_length, or drop dual_cache"
    if params.dual_cache and params.cfg_scale:
        return f"dual_cache does not go with cfg_scale={params.cfg_scale}, whose second reading has another prompt: drop one of them"
    return None


def suits_diffusion(params: RequestParams, runner: Runner) -> None:
    """Raise UserError for a model whose positions cannot all see one another, for blocks of another length than it is made for, and for a cache that it has no use for."""
    refuse_both_ways_under_window(runner.config)
    attention = diffusion_of(runner.model.config).attention
    if params.cache_refresh is not None and attention != BIDIRECTIONAL:
        raise UserError(
            f"cache_refresh={params.cache_refresh} keeps by approximation what this {runner.config.model_type} keeps exactly (attention={attention!r}): drop it"
        )
    if params.dual_cache and not runner.capabilities.rewrites:
        raise UserError(f"dual_cache reads a block anew in the midst of what is kept, which {runner.config.model_type} cannot: drop it")
    own = diffusion_of(runner.model.config).block_length
    if own is not None and params.block_length not in (None, 1, own):
        raise UserError(f"block_length={params.block_length}: this model is made for blocks of {own} (attention={BLOCK_CAUSAL!r}): drop it, or give 1, by which they are filled in from left to right")


@settings
class DiffusionOptions:
    steps: int | None = option(
        None, "Diffusion: passes that fill in the answer, as many as it has positions unless fewer are given.", whole(1), example=3, same_in=(CONFIG,)
    )
    alg: str | None = option(
        None,
        f"Which positions become certain first: {', '.join(ORDERS[:-1])} or {ORDERS[-1]}; {DEFAULT_ORDER} by default.",
        must_be(f"one of {', '.join(ORDERS)}", lambda value: value in ORDERS),
        example="maskgit_plus", same_in=(CONFIG,),
    )  # fmt: skip
    alg_temp: float | None = option(
        None, "Draw these positions by how sure they are, at this temperature; 0 takes the surest.", not_negative, example=0.5, same_in=(CONFIG,)
    )
    block_length: int | None = option(
        None, "Fill in the answer by blocks of so many tokens, one after the other; the last may be shorter.", whole(1), example=2
    )
    confidence_threshold: float | None = option(
        None, "Each pass makes certain all tokens of at least this probability, and one at least; above 1 always one.", above_zero, example=0.9
    )
    entropy_bound: float | None = option(
        None, "Each pass makes certain, surest first, as many tokens as have entropies of this sum in nats, the greatest left out.", not_negative,
        example=0.5,
    )  # fmt: skip
    remask: float | None = option(
        None, "In each step, tokens that are not sent yet become masks again with this probability at most, to be chosen anew.", share, example=0.5
    )
    cfg_scale: float | None = option(
        None, "Guidance away from what the model says to a prompt of masks, by so much; 0 is none.", not_negative, example=1.0
    )
    cache_refresh: int | None = option(
        None, "Bidirectional models: read the prompt anew every so many passes and at each block's beginning; approximate above 1.", whole(1),
        example=2,
    )  # fmt: skip
    dual_cache: bool | None = option(
        None, "In between, do not read what stands behind the block either.", yes_or_no, example=True, part_of="cache_refresh"
    )
    eos_penalty: float | None = option(
        None, "Taken from how sure a position is that would end the answer, so that it comes later.", not_negative, example=1.0
    )
    generation_tokens_hook_func: Hook | None = option(
        None, "A function (step, canvas [1, length], logits [1, length, vocab]) that returns the canvas, with tokens put where it wants.", function,
        example=lambda step, canvas, logits: canvas, command=False,
    )  # fmt: skip
    generation_logits_hook_func: Hook | None = option(
        None, "A function of the same that returns the logits that tokens are chosen by.", function, example=lambda step, canvas, logits: logits, command=False
    )


DIFFUSION = StrategySpec(
    "diffusion", diffusion, about=diffusion, options=(DiffusionOptions, Infilling), least={"steps": 4},
    meant=lambda params: any(getattr(params, name) is not None for name in (*options_of(DiffusionOptions), *options_of(Infilling))),
    needs=("truncate", "fork", "both_ways"), check=check_diffusion, suits=suits_diffusion, guided=False, encoder_decoder=False,
    reads_prompt=True, left_to_right=False, orderly={"block_length": 1}, streams="as far as all before is certain",
    paper="Austin et al. 2021, Structured denoising diffusion models in discrete state-spaces; Nie et al. 2025, LLaDA; Ye et al. 2025, Dream 7B",
)  # fmt: skip
