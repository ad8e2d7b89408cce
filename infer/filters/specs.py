"""Every filter: which settings ask for it, of what kind it is, and what applies it to the sequences that ask.

What applies it is made once for a fixed set of sequences, `apply = spec.make(sequences)`, and then maps their scores, [rows, vocab],
to scores at every step. Where nothing is to be done at a step it returns what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...data.errors import UserError
from ..requests.params import SamplingParams
from ..requests.sequence import TokenSequence
from ..requests.user_functions import called
from . import bans, logits, penalties
from .mirostat import Mirostat
from .user_filters import apply_own

Apply = Callable[[Tensor], Tensor]
XTC_DRAW = -1  # its place among the sequence's numbers for a position; choices count theirs from 0


class RowErrors(Exception):
    """A filter failed on some of its sequences: their errors by the sequence's place, and the scores, in which theirs are what they were."""

    def __init__(self, errors: dict[int, UserError], scores: Tensor):
        self.errors, self.scores = errors, scores


@dataclass(frozen=True)
class FilterSpec:
    """A filter: the settings that it reads, its kind, whether a request asks for it, and how it is made for sequences that do.

    The kinds: "bias" adds to scores, "penalty" looks back, "ban" drops tokens by name, "own" is the caller's, "constraint" steers the
    text, "warper" shapes the distribution and applies to sequences that sample alone.
    """

    fields: tuple[str, ...]
    kind: str
    asks: Callable[[SamplingParams], bool]
    make: Callable[[Sequence[TokenSequence]], Apply]


def column(sequences: Sequence[TokenSequence], name: str) -> Tensor:
    """One setting of every sequence, [rows, 1]: whole numbers for top_k, float64 for all others."""
    dtype = torch.long if name == "top_k" else torch.float64
    return torch.tensor([getattr(sequence.request.params, name) for sequence in sequences], dtype=dtype)[:, None]


def placed(columns: Sequence[Tensor], scores: Tensor) -> list[Tensor]:
    """Columns where the scores are and, but for whole numbers, of their type."""
    return [each.to(scores.device, scores.dtype if each.is_floating_point() else each.dtype) for each in columns]


def given(*names: str) -> Callable[[SamplingParams], bool]:
    """Whether one of the settings asks for something; None, 0 and the empty do not."""
    return lambda params: any(getattr(params, name) for name in names)


def other_than(name: str, neutral: float) -> Callable[[SamplingParams], bool]:
    """Whether the setting is given and does not leave the sequence as it is."""
    return lambda params: getattr(params, name) not in (None, neutral)


def warping(function: Callable[..., Tensor], *names: str) -> Callable[[Sequence[TokenSequence]], Apply]:
    """A filter of the scores and columns of settings, which are stacked once and sent to the device once."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        columns = [column(sequences, name) for name in names]

        def apply(scores: Tensor) -> Tensor:
            if columns[0].device != scores.device or columns[-1].dtype not in (scores.dtype, torch.long):
                columns[:] = placed(columns, scores)
            return function(scores, *columns)

        return apply

    return make


def looking_back(function: Callable[..., Tensor], name: str, at: Callable[[TokenSequence], Tensor]) -> Callable[[Sequence[TokenSequence]], Apply]:
    """A filter of the scores, one column of settings, and what each sequence looks back at."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        values = column(sequences, name)
        return lambda scores: function(scores, values, [at(sequence) for sequence in sequences])

    return make


def banning(banned: Callable[[TokenSequence], Iterable[int]]) -> Callable[[Sequence[TokenSequence]], Apply]:
    """A filter that drops what `banned` says of a sequence at a step."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        def apply(scores: Tensor) -> Tensor:
            ids = [banned(sequence) for sequence in sequences]
            return bans.ban(scores, ids) if any(map(len, ids)) else scores

        return apply

    return make


def history(sequence: TokenSequence) -> Tensor:
    return sequence.history()


def answer(sequence: TokenSequence) -> Tensor:
    """The ids of the answer so far."""
    return sequence.history()[len(sequence.request.prompt_ids) :]


def source(sequence: TokenSequence) -> Tensor:
    """The encoder's input; of a decoder the prompt."""
    if sequence.request.source_ids is not None:
        return torch.tensor(sequence.request.source_ids)
    return sequence.history()[: len(sequence.request.prompt_ids)]


