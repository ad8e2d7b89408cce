"""Serve a model over HTTP, in OpenAI's protocol; an encoder for its vectors, a classifier for what it says of texts.

seodang serve MODEL --port 8000
seodang serve default-encoder
seodang serve runs/classify

Any number of clients share the passes of one engine. Ctrl-C and SIGTERM let answers in hand end (20 seconds at most) and refuse new ones.
"""

import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seodang.data.errors import UserError
from seodang.recipes.options.decoding import SpeakingModel, option
from seodang.recipes.options.parser import command, parse
from seodang.recipes.run.stopping import Stopping

GIB = 1 << 30
KEYS = "SEODANG_API_KEY"  # several are parted by commas or blanks
OF_SPEAKERS = ("adapter", "weights", "kv_cache_dtype", "chat_template")  # options that mean nothing to an encoder
COMPLETIONS = "/v1/completions", {"prompt": "The three primary colours are", "max_tokens": 16, "temperature": 0, "stream": True}
CHAT = "/v1/chat/completions", {"messages": [{"role": "user", "content": "Name three colours."}], "max_tokens": 16, "temperature": 0, "stream": True}
EMBEDDINGS = "/v1/embeddings", {"input": ["a cat", "a kitten"]}
CLASSES = "/v1/classify", {"input": ["a fine film", "a dull one"]}
TEMPLATE_KWARGS = ("enable_thinking", "thinking", "reasoning_effort")


