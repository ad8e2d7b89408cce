"""Options of every command that speaks."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.engine.params import OPTIONS
from seodang.infer.requests.options import Command, Option


def option(help: str, default=None):
    """A field of a command line's dataclass, with its help."""
    return field(default=default, metadata={"help": help})


def say_dtype(name: str, device: Any) -> str:
    """Say on stderr in which dtype the machine decided to load a model, by its name, and return that."""
    from seodang.infer.kernels.device import choose_dtype

    dtype, reason = choose_dtype("auto", device)
    told = str(dtype).removeprefix("torch.")
    print(f"{name} in {told} on {device}: {reason}", file=sys.stderr)
    return told


@dataclass
class LoadedModel:
    """A model, and where it is loaded."""

    model: str = option("Folder, GGUF file, hub name, or default (SmolLM2-135M-Instruct).", "default")
    adapter: str | None = option("Folder or hub name of an adapter on the model.")
    device: str = option("auto, cpu, cuda or mps.", "auto")
    dtype: str = option("auto, float32, bfloat16 or float16.", "auto")

    def open(self, **how: Any):
        """Load the model and its tokenizer, and say on stderr which dtype the machine decided on, or in how many bits the weights are; `how` is what `load` has to know beside."""
        from seodang.infer.checkpoint.load import load
        from seodang.infer.checkpoint.quantise import is_quantised
        from seodang.infer.requests.runtime import weights_of

        model, tokenizer = load(self.model, device=self.device, dtype=self.dtype, adapter=self.adapter, **how)
        if is_quantised(model):  # as was asked, or as its folder or file holds them
            print(f"{self.model} in {weights_of(model, model.get_input_embeddings().weight)} on {model.device}", file=sys.stderr)
        elif self.dtype == "auto":
            say_dtype(self.model, model.device)
        return model, tokenizer


@dataclass
class SpeakingModel(LoadedModel):
    """Which model speaks, and where it is loaded."""

    weights: str | None = option("int8 or int4: keep the linear layers in so many bits, on a CPU.")
    kv_cache_dtype: str | None = option("int8: keep keys and values in 8 bits, on a CPU, half of bfloat16's memory; auto: in the model's dtype.")
    chat_template: str | None = option("A built-in chat template's name or a Jinja file, for a model that has none.")
    verbose: bool = option("Say on stderr what computes: runner, kernel, weights, threads, and why not the native step.", False)

    takes_encoders: ClassVar[bool] = False  # which judge texts, and say none

    def open(self):
        """Load the model and its tokenizer, with the chat template that is asked for."""
        from seodang.data.chat import set_chat_template
        from seodang.infer.checkpoint.manifest import warn_of_other_template
        from seodang.infer.engine.checkpoint_settings import known_config
        from seodang.infer.runners.paradigm import refuse_encoder

        if not self.takes_encoders and (config := known_config(self.model)) is not None:
            refuse_encoder(config)
        model, tokenizer = super().open(weights=self.weights, kv_cache_dtype=self.kv_cache_dtype)
        if self.chat_template is not None:
            set_chat_template(tokenizer, self.chat_template)
            warn_of_other_template(Path(self.adapter or self.model), tokenizer.chat_template)
        return model, tokenizer

    def tell(self, model) -> None:
        """Say what computes the model's passes, where that is asked for; of an encoder nothing."""
        if self.verbose:
            from seodang.infer.requests.runtime import runtime_of
            from seodang.infer.runners.architecture import transformers_model
            from seodang.infer.runners.open import open_runner
            from seodang.infer.runners.paradigm import is_encoder

            if not is_encoder(transformers_model(model).config):
                self.say(runtime_of(open_runner(model)))

    def say(self, runtime) -> None:
        """Say what computes, where that is asked for."""
        if self.verbose:
            print(f"{self.model}: {runtime}", file=sys.stderr)