def make_dry(sequences: Sequence[TokenSequence]) -> Apply:
    columns = [column(sequences, name) for name in ("dry_multiplier", "dry_base", "dry_allowed_length")]
    breakers = [sequence.request.breaker_ids for sequence in sequences]

    def recent(sequence: TokenSequence) -> Tensor:
        past, window = sequence.history(), sequence.request.params.dry_penalty_last_n
        return past if window is None else past[-window:]

    return lambda scores: penalties.dry(scores, *columns, [recent(sequence) for sequence in sequences], breakers)


def make_decay(sequences: Sequence[TokenSequence]) -> Apply:
    pairs = torch.tensor([sequence.request.params.exponential_decay_length_penalty for sequence in sequences], dtype=torch.float64)
    ends = [sequence.request.end_ids for sequence in sequences]
    return lambda scores: penalties.exponential_decay(scores, pairs[:, :1], pairs[:, 1:], [sequence.position for sequence in sequences], ends)


def make_ngram(sequences: Sequence[TokenSequence]) -> Apply:
    sizes = [sequence.request.params.no_repeat_ngram_size for sequence in sequences]
    return lambda scores: bans.no_repeat_ngram(scores, sizes, [sequence.history() for sequence in sequences])


def make_encoder_ngram(sequences: Sequence[TokenSequence]) -> Apply:
    sizes = [sequence.request.params.encoder_no_repeat_ngram_size for sequence in sequences]
    sources = [source(sequence) for sequence in sequences]
    return lambda scores: bans.encoder_no_repeat_ngram(scores, sizes, [sequence.history() for sequence in sequences], sources)


def make_bad_words(sequences: Sequence[TokenSequence]) -> Apply:
    if texts := [sequence.request.params.bad_words for sequence in sequences if not sequence.request.params.bad_words_ids]:
        raise UserError(f"bad_words={texts[0]!r} are texts, of which a request made by hand knows no ids: give bad_words_ids")
    words = [[tuple(word) for word in sequence.request.params.bad_words_ids] for sequence in sequences]
    return lambda scores: bans.bad_words(scores, words, [sequence.history() for sequence in sequences])


def make_sequence_bias(sequences: Sequence[TokenSequence]) -> Apply:
    biases = [sequence.request.params.sequence_bias for sequence in sequences]
    return lambda scores: bans.sequence_bias(scores, biases, [sequence.history() for sequence in sequences])


def make_logit_bias(sequences: Sequence[TokenSequence]) -> Apply:
    biases = [sequence.request.params.logit_bias for sequence in sequences]
    return lambda scores: bans.logit_bias(scores, biases)


def row_by_row(function: Callable[[TokenSequence, Tensor], Tensor]) -> Callable[[Sequence[TokenSequence]], Apply]:
    """A filter that goes over sequences by themselves, [1, vocab] to [1, vocab]; raises RowErrors once all of them had their turn."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        def apply(scores: Tensor) -> Tensor:
            errors: dict[int, UserError] = {}
            parts = list(scores.split(1))
            for place, sequence in enumerate(sequences):
                try:
                    parts[place] = function(sequence, parts[place])
                except UserError as error:
                    errors[place] = error
            if errors:
                raise RowErrors(errors, torch.cat(parts))
            return torch.cat(parts)

        return apply

    return make


def only_allowed(sequence: TokenSequence, scores: Tensor) -> Tensor:
    """What `prefix_allowed_tokens_fn` leaves of a sequence's scores."""
    vocab = scores.shape[-1]
    told = called("prefix_allowed_tokens_fn", sequence.request.params.prefix_allowed_tokens_fn, list(sequence.ids))
    try:
        ids = [int(id) for id in told]
    except Exception:  # whatever it returned
        raise UserError(f"prefix_allowed_tokens_fn must return a list of ids, got {told!r}") from None
    if wrong := [id for id in ids if not 0 <= id < vocab]:
        raise UserError(f"prefix_allowed_tokens_fn allowed the id {wrong[0]}, but the model's {vocab} ids begin at 0")
    return bans.allow(scores, [ids])


