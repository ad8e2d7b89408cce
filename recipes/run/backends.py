"""Who answers a file's prompts: the model in this process, vLLM in one of its own, or a server; all by the same calls."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from seodang.infer import SamplingParams
from seodang.infer.checkpoint.manifest import fingerprint
from seodang.recipes.options.backend import BackendOptions
from seodang.recipes.options.decoding import Decoding, SpeakingModel
from seodang.recipes.run.prompt_files import Prompts
from seodang.recipes.run.same_run import contents_of

AHEAD = 16  # times as many as are answered at a time may be answered before the first is, where answers wait for their place


class OwnBackend:
    """The model in this process; `options` are those of `seodang generate`."""

    tokenizer: Any = None

    def __init__(self, model: SpeakingModel, decoding: Decoding, options: Any, asked: Prompts):
        """Raises UserError for settings that cannot be honoured."""
        self._options, self._decoding, self._how, self._asked = model, decoding, options, asked
        decoding.check(model)

    @property
    def params(self) -> SamplingParams:
        """The settings of every prompt, but for its seed; before the model is loaded, further models by their names."""
        return self._decoding.beforehand(self._options)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers."""
        from seodang.infer.checkpoint.load import resolve

        places = {name: asdict(self._options)[name] for name in ("model", "adapter", "dtype", "weights", "chat_template")}
        folders = {name: places[name] for name in ("model", "adapter") if places[name]}
        contents = {f"a {name} whose files are": contents_of(resolve(folder)) for name, folder in folders.items()}
        told = {name: getattr(self._how, name) for name in ("raw", "literal", "token_ids")}
        return {"backend": "seodang", **places, **contents, **told, "checkpoint_settings": self._decoding.checkpoint_settings, **self._decoding.written_down}

    def open(self, stack: ExitStack) -> None:
        """Load the model."""
        self._model, self.tokenizer = self._options.open()
        self._decoding.take_over(self._model)

    def answers(self, indices: Sequence[int], ordered: bool) -> Iterator[Any]:
        """The results of these prompts as they come; raises UserError, before anything is computed, for what cannot be honoured."""
        from seodang.infer.engine.generate import answers

        seeded = self._decoding.seed is not None
        params = [self._decoding.params(self._options, index) for index in (indices if seeded else indices[:1])]
        ahead = AHEAD * self._how.batch_size if ordered else None
        how = {"literal": self._how.literal, "max_rows": self._how.batch_size, "ahead": ahead}
        found = answers(self._model, self.tokenizer, [self._asked.prompts[index] for index in indices], params * (1 if seeded else len(indices)), **how)
        if len(indices) == len(self._asked.prompts):
            return found
        return (replace(result, prompt_index=indices[result.prompt_index]) for result in found)

    def spoken(self) -> Iterator[Any]:
        """The events of the answer to the only prompt there is."""
        from seodang.infer.engine.generate import stream

        return stream(self._model, self.tokenizer, self._asked.prompts[0], self._decoding.params(self._options), literal=self._how.literal)


