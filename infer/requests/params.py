"""What a caller may ask of the generation of one prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor, nn
from transformers import LogitsProcessor

from ...data.errors import UserError
from ..text.spans import Span

DEFAULT_MAX_NEW_TOKENS = 256
MOST_BIAS = 1e30  # more would overflow a float32; as little as -inf is a ban
DEFAULT_BREAKERS = ("\n", ":", '"', "*")  # what DRY's repetitions do not reach across, as in llama.cpp

# a function (logits [1, vocab], history [1, n]) -> logits [1, vocab], or a transformers LogitsProcessor
UserFilter = Callable[[Tensor, Tensor], Tensor] | LogitsProcessor

# each of these, when given, turns sampling on
WARPING = (
    "temperature", "dynatemp_range", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "top_n_sigma",
    "xtc_probability", "mirostat_tau",
)  # fmt: skip

# each of these says something about another setting alone
PARTS = {
    "dynatemp_exponent": "dynatemp_range", "xtc_threshold": "xtc_probability", "mirostat_eta": "mirostat_tau", "dry_base": "dry_multiplier",
    "dry_allowed_length": "dry_multiplier", "dry_sequence_breakers": "dry_multiplier", "dry_penalty_last_n": "dry_multiplier",
    "thinking_end": "thinking_budget",
}  # fmt: skip
LISTS = (
    "stop_token_ids", "dry_sequence_breakers", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "filters", "trie", "hide",
    "force_words_ids",
)  # fmt: skip


def ask(default: Any, fits: Callable[[Any], bool] = lambda value: True, wanted: str = "", kind: type | tuple = (int, float)):
    """A field with the rule that its value must keep; None always passes where it is the default."""
    return field(default=default, metadata={"fits": fits, "wanted": wanted, "kind": kind})


def whole(default: int | None, least: int):
    return ask(default, lambda n: n >= least, f"a whole number from {least}", int)


def number(default: float | None, fits: Callable[[float], bool], wanted: str):
    return ask(default, lambda x: abs(x) < float("inf") and fits(x), wanted)


def fraction(default: float | None):
    return number(default, lambda x: 0 <= x <= 1, "in [0, 1]")


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request, under transformers' names; None leaves a filter out.

    Without `do_sample`, a request is sampled where one of `WARPING` is given (temperature, top_k, top_p, ...), and takes the
    likeliest elsewhere; a temperature of 0 is greedy too. Without `strategy`, the options say which is meant (see `strategies.choose`).
    `seed` makes sampled text repeatable; without one a fresh seed is drawn and reported. `stop` strings, `stop_regex`, `stop_token_ids`
    and `stop_when` (a function of the answer's text so far) end the answer besides the model's own end tokens. None of them does before
    `min_new_tokens` and `min_length`: end tokens and `stop_token_ids` cannot come, and a stop string, or a match, counts where its last
    character comes with a token beyond that number, as in vLLM; one that is complete with the last of them is text like any other. `filters` are the
    caller's own. Models stand here too (`assistant_model`, `amateur_model`), for each request may have its own.
    Raises UserError for a value out of range, and for options that exclude each other.
    """

    # the search
    strategy: str | None = ask(None, kind=str, wanted="the name of a strategy")
    do_sample: bool | None = None
    num_return_sequences: int = whole(1, 1)
    seed: int | None = ask(None, kind=int, wanted="a whole number")
    # length and stop
    max_length: int | None = whole(None, 1)
    max_new_tokens: int = whole(None, 1)  # without max_length DEFAULT_MAX_NEW_TOKENS
    min_new_tokens: int | None = whole(None, 0)
    min_length: int | None = whole(None, 0)
    max_time: float | None = number(None, lambda t: t > 0, "a number of seconds above 0")
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    stop_regex: str | None = ask(None, kind=str, wanted="a regular expression")
    stop_when: Callable[[str], bool] | None = None
    ignore_eos: bool = False
    thinking_budget: int | None = whole(None, 0)
    thinking_end: str = "</think>"
    # filters that shape the distribution
    temperature: float | None = number(None, lambda t: t >= 0, "a number from 0")
    dynatemp_range: float | None = number(None, lambda r: r >= 0, "a number from 0")
    dynatemp_exponent: float = number(1.0, lambda e: e > 0, "a number above 0")
    top_k: int | None = ask(None, lambda k: k >= 0, "a whole number from 0 (0 is off)", int)
    top_p: float | None = number(None, lambda p: 0 < p <= 1, "in (0, 1]")
    min_p: float | None = fraction(None)
    typical_p: float | None = number(None, lambda p: 0 < p <= 1, "in (0, 1]")
    epsilon_cutoff: float | None = number(None, lambda e: 0 <= e < 1, "in [0, 1)")
    eta_cutoff: float | None = number(None, lambda e: 0 <= e < 1, "in [0, 1)")
    top_h: float | None = number(None, lambda h: 0 < h <= 1, "in (0, 1]")
    top_n_sigma: float | None = number(None, lambda n: n >= 0, "a number from 0 (0 is off)")
    xtc_probability: float | None = fraction(None)
    xtc_threshold: float = fraction(0.1)
    mirostat_tau: float | None = number(None, lambda t: t > 0, "a number above 0")
    mirostat_eta: float = number(0.1, lambda e: 0 < e <= 1, "in (0, 1]")
    # filters that look back
    repetition_penalty: float | None = number(None, lambda r: r > 0, "a number above 0")
    encoder_repetition_penalty: float | None = number(None, lambda r: r > 0, "a number above 0")
    presence_penalty: float | None = number(None, lambda p: True, "a number")
    frequency_penalty: float | None = number(None, lambda p: True, "a number")
    dry_multiplier: float | None = number(None, lambda m: m >= 0, "a number from 0")
    dry_base: float = number(1.75, lambda b: b >= 1, "a number from 1")
    dry_allowed_length: int = whole(2, 1)
    dry_sequence_breakers: Sequence[str] = DEFAULT_BREAKERS
    dry_penalty_last_n: int | None = whole(None, 1)
    no_repeat_ngram_size: int | None = whole(None, 1)
    encoder_no_repeat_ngram_size: int | None = whole(None, 1)
    # tokens that may not or must come
    bad_words: Sequence[str] = ()
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    logit_bias: Mapping[int, float] | None = None
    sequence_bias: Mapping[tuple[int, ...], float] | None = None
    forced_bos_token_id: int | None = whole(None, 0)
    forced_eos_token_id: int | Sequence[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    prefix_allowed_tokens_fn: Callable[[list[int]], Sequence[int]] | None = None
    filters: Sequence[UserFilter] = ()
    filter_order: Sequence[str] | None = None
    # control of the text
    prefix: str | None = ask(None, kind=str, wanted="a text")
    token_healing: bool = False
    forced_text: Mapping[int, str] | None = None
    trie: Sequence[str | Sequence[int]] = ()
    json_schema: Mapping | str | None = None
    regex: str | None = ask(None, kind=str, wanted="a regular expression")
    choice: Sequence[str] = ()
    grammar: str | None = ask(None, kind=str, wanted="a Lark grammar")
    # control of attention
    hide: Sequence[Span] = ()
    attention_mask: Sequence[int] | None = None
    # beams
    num_beams: int = whole(1, 1)
    num_beam_groups: int = whole(1, 1)
    diversity_penalty: float = number(0.0, lambda d: d >= 0, "a number from 0")
    length_penalty: float = number(1.0, lambda p: True, "a number")
    early_stopping: bool | str = False
    force_words: Sequence[str | Sequence[str]] = ()
    force_words_ids: Sequence[Sequence] = ()
    # contrast
    penalty_alpha: float | None = fraction(None)
    dola_layers: str | Sequence[int] | None = None
    guidance_scale: float | None = number(None, lambda g: g > 0, "a number above 0")
    negative_prompt: Any = None
    amateur_model: nn.Module | None = None
    amateur_alpha: float = number(0.1, lambda a: 0 < a <= 1, "in (0, 1]")
    amateur_temperature: float = number(1.0, lambda t: t > 0, "a number above 0")
    # speculation
    assistant_model: nn.Module | None = None
    assistant_tokenizer: Any = None
    assistant_early_exit: int | None = whole(None, 1)
    prompt_lookup_num_tokens: int | None = whole(None, 1)
    max_matching_ngram_size: int = whole(2, 1)
    num_assistant_tokens: int = whole(5, 1)
    num_assistant_tokens_schedule: str = "heuristic"
    assistant_confidence_threshold: float = fraction(0.4)
    # choosing among answers
    best_of: int | None = whole(None, 1)
    reward: Callable[[str, str], float] | None = None
    answer_of: Callable[[str], Any] | None = None
    utility: Callable[[str, str], float] | None = None

    def __post_init__(self):
        if self.max_new_tokens is None:  # where max_length says how long, nothing else does
            object.__setattr__(self, "max_new_tokens", self._usual_length)
        for name in ("stop", "choice", "bad_words"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Collection):
                raise UserError(f"{name} must be a text or a list of texts, got {value!r}")
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value or ()))
        for each in fields(self):
            if each.metadata:
                self._check_range(each)
        self._check_collections()
        self._check_kinds()
        self._check_pairs()

    def _check_range(self, each) -> None:
        value, kind = getattr(self, each.name), each.metadata["kind"]
        if value is None and each.default is None:
            return
        if isinstance(value, bool) or not isinstance(value, kind) or not each.metadata["fits"](value):
            raise UserError(f"{each.name} must be {each.metadata['wanted']}, got {value!r}")

    def _check_collections(self) -> None:
        for name in LISTS:
            value = getattr(self, name)
            if isinstance(value, str | Mapping) or not isinstance(value, Collection):
                raise UserError(f"{name} must be a list, got {value!r}")
        for word in self.bad_words_ids:
            if not isinstance(word, list | tuple):
                raise UserError(f"bad_words_ids must be a list of lists of ids, got the entry {word!r}")
        for span in self.hide:
            if not isinstance(span, Span):
                raise UserError(f"hide must be a list of Span, got the entry {span!r}: give Span(start, end)")
        for name in ("logit_bias", "sequence_bias", "forced_text"):
            if not isinstance(getattr(self, name), Mapping | None):
                raise UserError(f"{name} must be a dictionary, got {getattr(self, name)!r}")
        for name in ("logit_bias", "sequence_bias"):
            for key, bias in (getattr(self, name) or {}).items():
                if isinstance(bias, bool) or not isinstance(bias, int | float) or name == "sequence_bias" and not isinstance(key, tuple):
                    wanted = "numbers by token id" if name == "logit_bias" else "numbers by tuples of ids"
                    raise UserError(f"{name} must be {wanted}, got {key!r}: {bias!r}")
                if not bias <= MOST_BIAS:
                    raise UserError(f"{name} must be at most {MOST_BIAS:g}, got {key!r}: {bias!r}")
        decay = self.exponential_decay_length_penalty
        if decay is not None and not (isinstance(decay, list | tuple) and len(decay) == 2 and all(isinstance(n, int | float) for n in decay)):
            raise UserError(f"exponential_decay_length_penalty must be where it begins and its factor, got {decay!r}")
        if decay is not None and not (abs(decay[0]) < float("inf") and 0 < decay[1] < float("inf")):
            raise UserError(f"exponential_decay_length_penalty must be a place and a factor above 0, got {decay!r}")

    def _check_kinds(self) -> None:
        for name in ("stop", "bad_words", "choice", "dry_sequence_breakers"):
            if any(not isinstance(text, str) or not text for text in getattr(self, name)):
                raise UserError(f"{name} must be texts of at least one character, got {getattr(self, name)!r}")
        order, ends = self.filter_order, self.forced_eos_token_id
        if order is not None and not (isinstance(order, list | tuple) and all(isinstance(name, str) for name in order)):
            raise UserError(f"filter_order must be a list of filters' names, got {order!r}")
        if not isinstance(ends, int | list | tuple | None):
            raise UserError(f"forced_eos_token_id must be an id or a list of ids, got {ends!r}")
        for each in self.filters:
            if not callable(each):
                raise UserError(f"a filter must be a function or a LogitsProcessor, got {each!r}")
        for name in ("stop_when", "prefix_allowed_tokens_fn", "reward", "answer_of", "utility"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise UserError(f"{name} must be a function, got {value!r}")
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise UserError(f'early_stopping must be True, False or "never", got {self.early_stopping!r}')
        if self.num_assistant_tokens_schedule not in ("heuristic", "constant"):
            raise UserError(f"num_assistant_tokens_schedule must be heuristic or constant, got {self.num_assistant_tokens_schedule!r}")

    def _check_pairs(self) -> None:
        warping = [name for name in WARPING if getattr(self, name)]
        if self.penalty_alpha is not None:
            warping = [name for name in warping if name != "top_k"]  # there it counts the candidates
        if self.do_sample is False and warping:
            raise UserError(f"{warping[0]}={getattr(self, warping[0])} asks for sampling, but do_sample is false: drop one of them")
        if self.do_sample and self.temperature == 0:
            raise UserError("temperature=0 is greedy, but do_sample is true: drop one of them")
        others = [name for name in warping if name not in ("mirostat_tau", "temperature")]
        if self.mirostat_tau and others:
            raise UserError(f"mirostat_tau chooses how many tokens to keep by itself: drop it or {others[0]}={getattr(self, others[0])}")
        for name, owner in PARTS.items():
            if getattr(self, owner) is None and differs(getattr(self, name), getattr(SamplingParams, name)):
                raise UserError(f"{name}={getattr(self, name)!r} says nothing without {owner}: give both")
        if self.prefix and (self.forced_bos_token_id is not None or self.begin_suppress_tokens):
            name = "begin_suppress_tokens" if self.forced_bos_token_id is None else "forced_bos_token_id"
            raise UserError(f"prefix={self.prefix!r} begins the answer, so {name}={getattr(self, name)} has no place: drop one of them")
        if self.dynatemp_range and not self.temperature:
            raise UserError(f"dynatemp_range={self.dynatemp_range} needs the temperature that it lies around: give temperature")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn; else the likeliest is taken."""
        if self.do_sample is not None:
            return self.do_sample
        given = [name for name in WARPING if getattr(self, name) and (name != "top_k" or self.penalty_alpha is None)]
        return self.temperature != 0 and bool(given)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        usual = {"max_new_tokens": self._usual_length}
        return {each.name: value for each in fields(self) if differs(value := getattr(self, each.name), usual.get(each.name, each.default))}

    @property
    def _usual_length(self) -> int:
        return DEFAULT_MAX_NEW_TOKENS if self.max_length is None else self.max_length


def differs(value: Any, default: Any) -> bool:
    """Whether a setting asks for something; a tuple and a list of the same things are alike."""
    if isinstance(value, list | tuple) and isinstance(default, tuple):
        return tuple(value) != default
    return value is not default and not (isinstance(value, type(default) | int | float) and value == default)
