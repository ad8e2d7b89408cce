"""Servers that answer a command's prompts: one that is there, or vLLM, started here in an interpreter that has it."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import replace
from typing import Any

from seodang.data.errors import UserError
from seodang.infer import SamplingParams
from seodang.infer.checkpoint.load import is_adapter, resolve
from seodang.infer.checkpoint.manifest import fingerprint
from seodang.infer.engine.checkpoint_settings import diffusion_in
from seodang.infer.remote.answers import one_line
from seodang.infer.remote.asking import Asking, Question
from seodang.infer.remote.connection import Server, library
from seodang.infer.remote.fields import fields_of, refuse_functions, response_format
from seodang.infer.remote.models import Found, model_at
from seodang.infer.remote.vllm import check_interpreter, vllm_server, words_of
from seodang.recipes.options.backend import AHEAD, BackendOptions
from seodang.recipes.options.decoding import Decoding, SpeakingModel
from seodang.recipes.prompts.prompt_files import Prompts
from seodang.recipes.run.same_run import contents_of


class ServerBackend:
    """A server that speaks OpenAI's protocol."""

    tokenizer = None

    def __init__(self, where: BackendOptions, model: SpeakingModel, decoding: Decoding, options: Any, asked: Prompts):
        """Raises UserError for what no such server takes, and for what only one of Seodang's would, unless it is one."""
        library()
        self._where, self._decoding, self._options, self._asked, self._name = where, decoding, options, asked, model.model
        self.params = decoding.alone()
        refuse_functions(self.params)
        self._server = Server(where.base_url, where.key, where.seconds, where.retries, answered_by=where.answered_by)
        self._model: Found | None = None
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
        settings = one_line(", ".join(f"{name} {value}" for name, value in (self._model.defaults or {}).items()))
        print(f"{one_line(self._name)} at {self._server.base_url}; where no option says otherwise, the server's own settings hold{settings and f': {settings}'}", file=sys.stderr)

    def again(self, decoding: Decoding, asked: Prompts) -> "ServerBackend":
        """The same server for other prompts, by other settings perhaps."""
        other = copy(self)
        other._decoding, other.params, other._asked = decoding, decoding.alone(), asked
        return other

    def answers(self, indices: Sequence[int], ordered: bool) -> Iterator[Any]:
        """The results of these prompts as they come."""
        return asked_of(self._server, self._name, self._fields(self._model.seodang), self.params, indices, self._asked, self._options, self._where.at_a_time, ordered)

    def _look(self) -> None:
        self._model = model_at(self._server, self._name)
        self._name = self._model.name
        self._fields(self._model.seodang)

    def _refuse_unless_seodang(self) -> None:
        try:
            self._fields(seodang=False)
        except UserError:
            self._look()

    def _fields(self, seodang: bool) -> dict[str, Any]:
        return fields_of(self.params, not self._options.raw, seodang=seodang, token_ids=self._options.token_ids)


class VllmBackend:
    """vLLM, started here in an interpreter that has it, and asked as a server."""

    tokenizer = None

    def __init__(self, where: BackendOptions, model: SpeakingModel, decoding: Decoding, options: Any, asked: Prompts):
        """Raises UserError for settings and models that vLLM does not have, and for an interpreter without it."""
        library()
        if is_adapter(model.model):
            raise UserError(f"{model.model} is an adapter, and vLLM is started with whole models: merge it, `seodang export {model.model} FOLDER`, and name the folder")
        if (diffusion := diffusion_in(model.model)) is not None and not diffusion.autoregressive:
            raise UserError(f"{model.model} speaks by filling in masks, which vLLM does not: answer with --backend seodang")
        self._where, self._loaded, self._decoding, self._options, self._asked = where, model, decoding, options, asked
        decoding.check(model)
        self.params = decoding.beforehand(model)
        self._fields = fields_of(self.params, not options.raw, token_ids=options.token_ids, explicit=True)
        check_interpreter(where.interpreter, where.vllm_args)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers."""
        told = {name: getattr(self._options, name) for name in ("raw", "token_ids")}
        contents = {"a model whose files are": contents_of(resolve(self._loaded.model))}
        where = {"model": self._loaded.model, "dtype": self._loaded.dtype, "the fingerprint of vllm_args": fingerprint(self._where.vllm_args), **contents}
        return {"backend": "vllm", **where, **told, "checkpoint_settings": self._decoding.checkpoint_settings, **self._decoding.written_down}

    def open(self, stack: ExitStack) -> None:
        """Start it, and wait until it answers."""
        arguments = ["--dtype", self._loaded.dtype, *words_of(self._where.vllm_args)]
        how = {"seconds": self._where.seconds, "retries": self._where.retries}
        print(f"starting vLLM with {self._loaded.model}, which takes a while", file=sys.stderr)
        self._server = stack.enter_context(vllm_server(self._where.interpreter, resolve(self._loaded.model), self._loaded.model, arguments, **how))

    def again(self, decoding: Decoding, asked: Prompts) -> "VllmBackend":
        """The same vLLM for other prompts, by other settings perhaps."""
        other = copy(self)
        other._decoding, other.params, other._asked = decoding, decoding.beforehand(self._loaded), asked
        other._fields = fields_of(other.params, not self._options.raw, token_ids=self._options.token_ids, explicit=True)
        return other

    def answers(self, indices: Sequence[int], ordered: bool) -> Iterator[Any]:
        """The results of these prompts as they come."""
        return asked_of(self._server, self._loaded.model, self._fields, self.params, indices, self._asked, self._options, self._where.at_a_time, ordered)


def asked_of(
    server: Any, name: str, fields: dict[str, Any], params: SamplingParams, indices: Sequence[int], asked: Prompts, options: Any, at_a_time: int, ordered: bool
) -> Iterator[Any]:
    """Ask a server these prompts, chats or texts, each with a seed of its own where one is given."""
    path, key = ("/completions", "prompt") if options.raw else ("/chat/completions", "messages")

    def question(index: int) -> Question:
        own = params if params.seed is None else replace(params, seed=params.seed + index)
        body = {"model": name, key: asked.prompts[index], **fields, **({} if own.seed is None else {"seed": own.seed})}
        if (schema := asked.schemas.get(index)) is not None:
            own, body = replace(own, json_schema=schema), {**body, "response_format": response_format(schema)}
        return Question(index, path, body, own, options.token_ids)

    resumed = len(indices) < sum(prompt is not None for prompt in asked.prompts)  # prompts may follow from answers; those that it refused are left, perhaps, and these alone say nothing of it
    return Asking(server, question, indices, at_a_time, AHEAD * at_a_time if ordered else None, trusted=resumed)