class _Decoding:
    """What is done with the settings of a command line: they win over the checkpoint's own, which hold where nothing is given."""

    given: ClassVar[Collection[str] | None] = None  # the options that were written down, set where they are parsed
    checkpoint: ClassVar[Any] = None  # its generation_config, once it is taken over
    diffusion: ClassVar[Any] = None  # what it says of itself, where it is a diffusion model
    own: ClassVar[Any] = None  # that model itself

    def take_over(self, model) -> None:
        """Let the settings of the model's own checkpoint hold beside those given, and say on stderr which these are."""
        from seodang.infer.engine.checkpoint_settings import own_config, said
        from seodang.infer.runners.architecture import transformers_model
        from seodang.infer.runners.paradigm import diffusion_of

        self.own, self.diffusion = model, diffusion_of(transformers_model(model).config)
        if self.checkpoint_settings and (config := own_config(model)) is not None:
            self.checkpoint = config
            if own := said(self._merged(self._settings()), self._changes(self._settings())):
                print(f"settings of the checkpoint: {own} (--checkpoint_settings false does without)", file=sys.stderr)

    def check(self, beside: SpeakingModel) -> None:
        """Refuse what can be refused before the model is loaded: what neither the options alone nor the checkpoint's settings with them allow."""
        try:
            self._check(SamplingParams(**self._settings()))  # with the names of further models in their places
        except UserError:
            from seodang.infer.engine.checkpoint_settings import config_in, said

            config = config_in(beside.model) if self.checkpoint_settings else None
            if config is None:
                raise
            self.checkpoint = config
            params = self._merged(self._settings())
            if not said(params, self._changes(self._settings())):
                raise
            self._check(params)

    def _check(self, params: SamplingParams) -> None:
        from seodang.infer.constraints.build import language_asked
        from seodang.infer.filters.pipeline import order_of
        from seodang.infer.requests.stop import stop_pattern
        from seodang.infer.runners.architecture import Capabilities
        from seodang.infer.strategies.registry import check

        check(params, Capabilities(**{each.name: True for each in fields(Capabilities)}))
        order_of(params)
        language_asked(params)
        if params.stop_regex is not None:
            stop_pattern(params.stop_regex)

    def params(self, beside: SpeakingModel, offset: int = 0) -> SamplingParams:
        """Return the settings, further models loaded as the one `beside` them; `offset` gives the prompts of a command their own seeds."""
        given = self._settings()
        given["seed"] = None if self.seed is None else self.seed + offset
        for name in ("assistant_model", "amateur_model"):
            if name == "assistant_model" and self._is_own(given[name], beside):
                given[name] = self.own
            elif given[name] is not None:
                given[name], tokenizer = self._opened(given[name], beside.device, beside.dtype)
                if name == "assistant_model" and self.assistant_tokenizer:
                    given["assistant_tokenizer"] = tokenizer
        return self._merged(given)

    def _is_own(self, assistant: str | None, beside: SpeakingModel) -> bool:
        """Whether an assistant is the very model that speaks: one that speaks both ways drafts by its own weights, not by a copy."""
        alike = assistant == beside.model and beside.adapter is None and beside.weights is None and not self.assistant_tokenizer
        return alike and self.diffusion is not None and self.own is not None

    def beforehand(self, beside: SpeakingModel) -> SamplingParams:
        """The settings before any model is loaded: those of the checkpoint beside those given, further models by their names."""
        if self.checkpoint is None and self.checkpoint_settings:
            from seodang.infer.engine.checkpoint_settings import config_in, diffusion_in

            self.checkpoint, self.diffusion = config_in(beside.model), diffusion_in(beside.model)
        return self._merged(self._settings())

    def alone(self) -> SamplingParams:
        """The settings without a checkpoint's, which is not here; raises UserError for what does not go together."""
        params = SamplingParams(**self._settings())
        self._check(params)
        return params

    @property
    def written_down(self) -> dict[str, Any]:
        """The settings that were given, files read."""
        return self._changes(self._settings())

    def _merged(self, settings: dict[str, Any]) -> SamplingParams:
        """The settings, those that nobody gave as the checkpoint has them."""
        if self.checkpoint is None:
            return SamplingParams(**settings)
        from seodang.infer.engine.checkpoint_settings import params_beside

        return params_beside(self.checkpoint, self._changes(settings), self.diffusion)

    def _changes(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Those of the settings that were given."""
        given = SamplingParams(**settings).given if self.given is None else self.given
        return {name: value for name, value in settings.items() if name in given}

    def _settings(self) -> dict[str, Any]:
        """The options under the names and in the types of `SamplingParams`, files read; further models by their names."""
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name in OPTIONS}
        for name, value in given.items():
            how = OPTIONS[name].command
            read = how.read(value) if isinstance(how, Command) else value
            given[name] = tuple(value) or OPTIONS[name].default if read is value and isinstance(value, list) else read
        return given

    def _opened(self, *where: str) -> tuple[Any, Any]:
        """Load a further model and its tokenizer, once for this command: by its path, device and dtype."""
        from seodang.infer.checkpoint.load import load

        known = vars(self).setdefault("_models", {})
        if where not in known:
            path, device, dtype = where
            known[where] = load(path, device=device, dtype=dtype)
        return known[where]


def written(each: Option) -> tuple[str, Any, Any]:
    """A setting as a field of the command line's dataclass: its name, and there its type and default."""
    if isinstance(each.command, Command):
        kind, default = each.command.type, each.command.default
    else:
        kind, default = each.type, each.default
        if get_origin(kind) is Sequence:
            kind = list[get_args(kind)[0]]
    if isinstance(each.command, Command) and each.command.bare is not None:
        return each.name, kind, field(default=default, metadata={"help": each.help, "nargs": "?", "const": each.command.bare})
    if get_origin(kind) is list:
        return each.name, kind, field(default_factory=lambda: list(default or ()), metadata={"help": each.help})
    return each.name, kind, option(each.help, default)


OWN = ("checkpoint_settings", bool, option("Where no option says otherwise, the checkpoint's own settings hold (its generation_config).", True))
Decoding = make_dataclass(
    "Decoding", [*(written(each) for each in OPTIONS.values() if each.command), OWN], bases=(_Decoding,), namespace={"__module__": __name__}
)
