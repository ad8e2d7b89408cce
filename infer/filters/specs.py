"""Every filter: which settings ask for it, of what kind it is, and what applies it to the rows that ask.

What applies it is made once for a fixed set of rows, `apply = spec.make(rows)`, and then maps their scores, [rows, vocab],
to scores at every step. Where nothing is to be done at a step it returns what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.errors import UserError
from ..requests.params import SamplingParams
from ..requests.request import Row
from ..requests.user_functions import called
from . import bans, logits, penalties
from .mirostat import Mirostat
from .user_filters import apply_own

Apply = Callable[[Tensor], Tensor]
XTC_DRAW = -1  # its place among the row's numbers for a position; choices count theirs from 0


class RowErrors(Exception):
    """A filter failed on some of its rows: their errors by the row's place, and the scores, in which theirs are what they were."""

    def __init__(self, errors: dict[int, UserError], scores: Tensor):
        self.errors, self.scores = errors, scores


@dataclass(frozen=True)
class FilterSpec:
    """A filter: the settings that it reads, its kind, whether a request asks for it, and how it is made for rows that do.

    The kinds: "bias" adds to scores, "penalty" looks back, "ban" drops tokens by name, "own" is the caller's, "control" steers the
    text, "warper" shapes the distribution and applies to rows that sample alone.
    """

    fields: tuple[str, ...]
    kind: str
    asks: Callable[[SamplingParams], bool]
    make: Callable[[Sequence[Row]], Apply]


def column(rows: Sequence[Row], name: str) -> Tensor:
    """One setting of every row, [rows, 1]: whole numbers for top_k, float64 for all others."""
    dtype = torch.long if name == "top_k" else torch.float64
    return torch.tensor([getattr(row.request.params, name) for row in rows], dtype=dtype)[:, None]


def placed(columns: Sequence[Tensor], scores: Tensor) -> list[Tensor]:
    """Columns where the scores are and, but for whole numbers, of their type."""
    return [each.to(scores.device, scores.dtype if each.is_floating_point() else each.dtype) for each in columns]


def given(*names: str) -> Callable[[SamplingParams], bool]:
    """Whether one of the settings asks for something; None, 0 and the empty do not."""
    return lambda params: any(getattr(params, name) for name in names)


def other_than(name: str, neutral: float) -> Callable[[SamplingParams], bool]:
    """Whether the setting is given and does not leave the row as it is."""
    return lambda params: getattr(params, name) not in (None, neutral)


def warping(function: Callable[..., Tensor], *names: str) -> Callable[[Sequence[Row]], Apply]:
    """A filter of the scores and columns of settings, which are stacked once and sent to the device once."""

    def make(rows: Sequence[Row]) -> Apply:
        columns = [column(rows, name) for name in names]

        def apply(scores: Tensor) -> Tensor:
            if columns[0].device != scores.device or columns[-1].dtype not in (scores.dtype, torch.long):
                columns[:] = placed(columns, scores)
            return function(scores, *columns)

        return apply

    return make


def looking_back(function: Callable[..., Tensor], name: str, at: Callable[[Row], Tensor]) -> Callable[[Sequence[Row]], Apply]:
    """A filter of the scores, one column of settings, and what each row looks back at."""

    def make(rows: Sequence[Row]) -> Apply:
        values = column(rows, name)
        return lambda scores: function(scores, values, [at(row) for row in rows])

    return make


def banning(banned: Callable[[Row], Iterable[int]]) -> Callable[[Sequence[Row]], Apply]:
    """A filter that drops what `banned` says of a row at a step."""

    def make(rows: Sequence[Row]) -> Apply:
        def apply(scores: Tensor) -> Tensor:
            ids = [banned(row) for row in rows]
            return bans.ban(scores, ids) if any(map(len, ids)) else scores

        return apply

    return make


def history(row: Row) -> Tensor:
    return row.history()


def answer(row: Row) -> Tensor:
    """The ids of the answer so far."""
    return row.history()[len(row.request.prompt_ids) :]


def source(row: Row) -> Tensor:
    """The encoder's input; of a decoder the prompt."""
    if row.request.source_ids is not None:
        return torch.tensor(row.request.source_ids)
    return row.history()[: len(row.request.prompt_ids)]


