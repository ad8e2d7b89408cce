"""Options of `seodang generate` that say who answers, many workers among them."""

from dataclasses import dataclass, fields
from typing import ClassVar

from seodang.data.errors import UserError
from seodang.recipes.options.backend import BACKENDS, BackendOptions
from seodang.recipes.options.decoding import option

MANY = ("workers", "shard_rows", "ray_address", "ray_engine", "worker_cpus", "worker_gpus")
SHARD_ROWS = 256
MOST = 1_000_000_000  # workers, and prompts of a shard
LEAST = 0.0001  # of a core or a GPU: what Ray counts by


@dataclass
class AnsweringOptions(BackendOptions):
    """Who answers, and how it is asked."""

    backends: ClassVar[tuple[str, ...]] = (*BACKENDS, "ray")

    backend: str = option("seodang (here), vllm, openai (a server) or ray (many workers).", "seodang")
    ray_engine: str = option("With --backend ray: who answers in each worker, seodang, vllm or openai.", "seodang")
    workers: int | None = option("With --backend ray: workers, each with the model; by default one a GPU, or one.")
    shard_rows: int = option("With --backend ray: prompts that a worker gets at a time, and that are answered again where it is lost.", SHARD_ROWS)
    ray_address: str | None = option("With --backend ray: a cluster's address, HOST:PORT or auto; without, Ray is started here.")
    worker_cpus: float | None = option("With --backend ray: cores a worker takes; by default its share of this machine, of a cluster 1.")
    worker_gpus: float | None = option("With --backend ray: GPUs a worker takes; by default 1 where there are any.")

    def __post_init__(self):
        super().__post_init__()
        if self.ray_engine not in BACKENDS:
            raise UserError(f"ray_engine must be {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}, got {self.ray_engine!r}")
        for name in ("workers", "shard_rows"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
            if value is not None and value > MOST:
                raise UserError(f"{name} must be at most {MOST:,}, got {value:,}")
        for name in ("worker_cpus", "worker_gpus"):
            if (value := getattr(self, name)) is not None and not 0 <= value < float("inf"):
                raise UserError(f"{name} must be at least 0, got {value}")
            if value is not None and (value > 1 and value != int(value) or 0 < value < LEAST):
                raise UserError(f"{name} must be a whole number, or a share of one from {LEAST} on, got {value}")
        if self.ray_address is not None and not self.ray_address.strip():
            raise UserError(f"ray_address must be HOST:PORT or auto, got {self.ray_address!r}")

    def refuse_idle(self) -> None:
        """Raise UserError as `BackendOptions` does, and for an option of many workers where one answers."""
        if idle := next((name for name in MANY if name in self.given and self.backend != "ray"), None):
            raise UserError(f"--{idle} is for --backend ray, and {self.backend} answers: leave it out, or give --backend ray")
        if self.backend != "ray":  # else who answers refuses what it has no use for
            super().refuse_idle()

    def engine(self) -> BackendOptions:
        """Who answers in each of many workers, and how it is asked."""
        told = {each.name: getattr(self, each.name) for each in fields(BackendOptions)}
        told |= {"backend": self.ray_engine, "api_key": self.key if self.ray_engine == "openai" else None}  # whose environment workers do not have
        engine = BackendOptions(**told)
        engine.given, engine.named = {*self.given} - {*MANY, "backend"}, "--ray_engine"
        return engine