@dataclass
class Serve:
    """Where the model is served, and how much at a time."""

    host: str = option("Address to serve at; 0.0.0.0 for every one of this machine.", "127.0.0.1")
    port: int = option("Port to serve at; 0 for any that is free.", 8000)
    served_model_name: str | None = option("What clients call the model; without, what it is called here.")
    adapters: list[str] = field(
        default_factory=list, metadata={"help": "LoRA adapters over the model, each NAME=FOLDER: requests for the model NAME are answered with it."}
    )
    adapter_folder: str | None = option("Let clients load adapters from folders below this one (/v1/load_lora_adapter); without, none can.")
    max_rows: int = option("Answers that grow at the same time; the others wait.", 64)
    max_waiting: int = option("Requests that may wait; further ones are told to come again (429).", 1024)
    request_seconds: float = option("Seconds that a request may take from when it comes until its answer is whole, waiting included (then 408).", 600.0)
    api_key: list[str] = field(
        default_factory=list,
        metadata={"help": f"Keys, of which clients must send one (Authorization: Bearer KEY); also from {KEYS}, which no list of processes shows."},
    )
    allowed_hosts: list[str] = field(
        default_factory=list, metadata={"help": "Names by which clients may call the server, beside localhost; without a key a loopback address takes no others."}
    )
    cache_gib: float | None = option("Memory for the KV cache in GiB; without, half of what is free at the start.")
    answer_tokens: int | None = option("Most tokens of an answer where neither client nor checkpoint says how many: 1024, by diffusion 128.")
    template_kwargs: list[str] = field(
        default_factory=lambda: list(TEMPLATE_KWARGS), metadata={"help": "Variables of the chat template that clients may set (chat_template_kwargs)."}
    )
    lenient: bool = option("Ignore fields that are unknown or would have no effect, where they are refused elsewhere.", False)
    checkpoint_settings: bool = option("The checkpoint's generation_config gives the defaults.", True)
    reuse_prefixes: bool = option("Keep what was read, for prompts that begin alike (cache_salt keeps users apart).", True)

    def __post_init__(self):
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"port must be in [0, 65535], got {self.port}")
        for name in ("max_rows", "max_waiting", "answer_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if wrong := [each for each in self.adapters if not all(each.partition("=")[::2])]:
            raise UserError(f"adapters must be NAME=FOLDER each, got {wrong[0]!r}")
        if self.adapter_folder is not None and not Path(self.adapter_folder).is_dir():
            raise UserError(f"adapter_folder {self.adapter_folder} is no folder: make it, or name another")
        if not 0 < self.request_seconds < float("inf"):
            raise UserError(f"request_seconds must be above 0, got {self.request_seconds}")
        if self.cache_gib is not None and not 0 < self.cache_gib < float("inf"):
            raise UserError(f"cache_gib must be above 0, got {self.cache_gib}")


@command
def main(argv: list[str] | None = None) -> int:
    model_options, options = parse(argv, SpeakingModel, Serve, prog="seodang serve", positional=("model",), description=__doc__)
    refuse_without_libraries()
    from seodang.infer.encoders.live import LiveEncoder
    from seodang.infer.encoders.live_classifier import LiveClassifier
    from seodang.infer.server.guard.access import is_loopback
    from seodang.infer.server.guard.memory import few_arenas
    from seodang.infer.server.run import address_of, bound, serve

    few_arenas()
    with bound(options.host, options.port) as listening, Stopping():  # what is taken is said before the model is loaded
        access = access_of(options, is_loopback(listening.getsockname()[0]))
        name = options.served_model_name or model_options.model
        with (live_encoder if reads_texts(model_options.model) else live_engine)(model_options, options) as engine:
            served = served_encoder(engine, name, options) if isinstance(engine, LiveEncoder) else served_engine(engine, name, options)
            model_options.say(engine.runtime)
            listening.listen(2048)  # whoever reads the next lines may connect
            print(f"{engine.describe()}\n{served.describe()}")
            address = address_of(listening)
            texts = CLASSES if isinstance(engine, LiveClassifier) else EMBEDDINGS if isinstance(engine, LiveEncoder) else None
            ask = texts or (CHAT if engine.tokenizer.chat_template else COMPLETIONS)
            print(f"serving {name} at {address} (Ctrl-C ends it); try\n{example(address, name, ask)}", flush=True)
            serve(served, listening, access, options.request_seconds)
    return 0


def reads_texts(model: str) -> bool:
    """Whether a model is an encoder or a classifier, which answer nothing; what is wrong with it is told when it is loaded."""
    from seodang.infer.encoders.classify import is_classifier
    from seodang.infer.encoders.embedding import makes_vectors

    try:
        return is_classifier(model) or makes_vectors(model)
    except UserError:
        return False


def live_engine(model_options: SpeakingModel, options: Serve) -> Any:
    """The engine of a model that speaks, with its adapters."""
    from seodang.infer.engine.live import LiveEngine

    model, tokenizer = model_options.open()
    cache_bytes = None if options.cache_gib is None else int(options.cache_gib * GIB)
    how = {"max_rows": options.max_rows, "max_waiting": options.max_waiting, "reuse_prefixes": options.reuse_prefixes}
    engine = LiveEngine(model, tokenizer, cache_bytes=cache_bytes, **how)
    if options.reuse_prefixes and engine.prefix_cache is None:
        print(f"a {model.config.model_type} model cannot go on from another's beginning: prefixes are not reused", file=sys.stderr)
    try:
        for adapter, _, folder in (each.partition("=") for each in options.adapters):
            if adapter == (options.served_model_name or model_options.model):
                raise UserError(f"the adapter {adapter!r} has the name of the model: give it another, or a served_model_name")
            engine.load_adapter(adapter, folder)
    except BaseException:
        engine.close()
        raise
    return engine


def live_encoder(model_options: SpeakingModel, options: Serve) -> Any:
    """The engine of an encoder or of a classifier. Raises UserError for options of a model that speaks."""
    from seodang.infer.checkpoint.load import load
    from seodang.infer.encoders.classify import Classifier, is_classifier
    from seodang.infer.encoders.embedding import SentenceEncoder
    from seodang.infer.encoders.live import LiveEncoder
    from seodang.infer.encoders.live_classifier import LiveClassifier

    classifies = is_classifier(model_options.model)
    given = {**{name: getattr(model_options, name) for name in OF_SPEAKERS}, "adapters": options.adapters, "adapter_folder": options.adapter_folder}
    for name, value in given.items():
        if value:
            raise UserError(f"{name} is for models that speak, and {model_options.model} is {'a classifier' if classifies else 'an encoder'}: leave it out")
    where = {"device": model_options.device, "dtype": model_options.dtype}
    room = {"max_rows": options.max_rows, "max_waiting": options.max_waiting}
    if classifies:
        return LiveClassifier(Classifier(*load(model_options.model, **where)), **room)
    return LiveEncoder(SentenceEncoder.open(model_options.model, **where), **room)


def served_engine(engine: Any, name: str, options: Serve) -> Any:
    """A model that speaks, with what its operator allows."""
    from seodang.infer.server.served import Served

    names = ("answer_tokens", "lenient", "checkpoint_settings")
    folder = None if options.adapter_folder is None else Path(options.adapter_folder)
    how = {"template_kwargs": tuple(options.template_kwargs), "adapter_folder": folder, **{each: getattr(options, each) for each in names}}
    return Served(engine, name, **how)


def served_encoder(engine: Any, name: str, options: Serve) -> Any:
    """An encoder or a classifier, with what its operator allows."""
    from seodang.infer.encoders.live_classifier import LiveClassifier
    from seodang.infer.server.served import ServedClassifier, ServedEncoder

    return (ServedClassifier if isinstance(engine, LiveClassifier) else ServedEncoder)(engine, name, lenient=options.lenient)


def access_of(options: Serve, alone: bool) -> Any:
    """Return who may ask; `alone`: the address is one of this machine alone. Where everybody may from elsewhere, a line on stderr says so."""
    from seodang.infer.server.guard.access import Access

    keys = (*options.api_key, *filter(None, re.split(r"[,\s]+", os.environ.get(KEYS, ""))))
    if not (keys or alone):
        print(f"warning: whoever reaches {options.host} may ask this server: give --api_key, or serve at 127.0.0.1", file=sys.stderr)
    return Access(keys, tuple(options.allowed_hosts) if options.allowed_hosts or alone and not keys else None)


def refuse_without_libraries() -> None:
    """Raise UserError, with the remedy, where what serves is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"serving needs {error.name}, which is not installed: pip install 'seodang[serve]'") from None


def example(address: str, name: str, ask: tuple[str, dict[str, Any]] = COMPLETIONS) -> str:
    """A command that asks the server something: a path, and the body for it."""
    path, body = ask
    quoted = json.dumps({"model": name, **body}, ensure_ascii=False).replace("'", "'\\''")
    return f"curl -N {address}{path} -H 'Content-Type: application/json' -d '{quoted}'"


if __name__ == "__main__":
    sys.exit(main())