class ServerBackend:
    """A server that speaks OpenAI's protocol."""

    tokenizer = None

    def __init__(self, where: BackendOptions, model: SpeakingModel, decoding: Decoding, options: Any, asked: Prompts):
        """Raises UserError for what no such server takes, and for what only one of Seodang's would, unless it is one."""
        from seodang.infer.remote.connection import Server, library
        from seodang.infer.remote.fields import refuse_functions

        library()
        self._where, self._decoding, self._options, self._asked, self._name = where, decoding, options, asked, model.model
        self.params = decoding.alone()
        refuse_functions(self.params)
        self._server = Server(where.base_url, where.key, where.seconds, where.retries)
        self._model = None
        if self._name == "default":  # what it is called decides whether a run is the same
            self._look()
        else:
            self._refuse_unless_seodang()

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers; not where the server is, which may move."""
        told = {name: getattr(self._options, name) for name in ("raw", "token_ids")}
        return {"backend": "openai", "model": self._name, **told, **self._decoding.written_down}

    def open(self, stack: ExitStack) -> None:
        """Find the model there."""
        if self._model is None:
            self._look()
        if self._server.api_key and self._server.base_url.startswith("http:") and not self._server.is_near:
            print(f"warning: {self._server.base_url} is not encrypted: whoever is on the way can read the key", file=sys.stderr)
        settings = ", ".join(f"{name} {value}" for name, value in (self._model.defaults or {}).items())
        print(f"{self._name} at {self._server.base_url}; where no option says otherwise, the server's own settings hold{settings and f': {settings}'}", file=sys.stderr)

    def answers(self, indices: Sequence[int], ordered: bool) -> Iterator[Any]:
        """The results of these prompts as they come."""
        return asked_of(self._server, self._name, self._fields(self._model.seodang), self.params, indices, self._asked, self._options, self._where.at_a_time, ordered)

    def _look(self) -> None:
        from seodang.infer.remote.models import model_at

        self._model = model_at(self._server, self._name)
        self._name = self._model.name
        self._fields(self._model.seodang)

    def _refuse_unless_seodang(self) -> None:
        from seodang.data.errors import UserError

        try:
            self._fields(seodang=False)
        except UserError:
            self._look()

    def _fields(self, seodang: bool) -> dict[str, Any]:
        from seodang.infer.remote.fields import fields_of

        return fields_of(self.params, not self._options.raw, seodang=seodang, token_ids=self._options.token_ids)


class VllmBackend:
    """vLLM, started here in an interpreter that has it, and asked as a server."""

    tokenizer = None

    def __init__(self, where: BackendOptions, model: SpeakingModel, decoding: Decoding, options: Any, asked: Prompts):
        """Raises UserError for settings that vLLM does not have, and for an interpreter without it."""
        from seodang.infer.remote.connection import library
        from seodang.infer.remote.fields import fields_of
        from seodang.infer.remote.vllm import check_interpreter

        library()
        self._where, self._loaded, self._decoding, self._options, self._asked = where, model, decoding, options, asked
        decoding.check(model)
        self.params = decoding.beforehand(model)
        self._fields = fields_of(self.params, not options.raw, token_ids=options.token_ids, explicit=True)
        check_interpreter(where.interpreter, where.vllm_args)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers."""
        from seodang.infer.checkpoint.load import resolve

        told = {name: getattr(self._options, name) for name in ("raw", "token_ids")}
        contents = {"a model whose files are": contents_of(resolve(self._loaded.model))}
        where = {"model": self._loaded.model, "dtype": self._loaded.dtype, "the fingerprint of vllm_args": fingerprint(self._where.vllm_args), **contents}
        return {"backend": "vllm", **where, **told, "checkpoint_settings": self._decoding.checkpoint_settings, **self._decoding.written_down}

    def open(self, stack: ExitStack) -> None:
        """Start it, and wait until it answers."""
        from seodang.infer.checkpoint.load import resolve
        from seodang.infer.remote.vllm import vllm_server, words_of

        arguments = ["--dtype", self._loaded.dtype, *words_of(self._where.vllm_args)]
        how = {"seconds": self._where.seconds, "retries": self._where.retries}
        print(f"starting vLLM with {self._loaded.model}, which takes a while", file=sys.stderr)
        self._server = stack.enter_context(vllm_server(self._where.interpreter, resolve(self._loaded.model), self._loaded.model, arguments, **how))

    def answers(self, indices: Sequence[int], ordered: bool) -> Iterator[Any]:
        """The results of these prompts as they come."""
        return asked_of(self._server, self._loaded.model, self._fields, self.params, indices, self._asked, self._options, self._where.at_a_time, ordered)


def asked_of(
    server: Any, name: str, fields: dict[str, Any], params: SamplingParams, indices: Sequence[int], asked: Prompts, options: Any, at_a_time: int, ordered: bool
) -> Iterator[Any]:
    """Ask a server these prompts, chats or texts, each with a seed of its own where one is given."""
    from seodang.infer.remote.asking import Asking, Question

    path, key = ("/completions", "prompt") if options.raw else ("/chat/completions", "messages")

    def question(index: int) -> Question:
        own = params if params.seed is None else replace(params, seed=params.seed + index)
        body = {"model": name, key: asked.prompts[index], **fields, **({} if own.seed is None else {"seed": own.seed})}
        return Question(index, path, body, own, options.token_ids)

    return Asking(server, question, indices, at_a_time, AHEAD * at_a_time if ordered else None)


def backend_for(where: BackendOptions, model: SpeakingModel, decoding: Decoding, options: Any, asked: Prompts) -> OwnBackend | ServerBackend | VllmBackend:
    """Return who answers; raises UserError for options that it has no use for, or cannot honour."""
    where.refuse_idle()
    if where.backend == "seodang":
        return OwnBackend(model, decoding, options, asked)
    return (VllmBackend if where.backend == "vllm" else ServerBackend)(where, model, decoding, options, asked)
