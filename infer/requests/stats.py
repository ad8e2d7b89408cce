"""What an answer took, and what computed it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Runtime:
    """What computes a model's passes.

    `runner`: "native" (steps of few tokens in one call of C, the others as direct), "direct" (layer by layer over the model's weights), "ragged" (the
    model's own modules, answers laid end to end), "padded", "stateful", "recurrent", "recomputing", or whatever a runner of another's is called.
    `kernel`: of native steps what they were compiled for ("AVX512-BF16 and VNNI", "AVX2", "NEON"), else torch with what it uses of the CPU
    ("torch AVX512"), or its device ("torch cuda"). `weights`: their dtype ("float32"), or "int8" and "int4" where linear layers are kept so.
    `threads` compute on the CPU. `kv_cache_dtype`: "int8" where keys and values are kept in 8 bits, else "auto", the model's own. `not_native` says in words what keeps a model on a CPU from native steps; None where it has them, or is elsewhere.
    """

    runner: str
    kernel: str
    weights: str
    threads: int
    not_native: str | None = None
    kv_cache_dtype: str = "auto"

    def __str__(self) -> str:
        line = f"{self.runner} runner, {self.kernel}, {self.weights} weights, {'' if self.kv_cache_dtype == 'auto' else f'{self.kv_cache_dtype} KV cache, '}{self.threads} thread{'s' * (self.threads != 1)}"
        return line if self.not_native is None else f"{line}; not native: {self.not_native}"


@dataclass(frozen=True)
class Stats:
    """What an answer took: tokens of its prompt (of an encoder-decoder, of its source) and its own, an end token included.

    `seconds` go from when the request was let in, its waiting not counted, to the answer's end; None where it was not let in before it ended.
    `runtime` is what computed the last of it; None where no engine did.
    """

    prompt_tokens: int
    new_tokens: int
    seconds: float | None = None
    runtime: Runtime | None = None