def make_dry(rows: Sequence[Row]) -> Apply:
    columns = [column(rows, name) for name in ("dry_multiplier", "dry_base", "dry_allowed_length")]
    breakers = [row.request.breaker_ids for row in rows]

    def recent(row: Row) -> Tensor:
        past, window = row.history(), row.request.params.dry_penalty_last_n
        return past if window is None else past[-window:]

    return lambda scores: penalties.dry(scores, *columns, [recent(row) for row in rows], breakers)


def make_decay(rows: Sequence[Row]) -> Apply:
    pairs = torch.tensor([row.request.params.exponential_decay_length_penalty for row in rows], dtype=torch.float64)
    ends = [row.request.end_ids for row in rows]
    return lambda scores: penalties.exponential_decay(scores, pairs[:, :1], pairs[:, 1:], [row.position for row in rows], ends)


def make_ngram(rows: Sequence[Row]) -> Apply:
    sizes = [row.request.params.no_repeat_ngram_size for row in rows]
    return lambda scores: bans.no_repeat_ngram(scores, sizes, [row.history() for row in rows])


def make_encoder_ngram(rows: Sequence[Row]) -> Apply:
    sizes = [row.request.params.encoder_no_repeat_ngram_size for row in rows]
    sources = [source(row) for row in rows]
    return lambda scores: bans.encoder_no_repeat_ngram(scores, sizes, [row.history() for row in rows], sources)


def make_bad_words(rows: Sequence[Row]) -> Apply:
    if texts := [row.request.params.bad_words for row in rows if not row.request.params.bad_words_ids]:
        raise UserError(f"bad_words={texts[0]!r} are texts, of which a request made by hand knows no ids: give bad_words_ids")
    words = [[tuple(word) for word in row.request.params.bad_words_ids] for row in rows]
    return lambda scores: bans.bad_words(scores, words, [row.history() for row in rows])


def make_sequence_bias(rows: Sequence[Row]) -> Apply:
    biases = [row.request.params.sequence_bias for row in rows]
    return lambda scores: bans.sequence_bias(scores, biases, [row.history() for row in rows])


def make_logit_bias(rows: Sequence[Row]) -> Apply:
    biases = [row.request.params.logit_bias for row in rows]
    return lambda scores: bans.logit_bias(scores, biases)


def row_by_row(function: Callable[[Row, Tensor], Tensor]) -> Callable[[Sequence[Row]], Apply]:
    """A filter that goes over rows by themselves, [1, vocab] to [1, vocab]; raises RowErrors once all of them had their turn."""

    def make(rows: Sequence[Row]) -> Apply:
        def apply(scores: Tensor) -> Tensor:
            errors: dict[int, UserError] = {}
            parts = list(scores.split(1))
            for place, row in enumerate(rows):
                try:
                    parts[place] = function(row, parts[place])
                except UserError as error:
                    errors[place] = error
            if errors:
                raise RowErrors(errors, torch.cat(parts))
            return torch.cat(parts)

        return apply

    return make


def only_allowed(row: Row, scores: Tensor) -> Tensor:
    """What `prefix_allowed_tokens_fn` leaves of a row's scores."""
    vocab = scores.shape[-1]
    told = called("prefix_allowed_tokens_fn", row.request.params.prefix_allowed_tokens_fn, list(row.ids))
    try:
        ids = [int(id) for id in told]
    except Exception:  # whatever it returned
        raise UserError(f"prefix_allowed_tokens_fn must return a list of ids, got {told!r}") from None
    if wrong := [id for id in ids if not 0 <= id < vocab]:
        raise UserError(f"prefix_allowed_tokens_fn allowed the id {wrong[0]}, but the model's {vocab} ids begin at 0")
    return bans.allow(scores, [ids])


def forcing(forced: Callable[[Row], Sequence[int] | None]) -> Callable[[Sequence[Row]], Apply]:
    """A filter that leaves nothing but what `forced` says of a row at a step."""

    def make(rows: Sequence[Row]) -> Apply:
        def apply(scores: Tensor) -> Tensor:
            ids = [forced(row) for row in rows]
            return scores if all(each is None for each in ids) else bans.force(scores, ids)

        return apply

    return make


