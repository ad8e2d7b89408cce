"""Every filter, in the order in which they apply, and the settings of all. A new one is a file of its own and a line in each list."""

from __future__ import annotations

from collections.abc import Sequence

from ..requests.options import Command, option, settings
from ..requests.rules import must_be
from .adaptive_p import ADAPTIVE_P, AdaptiveP
from .banned_ids import (
    ALLOWED_TOKENS,
    BEGIN_SUPPRESS_TOKENS,
    FORCED_FIRST,
    FORCED_LAST,
    MIN_LENGTH,
    MIN_NEW_TOKENS,
    SUPPRESS_TOKENS,
    AllowedTokens,
    BeginSuppressTokens,
    ForcedFirst,
    ForcedLast,
    MinLength,
    MinNewTokens,
    SuppressTokens,
)  # fmt: skip
from .bans import (
    BAD_WORDS,
    ENCODER_NO_REPEAT_NGRAM,
    LOGIT_BIAS,
    NO_REPEAT_NGRAM,
    SEQUENCE_BIAS,
    BadWords,
    EncoderNoRepeatNgram,
    LogitBias,
    NoRepeatNgram,
    SequenceBias,
)  # fmt: skip
from .constraining import CONSTRAINING, CONSTRAINTS, Constraints, Text
from .logits import (
    DYNATEMP,
    EPSILON_CUTOFF,
    ETA_CUTOFF,
    MIN_P,
    TEMPERATURE,
    TOP_H,
    TOP_K,
    TOP_N_SIGMA,
    TOP_P,
    TYPICAL_P,
    XTC,
    DynamicTemperature,
    EpsilonCutoff,
    EtaCutoff,
    ExcludeTopChoices,
    MinP,
    Temperature,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
)  # fmt: skip
from .mirostat import MIROSTAT, MirostatOptions
from .penalties import (
    DRY,
    ENCODER_REPETITION_PENALTY,
    FREQUENCY_PENALTY,
    LENGTH_DECAY,
    PRESENCE_PENALTY,
    REPETITION_PENALTY,
    DontRepeatYourself,
    EncoderRepetitionPenalty,
    FrequencyPenalty,
    LengthDecay,
    PresencePenalty,
    RepetitionPenalty,
)  # fmt: skip
from .spec import FilterSpec
from .user_filters import OWN, OwnFilters

__all__ = ["CONSTRAINTS", "DEFAULT_ORDER", "FILTERS", "FilterOptions", "FilterSpec"]

# in the order in which they apply where a request does not say another: transformers' where it has one, for the others that of
# vLLM (biases and penalties before bans) and llama.cpp (top_n_sigma before, xtc, mirostat and adaptive_p after all that truncates)
FILTERS: dict[str, FilterSpec] = {
    spec.name: spec
    for spec in (
        SEQUENCE_BIAS, LOGIT_BIAS, ENCODER_REPETITION_PENALTY, REPETITION_PENALTY, FREQUENCY_PENALTY, PRESENCE_PENALTY, DRY,
        NO_REPEAT_NGRAM, ENCODER_NO_REPEAT_NGRAM, BAD_WORDS, MIN_LENGTH, MIN_NEW_TOKENS, ALLOWED_TOKENS, FORCED_FIRST, FORCED_LAST,
        LENGTH_DECAY, SUPPRESS_TOKENS, BEGIN_SUPPRESS_TOKENS, OWN, CONSTRAINING, TEMPERATURE, DYNATEMP, TOP_N_SIGMA, TOP_H, TOP_K, TOP_P,
        MIN_P, TYPICAL_P, EPSILON_CUTOFF, ETA_CUTOFF, XTC, MIROSTAT, ADAPTIVE_P,
    )
}  # fmt: skip
DEFAULT_ORDER = tuple(FILTERS)


@settings
class FilterOptions(
    MinNewTokens, MinLength, Temperature, TopK, TopP, MinP, TypicalP, EpsilonCutoff, EtaCutoff, TopH, TopNSigma, DynamicTemperature,
    ExcludeTopChoices, MirostatOptions, AdaptiveP, RepetitionPenalty, EncoderRepetitionPenalty, PresencePenalty, FrequencyPenalty,
    DontRepeatYourself, NoRepeatNgram, EncoderNoRepeatNgram, BadWords, SuppressTokens, BeginSuppressTokens, LogitBias, SequenceBias,
    ForcedFirst, ForcedLast, LengthDecay, AllowedTokens, OwnFilters, Constraints, Text,
):  # fmt: skip
    """The settings of all filters, in the order in which they are read about (written out, so that editors know them)."""

    filter_order: Sequence[str] | None = option(
        None, "The filters by name, in the order in which they apply.",
        must_be(
            "a list of filters' names", lambda order: isinstance(order, list | tuple) and all(isinstance(name, str) for name in order)
        ),
        example=("top_p", "temperature"), command=Command(list[str]),
    )  # fmt: skip
