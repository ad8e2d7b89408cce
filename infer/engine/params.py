"""What a caller may ask of the generation of one prompt."""

from __future__ import annotations

from ..filters.registry import FILTERS, FilterOptions
from ..requests.options import options_of, settings
from ..requests.params import RequestParams, refuse
from ..strategies.registry import StrategyOptions


@settings
class SamplingParams(RequestParams, FilterOptions, StrategyOptions):
    """Settings of one request, under transformers' names; None leaves a filter out.

    Each is declared beside the function that it is for, with its default, its range and what it does (`OPTIONS` has all by name).
    Without `do_sample`, a request is sampled where one of `WARPING` is given (temperature, top_k, top_p, ...), and takes the
    likeliest elsewhere; a temperature of 0 is greedy too. Without `strategy`, the options say which is meant (see `strategies.registry`).
    `seed` makes sampled text repeatable; without one a fresh seed is drawn and reported. `stop` strings, `stop_regex`, `stop_token_ids`
    and `stop_when` (a function of the answer's text so far) end the answer besides the model's own end tokens. None of them does before
    `min_new_tokens` and `min_length`: end tokens and `stop_token_ids` cannot come, and a stop string, or a match, counts where its last
    character comes with a token beyond that number, as in vLLM; one that is complete with the last of them is text like any other. `filters` are the
    caller's own: functions of (logits, ids) that return logits, or transformers' LogitsProcessors, which are called in their own order, (ids,
    logits); each is tried once, on a copy, before anything is computed. Models stand here too (`assistant_model`, `amateur_model`), for each
    request may have its own.
    Raises UserError for a value out of range, and for options that exclude each other.
    """

    def __post_init__(self):
        super().__post_init__()
        for spec in FILTERS.values():
            refuse(spec.check(self))


OPTIONS = options_of(SamplingParams)
WARPING = tuple(name for name, each in OPTIONS.items() if each.samples)  # each of these, when given, turns sampling on
