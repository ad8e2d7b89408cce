"""What a server serves: a live engine under a name, and the settings that hold where a client gives none."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from ...data.seq2seq.languages import language_ids
from ..engine.checkpoint_settings import own_config, params_beside
from ..engine.compat import drawn_unasked, refuse_two_languages
from ..engine.live import LiveEngine
from ..engine.params import WARPING, SamplingParams
from ..requests.params import Unsaid
from ..runners.architecture import transformers_model
from ..runners.paradigm import Diffusion, diffusion_of
from ..strategies.beam import BEAM
from ..strategies.registry import choose
from .guard.grammar_trials import GrammarTrials

ANSWER_TOKENS = 1024  # of an answer of which nobody says how long it may be; each that is let in has its memory promised
CANVAS_TOKENS = 128  # of one by diffusion, all of which every pass reads


@dataclass(frozen=True)
class Served:
    """A live engine, what clients call its model, and what the operator lets them do.

    Its adapters go by their own names. Where neither a client nor the checkpoint says how long an answer may be, it has at most `answer_tokens`
    (without, 1024, and 128 by diffusion), and no more than the model has positions. `template_kwargs` names the variables of the chat template that clients may set. With `lenient`, a field that is unknown or would have no
    effect is ignored, where it is refused elsewhere. Without `checkpoint_settings`, the checkpoint's generation_config gives no defaults.
    With an `adapter_folder`, clients may load adapters from folders below it, and unload any.
    """

    engine: LiveEngine
    name: str
    answer_tokens: int | None = None
    template_kwargs: tuple[str, ...] = ()
    lenient: bool = False
    checkpoint_settings: bool = True
    adapter_folder: Path | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def trials(self) -> GrammarTrials:
        """Where grammars are tried that nobody has asked for yet."""
        return GrammarTrials(self.tokenizer)

    @property
    def models(self) -> list[str]:
        """What a client may call a model: the one that is served, then its adapters."""
        return [self.name, *self.engine.adapters]

    def adapter(self, model: str | None) -> str | None:
        """The adapter that a client's model is; None for the model itself."""
        return None if model in (None, self.name) else model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.engine.tokenizer

    @cached_property
    def config(self) -> GenerationConfig:
        """The checkpoint's own settings."""
        return self.checkpoint_settings and own_config(self.engine.model) or GenerationConfig()

    @cached_property
    def diffusion(self) -> Diffusion | None:
        """What the checkpoint says of itself, where it is a diffusion model."""
        return diffusion_of(transformers_model(self.engine.model).config)

    @cached_property
    def defaults(self) -> SamplingParams:
        """The settings of a request that gives none. Raises UserError where those of the checkpoint do not hold."""
        return self.params({})

    def params(self, known: Mapping[str, Any]) -> SamplingParams:
        """Return the settings that a client gives, by our names, beside the checkpoint's; where both are silent, an answer is drawn at temperature 1.

        Raises UserError for what is wrong or contradicts itself.
        """
        refuse_two_languages(known)
        params, changes = params_beside(self.config, known, self.diffusion), dict(known)
        if drawn_unasked(params):
            changes["do_sample"] = True
        elif choose(SamplingParams(**known)) is BEAM and not any(name in known for name in ("do_sample", *WARPING)):
            changes["do_sample"] = False  # a client that asks for a search means none by the checkpoint's chances
        if isinstance(params.max_new_tokens, Unsaid) and params.max_length is None and params.template is None:
            usual = ANSWER_TOKENS if choose(params, self.diffusion).left_to_right else CANVAS_TOKENS
            least = max(params.min_new_tokens or 0, self.answer_tokens or usual)
            changes |= {"max_new_tokens": least, **({} if self.engine.positions is None else {"max_length": self.engine.positions})}
        return params_beside(self.config, changes, self.diffusion) if len(changes) > len(known) else params

    @cached_property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return transformers_model(self.engine.model).config.is_encoder_decoder

    @property
    def about(self) -> dict[str, Any]:
        """What /v1/models tells of the model beside its settings: of an encoder-decoder its languages, and that it answers one turn where it has no template."""
        if not self.encoder_decoder:
            return {}
        return {"kind": "encoder-decoder", "single_turn": not self.tokenizer.chat_template, "languages": list(language_ids(self.tokenizer))}

    def describe(self) -> str:
        """In a line, what holds where a client gives nothing."""
        return "where a request says nothing: " + ", ".join(f"{name} {value}" for name, value in self.told_defaults.items())

    @property
    def told_defaults(self) -> dict[str, Any]:
        """The settings of a request that gives none, as they are told: drawing by its temperature."""
        given = dict(self.defaults.given)
        return {"temperature": 1.0, **given} if given.pop("do_sample", False) else given


@dataclass(frozen=True)
class ServedEncoder(Served):
    """A `LiveEncoder` under a name: it has no settings of an answer, for it answers nothing."""

    @property
    def defaults(self) -> SamplingParams:
        """Those of nobody."""
        return SamplingParams()

    @property
    def told_defaults(self) -> dict[str, Any]:
        """None: no answer has settings."""
        return {}

    @property
    def about(self) -> dict[str, Any]:
        """What the model is, and what its vectors are."""
        readout = self.engine.encoder.readout
        vectors = {"dimensions": self.engine.vector_size, "pooling": list(readout.modes), "normalised": readout.normalised, "prompts": dict(readout.prompts)}
        return {"kind": "encoder", "embeddings": vectors}

    @property
    def purpose(self) -> tuple[str, str, str]:
        """What it is, what it does, and by which path."""
        return "an encoder", "turns texts into vectors and answers none", "POST /v1/embeddings"

    def describe(self) -> str:
        """In a line, what can be asked."""
        what, does, path = self.purpose
        return f"{what} {does}: {path}"


class ServedClassifier(ServedEncoder):
    """A `LiveClassifier` under a name."""

    @property
    def about(self) -> dict[str, Any]:
        """What the model is, and what its labels are called."""
        classifier = self.engine.encoder
        return {"kind": "classifier", "problem": classifier.problem, "labels": classifier.names}

    @property
    def purpose(self) -> tuple[str, str, str]:
        """What it is, what it does, and by which path."""
        return "a classifier", "says which class a text is of and answers none", "POST /v1/classify"