def first(row: Row) -> list[int] | None:
    """The forced first token of the answer, at its place."""
    return [row.request.params.forced_bos_token_id] if row.position == 0 else None


def last(row: Row) -> Sequence[int] | None:
    """The forced last tokens of the answer, at its longest."""
    params = row.request.params
    if row.position < params.max_new_tokens - 1:
        return None
    return [params.forced_eos_token_id] if isinstance(params.forced_eos_token_id, int) else params.forced_eos_token_id


def ends(row: Row) -> frozenset[int]:
    """What ends the row: the model's end tokens and the caller's stop tokens."""
    return row.request.ends


def too_short(row: Row) -> frozenset[int]:
    return ends(row) if len(row.ids) < row.request.params.min_length and not must_end(row) else frozenset()


def answer_too_short(row: Row) -> frozenset[int]:
    return ends(row) if row.position < row.request.params.min_new_tokens and not must_end(row) else frozenset()


def must_end(row: Row) -> bool:
    """Whether what the answer may be (a grammar, a trie) leaves nothing but its end."""
    return any(control.must_end for control in row.controls)


def at_the_beginning(row: Row) -> Sequence[int]:
    """What is suppressed at the first token, or at the second where the first is forced."""
    params = row.request.params
    return params.begin_suppress_tokens if row.position == (params.forced_bos_token_id is not None) else ()


def controlled(row: Row, scores: Tensor) -> Tensor:
    """What a row's controls leave of its scores: grammars, forced texts and the like."""
    for control in row.controls:
        scores = control.mask(row, scores)
    return scores


def make_xtc(rows: Sequence[Row]) -> Apply:
    columns = [column(rows, name) for name in ("xtc_probability", "xtc_threshold")]

    def apply(scores: Tensor) -> Tensor:
        noise = torch.tensor([row.noise(XTC_DRAW) for row in rows], dtype=torch.float64)[:, None]
        return logits.xtc(scores, *(each.to(scores.device) for each in (*columns, noise)))

    return apply


def make_mirostat(rows: Sequence[Row]) -> Apply:
    def state(row: Row) -> Mirostat:
        params = row.request.params
        return row.states.setdefault("mirostat", Mirostat(params.mirostat_tau, params.mirostat_eta))

    def apply(scores: Tensor) -> Tensor:
        states = [state(row) for row in rows]
        mu = torch.tensor([each.mu for each in states], dtype=scores.dtype, device=scores.device)[:, None]
        kept = logits.mirostat(scores, mu)
        for each, logprobs in zip(states, kept.log_softmax(dim=-1)):
            each.offer(logprobs)
        return kept

    return apply


CONTROLS = ("forced_text", "trie", "json_schema", "regex", "choice", "grammar", "thinking_budget", "token_healing")

