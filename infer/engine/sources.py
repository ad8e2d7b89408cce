"""What an encoder-decoder is given: the source that its encoder reads, what its decoder is shown, and the token that every answer begins with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...data.errors import UserError
from ...data.seq2seq.languages import forced_first, starting_language, writes_languages
from ..requests.params import RequestParams
from ..runners.architecture import transformers_model
from ..runners.encoder_decoder import decoder_start
from .params import SamplingParams

OF_ENCODER_DECODERS = ("source_lang", "target_lang", "decoder_input_ids")


@dataclass(frozen=True)
class Shown:
    """The ids that the decoder is shown before the answer, of which `start` ones begin every answer's past."""

    ids: list[int]
    start: int

    @property
    def begun(self) -> bool:
        """Whether more is shown than the start: then nothing is forced to come first, as in transformers."""
        return len(self.ids) > self.start


def start_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, target_lang: str | None = None) -> list[int]:
    """Return what the decoder is shown first: for the first mBART the language of the answer, where one is known, else the checkpoint's start.

    Raises UserError where nothing says one.
    """
    language = starting_language(tokenizer, target_lang)
    return decoder_start(model) if language is None else [language]


def shown_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, params: RequestParams) -> Shown:
    """Return what a request's decoder is shown before its answer.

    `decoder_input_ids` stand behind the decoder's start, which they may begin with themselves, as in transformers; a language that the request names stands
    between the two, unless they have it there.
    """
    start, given = start_ids(model, tokenizer, params.target_lang), list(params.decoder_input_ids or ())
    if given[: len(start)] == start:
        given = given[len(start) :]
    if given and params.target_lang and writes_languages(tokenizer):
        language = forced_first(tokenizer, None, params.target_lang)
        given = given if language in (None, given[0]) else [language, *given]
    return Shown([*start, *given], len(start))


def with_first(params: SamplingParams, model: nn.Module, tokenizer: PreTrainedTokenizerBase, shown: Shown) -> SamplingParams:
    """Return the settings with the token that the answer is to begin with: its language, or what the checkpoint's generation_config forces, whatever
    the other settings are; behind a beginning in ids, none."""
    if shown.begun:
        return replace(params, forced_bos_token_id=None, target_lang=None)
    if params.forced_bos_token_id is not None:
        return params
    forced = forced_first(tokenizer, transformers_model(model).generation_config, params.target_lang)
    return replace(params, forced_bos_token_id=forced, target_lang=None)


def before_prefix(params: RequestParams, tokenizer: PreTrainedTokenizerBase, shown: Shown) -> list[int] | None:
    """Return the ids that stand between what the decoder is shown and a prefix: a forced first token, else what the tokenizer puts there itself, None."""
    if params.forced_bos_token_id is not None:
        return [params.forced_bos_token_id]
    return [] if shown.begun or writes_languages(tokenizer) else None


def refuse_of_encoder_decoders(params: RequestParams, kind: str) -> None:
    """Raise UserError for settings that say something of a source, or of a decoder that starts anew, to a model that has neither."""
    if name := next((name for name in OF_ENCODER_DECODERS if getattr(params, name) is not None), None):
        what = "its prompt is the beginning of the answer's text" if name == "decoder_input_ids" else "say in the prompt what it is to translate"
        raise UserError(f"{name}={getattr(params, name)!r} is for encoder-decoders, but {kind} is a decoder: leave it out, {what}")