def forcing(forced: Callable[[TokenSequence], Sequence[int] | None]) -> Callable[[Sequence[TokenSequence]], Apply]:
    """A filter that leaves nothing but what `forced` says of a sequence at a step."""

    def make(sequences: Sequence[TokenSequence]) -> Apply:
        def apply(scores: Tensor) -> Tensor:
            ids = [forced(sequence) for sequence in sequences]
            return scores if all(each is None for each in ids) else bans.force(scores, ids)

        return apply

    return make


def first(sequence: TokenSequence) -> list[int] | None:
    """The forced first token of the answer, at its place."""
    return [sequence.request.params.forced_bos_token_id] if sequence.position == 0 else None


def last(sequence: TokenSequence) -> Sequence[int] | None:
    """The forced last tokens of the answer, at its longest."""
    params = sequence.request.params
    if sequence.position < params.max_new_tokens - 1:
        return None
    return [params.forced_eos_token_id] if isinstance(params.forced_eos_token_id, int) else params.forced_eos_token_id


def ends(sequence: TokenSequence) -> frozenset[int]:
    """What ends the sequence: the model's end tokens and the caller's stop tokens."""
    return sequence.request.ends


def too_short(sequence: TokenSequence) -> frozenset[int]:
    return ends(sequence) if len(sequence.ids) < sequence.request.params.min_length and not must_end(sequence) else frozenset()


def answer_too_short(sequence: TokenSequence) -> frozenset[int]:
    return ends(sequence) if sequence.position < sequence.request.params.min_new_tokens and not must_end(sequence) else frozenset()


def must_end(sequence: TokenSequence) -> bool:
    """Whether what the answer may be (a grammar, a trie) leaves nothing but its end."""
    return any(constraint.must_end for constraint in sequence.constraints)


def at_the_beginning(sequence: TokenSequence) -> Sequence[int]:
    """What is suppressed at the first token, or at the second where the first is forced."""
    params = sequence.request.params
    return params.begin_suppress_tokens if sequence.position == (params.forced_bos_token_id is not None) else ()


def controlled(sequence: TokenSequence, scores: Tensor) -> Tensor:
    """What a sequence's constraints leave of its scores: grammars, forced texts and the like."""
    for constraint in sequence.constraints:
        scores = constraint.mask(sequence, scores)
    return scores


def make_xtc(sequences: Sequence[TokenSequence]) -> Apply:
    columns = [column(sequences, name) for name in ("xtc_probability", "xtc_threshold")]

    def apply(scores: Tensor) -> Tensor:
        noise = torch.tensor([sequence.noise(XTC_DRAW) for sequence in sequences], dtype=torch.float64)[:, None]
        return logits.xtc(scores, *(each.to(scores.device) for each in (*columns, noise)))

    return apply


def make_mirostat(sequences: Sequence[TokenSequence]) -> Apply:
    def state(sequence: TokenSequence) -> Mirostat:
        params = sequence.request.params
        return sequence.states.setdefault("mirostat", Mirostat(params.mirostat_tau, params.mirostat_eta))

    def apply(scores: Tensor) -> Tensor:
        states = [state(sequence) for sequence in sequences]
        mu = torch.tensor([each.mu for each in states], dtype=scores.dtype, device=scores.device)[:, None]
        kept = logits.mirostat(scores, mu)
        for each, logprobs in zip(states, kept.log_softmax(dim=-1)):
            each.offer(logprobs)
        return kept

    return apply


CONSTRAINTS = ("forced_text", "trie", "json_schema", "regex", "choice", "grammar", "thinking_budget", "token_healing")

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
        ("suppress_tokens",), "ban", given("suppress_tokens"), banning(lambda sequence: sequence.request.params.suppress_tokens)
    ),
    "begin_suppress_tokens": FilterSpec(("begin_suppress_tokens",), "ban", given("begin_suppress_tokens"), banning(at_the_beginning)),
    "filters": FilterSpec(("filters",), "own", given("filters"), row_by_row(apply_own)),
    "constraints": FilterSpec(CONSTRAINTS, "constraint", given(*CONSTRAINTS), row_by_row(controlled)),
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
