"""Options that say who answers: this process, vLLM in one of its own, or a server."""

import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar

from seodang.data.errors import UserError
from seodang.recipes.options.decoding import option

BACKENDS = ("seodang", "vllm", "openai")
KEY = "OPENAI_API_KEY"
# the options that some of them alone have a use for
OWN = {
    "seodang": ("batch_size", "literal", "weights", "kv_cache_dtype", "adapter", "chat_template", "device", "verbose", "assistant_model", "amateur_model", "max_source_length", "source_prefix"),
    "openai": ("base_url", "answered_by", "api_key", "concurrency", "retries", "request_timeout"),
    "vllm": ("concurrency", "retries", "request_timeout", "vllm_python", "vllm_args"),
}
SHARED = {"dtype": ("seodang", "vllm"), "checkpoint_settings": ("seodang", "vllm")}
AHEAD = 16  # times as many as are answered at a time may be answered before the first is, where answers wait for their place
AT_A_TIME = {"openai": 32, "vllm": 256}
SECONDS = {"openai": 600.0, "vllm": None}  # what was asked of vLLM may wait long for its turn, and who started it sees whether it lives


@dataclass
class BackendOptions:
    """Who answers, and how it is asked."""

    given: ClassVar[Collection[str]] = ()  # the options that were written down, set where they are parsed
    named: ClassVar[str] = "--backend"  # the option that says who answers
    backends: ClassVar[tuple[str, ...]] = BACKENDS

    backend: str = option("seodang (this process), vllm (in its own) or openai (a server).", "seodang")
    base_url: str | None = option("Where the server is, as http://localhost:8000/v1. MODEL is its name there, default where it has but one.")
    answered_by: str | None = option("What the server calls the model in its answers, where that is another name than MODEL.")
    api_key: str | None = field(default=None, repr=False, metadata={"help": f"The server's key; else from {KEY}, which no list of processes shows."})
    concurrency: int | None = option("Prompts that a server is asked at the same time; 32 of openai, 256 of vllm.")
    retries: int = option("Times that a prompt is asked again (429, 5xx, connections, time-outs), later and later, as the server says.", 6)
    request_timeout: float | None = option("Seconds that an answer may take; 600 of openai, any number of vllm.")
    vllm_python: str | None = option("The interpreter of the environment that has vLLM; this one, where it has.")
    vllm_args: str = option('What else `vllm serve` is told, as --vllm_args="--max-model-len 4096".', "")

    def __post_init__(self):
        if self.backend not in self.backends:
            raise UserError(f"backend must be {', '.join(self.backends[:-1])} or {self.backends[-1]}, got {self.backend!r}")
        if self.concurrency is not None and self.concurrency < 1:
            raise UserError(f"concurrency must be at least 1, got {self.concurrency}")
        if self.retries < 0:
            raise UserError(f"retries must be at least 0, got {self.retries}")
        if self.request_timeout is not None and not 0 < self.request_timeout < float("inf"):
            raise UserError(f"request_timeout must be above 0, got {self.request_timeout}")
        if self.backend == "openai" and not self.base_url:
            raise UserError("--backend openai needs the server's address: give --base_url, as http://localhost:8000/v1")

    def refuse_idle(self) -> None:
        """Raise UserError for an option that was given and that who answers has no use for."""
        users: dict[str, tuple[str, ...]] = dict(SHARED)
        for backend, names in OWN.items():
            for name in names:
                users[name] = (*users.get(name, ()), backend)
        for name in sorted(self.given):
            if name in users and self.backend not in users[name]:
                raise UserError(f"--{name} is for {self.named} {' and '.join(users[name])}, and {self.backend} answers: leave it out, or give that {self.named}")

    @property
    def at_a_time(self) -> int:
        """How many prompts a server is asked at the same time."""
        return self.concurrency or AT_A_TIME[self.backend]

    @property
    def seconds(self) -> float | None:
        """How long an answer may take; None for as long as it does."""
        return self.request_timeout or SECONDS[self.backend]

    @property
    def key(self) -> str | None:
        """The server's key, None where there is none."""
        key = self.api_key or os.environ.get(KEY) or None
        return key.strip() if key else None

    @property
    def interpreter(self) -> str:
        """The Python that has vLLM."""
        return os.path.expanduser(self.vllm_python) if self.vllm_python else sys.executable