# in the order in which they apply where a request does not say another: transformers' where it has one, for the others that of
# vLLM (biases and penalties before bans) and llama.cpp (top_n_sigma before, xtc and mirostat after all that truncates)
FILTERS: dict[str, FilterSpec] = {
    "sequence_bias": FilterSpec(("sequence_bias",), "bias", given("sequence_bias"), make_sequence_bias),
    "logit_bias": FilterSpec(("logit_bias",), "bias", given("logit_bias"), make_logit_bias),
    "encoder_repetition_penalty": FilterSpec(
        ("encoder_repetition_penalty",), "penalty", other_than("encoder_repetition_penalty", 1),
        looking_back(penalties.encoder_repetition_penalty, "encoder_repetition_penalty", source),
    ),
    "repetition_penalty": FilterSpec(
        ("repetition_penalty",), "penalty", other_than("repetition_penalty", 1),
        looking_back(penalties.repetition_penalty, "repetition_penalty", history),
    ),
    "frequency_penalty": FilterSpec(
        ("frequency_penalty",), "penalty", given("frequency_penalty"),
        looking_back(penalties.frequency_penalty, "frequency_penalty", answer),
    ),
    "presence_penalty": FilterSpec(
        ("presence_penalty",), "penalty", given("presence_penalty"), looking_back(penalties.presence_penalty, "presence_penalty", answer)
    ),
    "dry": FilterSpec(
        ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_sequence_breakers", "dry_penalty_last_n"),
        "penalty", given("dry_multiplier"), make_dry,
    ),
    "no_repeat_ngram_size": FilterSpec(("no_repeat_ngram_size",), "ban", given("no_repeat_ngram_size"), make_ngram),
    "encoder_no_repeat_ngram_size": FilterSpec(
        ("encoder_no_repeat_ngram_size",), "ban", given("encoder_no_repeat_ngram_size"), make_encoder_ngram
    ),
    "bad_words": FilterSpec(("bad_words", "bad_words_ids"), "ban", given("bad_words", "bad_words_ids"), make_bad_words),
    "min_length": FilterSpec(("min_length",), "ban", given("min_length"), banning(too_short)),
    "min_new_tokens": FilterSpec(("min_new_tokens",), "ban", given("min_new_tokens"), banning(answer_too_short)),
    "prefix_allowed_tokens_fn": FilterSpec(
        ("prefix_allowed_tokens_fn",), "ban", given("prefix_allowed_tokens_fn"), row_by_row(only_allowed)
    ),
    "forced_bos_token_id": FilterSpec(("forced_bos_token_id",), "ban", other_than("forced_bos_token_id", None), forcing(first)),
    "forced_eos_token_id": FilterSpec(
        ("forced_eos_token_id",), "ban", lambda params: params.forced_eos_token_id not in (None, (), []), forcing(last)
    ),
    "exponential_decay_length_penalty": FilterSpec(
        ("exponential_decay_length_penalty",), "penalty", given("exponential_decay_length_penalty"), make_decay
    ),
    "suppress_tokens": FilterSpec(
        ("suppress_tokens",), "ban", given("suppress_tokens"), banning(lambda row: row.request.params.suppress_tokens)
    ),
    "begin_suppress_tokens": FilterSpec(("begin_suppress_tokens",), "ban", given("begin_suppress_tokens"), banning(at_the_beginning)),
    "filters": FilterSpec(("filters",), "own", given("filters"), row_by_row(apply_own)),
    "controls": FilterSpec(CONTROLS, "control", given(*CONTROLS), row_by_row(controlled)),
    "temperature": FilterSpec(
        ("temperature",), "warper", lambda params: params.temperature not in (None, 0, 1) and not params.dynatemp_range,
        warping(logits.temperature, "temperature"),
    ),
    "dynatemp": FilterSpec(
        ("temperature", "dynatemp_range", "dynatemp_exponent"), "warper", given("dynatemp_range"),
        warping(logits.dynamic_temperature, "temperature", "dynatemp_range", "dynatemp_exponent"),
    ),
    "top_n_sigma": FilterSpec(("top_n_sigma",), "warper", given("top_n_sigma"), warping(logits.top_n_sigma, "top_n_sigma")),
    "top_h": FilterSpec(("top_h",), "warper", given("top_h"), warping(logits.top_h, "top_h")),
    "top_k": FilterSpec(("top_k",), "warper", given("top_k"), warping(logits.top_k, "top_k")),
    "top_p": FilterSpec(("top_p",), "warper", other_than("top_p", 1), warping(logits.top_p, "top_p")),
    "min_p": FilterSpec(("min_p",), "warper", given("min_p"), warping(logits.min_p, "min_p")),
    "typical_p": FilterSpec(("typical_p",), "warper", other_than("typical_p", 1), warping(logits.typical_p, "typical_p")),
    "epsilon_cutoff": FilterSpec(("epsilon_cutoff",), "warper", given("epsilon_cutoff"), warping(logits.epsilon_cutoff, "epsilon_cutoff")),
    "eta_cutoff": FilterSpec(("eta_cutoff",), "warper", given("eta_cutoff"), warping(logits.eta_cutoff, "eta_cutoff")),
    "xtc": FilterSpec(("xtc_probability", "xtc_threshold"), "warper", given("xtc_probability"), make_xtc),
    "mirostat": FilterSpec(("mirostat_tau", "mirostat_eta"), "warper", given("mirostat_tau"), make_mirostat),
}  # fmt: skip
DEFAULT_ORDER = tuple(FILTERS)
