"""Who answers a command's prompts: the model in this process here, servers in `server_backends`; all by the same calls."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import asdict, replace
from typing import Any

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.kernels.device import is_out_of_memory
from seodang.recipes.options.backend import AHEAD, BackendOptions
from seodang.recipes.options.decoding import Decoding, SpeakingModel
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.prompts.sources import Sources
from seodang.recipes.run.same_run import contents_of


class OwnBackend:
    """The model in this process; `options` are those of `seodang generate`."""

    model: Any = None  # once it is loaded
    tokenizer: Any = None
    prefix_cache: Any = None  # what is read for one call of `answers` and kept for the next, where these ask of the same texts
    on_error: str | None = None  # as `generate` has it: "result" where a call of one prompt is a part of many

    def __init__(self, model: SpeakingModel, decoding: Decoding, options: Any, asked: Prompts):
        """Raises UserError for settings that cannot be honoured."""
        self._options, self._decoding, self._how, self._asked = model, decoding, options, asked
        self._sources = Sources(asked, options.raw, options.literal, options.source_prefix, options.max_source_length)
        self._sources.check(model.model)
        decoding.check(model)

    @property
    def params(self) -> SamplingParams:
        """The settings of every prompt, but for its seed; before the model is loaded, further models by their names."""
        return self._decoding.beforehand(self._options)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers."""
        from seodang.infer.checkpoint.load import adapter_base, is_adapter, resolve

        places = {name: asdict(self._options)[name] for name in ("model", "adapter", "dtype", "weights", "chat_template")}
        further = {name: getattr(self._decoding, name) for name in ("assistant_model", "amateur_model")}
        models = {"model": places["model"], "adapter": places["adapter"], **further}
        if is_adapter(resolve(places["model"])):
            models["base model"] = adapter_base(resolve(places["model"]))
        contents = {f"a {name} whose files are": contents_of(resolve(folder)) for name, folder in models.items() if folder}
        if places["chat_template"] is not None:
            contents["a chat_template that says"] = contents_of(places["chat_template"])
        told = {name: getattr(self._how, name) for name in ("raw", "literal", "token_ids")}
        told |= {name: value for name in ("source_prefix", "max_source_length") if (value := getattr(self._how, name))}
        if self._options.kv_cache_dtype not in (None, "auto"):
            told["kv_cache_dtype"] = self._options.kv_cache_dtype
        return {"backend": "seodang", **places, **contents, **told, "checkpoint_settings": self._decoding.checkpoint_settings, **self._decoding.written_down}

    def open(self, stack: ExitStack) -> None:
        """Load the model."""
        self.model, self.tokenizer = self._options.open()
        self._options.tell(self.model)
        self._decoding.take_over(self.model)

    def again(self, decoding: Decoding, asked: Prompts) -> "OwnBackend":
        """The same model, loaded where it is, for other prompts; `decoding` is a copy of the settings that it was opened with, changed perhaps."""
        other = copy(self)
        other._decoding, other._asked, other._sources = decoding, asked, replace(self._sources, asked=asked, truncated={})
        return other

    def answers(self, indices: Sequence[int], ordered: bool) -> Iterator[Any]:
        """The results of these prompts as they come; raises UserError, before anything is computed, for what cannot be honoured."""
        from seodang.infer.engine.generate import answers

        seeded = self._decoding.seed is not None
        params = [self._decoding.params(self._options, index) for index in (indices if seeded else indices[:1])]
        ahead = AHEAD * self._how.batch_size if ordered else None
        each = params if seeded else params * len(indices)
        asks = [self._sources.asks(self.model, self.tokenizer, index, own) for index, own in zip(indices, each, strict=True)]
        how = {"literal": self._how.literal, "max_rows": self._how.batch_size, "ahead": ahead, "prefix_cache": self.prefix_cache, "on_error": self.on_error}
        found = answers(self.model, self.tokenizer, [prompt for prompt, _ in asks], [own for _, own in asks], **how)
        whole = len(indices) == len(self._asked.prompts)
        return self._memory_named(found if whole else (replace(result, prompt_index=indices[result.prompt_index]) for result in found))

    def _memory_named(self, results: Iterator[Any]) -> Iterator[Any]:
        """The results; raises UserError, with the batch size, in place of the error of a memory that does not suffice."""
        try:
            yield from results
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            told = f"out of memory with --batch_size {self._how.batch_size}: lower it, or --max_new_tokens, or keep the cache in 8 bits (--kv_cache_dtype int8, on a CPU)"
            raise UserError(f"{told} ({' '.join(str(error).split()):.200})") from error

    def asks(self, index: int) -> tuple[Any, SamplingParams]:
        """What the model is asked of a prompt, and with which settings."""
        return self._sources.asks(self.model, self.tokenizer, index, self._decoding.params(self._options, index))

    def said(self) -> list[str]:
        """What there is to say of the prompts once they have been read, in lines."""
        return self._sources.lines()

    @property
    def truncated(self) -> dict[int, int]:
        """The sources that have lost their end so far, by their index: of how many tokens each is."""
        return self._sources.truncated

    def spoken(self, show_steps: bool = False) -> Iterator[Any]:
        """The events of the answer to the only prompt there is, with the steps of diffusion if these are to be shown; raises UserError where there are none."""
        from seodang.infer.engine.generate import stream
        from seodang.infer.strategies.registry import check_steps, choose

        prompt, params = self.asks(0)
        if show_steps:
            check_steps(choose(params, self._decoding.diffusion), "show_steps")
        return stream(self.model, self.tokenizer, prompt, params, literal=self._how.literal, trace=show_steps)


def backend_for(where: BackendOptions, model: SpeakingModel, decoding: Decoding, options: Any, asked: Prompts) -> Any:
    """Return who answers; raises UserError for options that it has no use for, or cannot honour."""
    where.refuse_idle()
    if where.backend == "seodang":
        return OwnBackend(model, decoding, options, asked)
    if asked.prefixes:
        raise no_prefix(f"{asked.unit} {asked.numbers[min(asked.prefixes)]}")
    from seodang.recipes.run.server_backends import ServerBackend, VllmBackend

    return (VllmBackend if where.backend == "vllm" else ServerBackend)(where, model, decoding, options, asked)


def no_prefix(prompt: str) -> UserError:
    """What is said of a prompt that servers cannot be asked."""
    return UserError(f"{prompt} gives the beginning of its answer, which is answered with --backend seodang alone: leave its prefix out")
