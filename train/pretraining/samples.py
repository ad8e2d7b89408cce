"""Texts that a model writes while it is trained, to be looked at."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...infer import SamplingParams, generate


@dataclass
class TextSampler:
    """Continue some beginnings, each by every strategy, known by its name; call it with a model, `show` gets name, beginning and what was written.

    A beginning is a text, encoded as `generate` encodes a prompt, or ids. With a seed, which counts on from beginning to beginning, each draws the same at
    every call, so that what changes is the model. The last texts stay in `texts`: of each beginning one a strategy, by its name.
    """

    tokenizer: PreTrainedTokenizerBase
    beginnings: Sequence[str | list[int]]
    strategies: Mapping[str, SamplingParams]
    show: Callable[[str, str, str], None] | None = None
    texts: list[dict[str, str]] = field(default_factory=list)

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        seeded = lambda params, more: params if params.seed is None else replace(params, seed=params.seed + more)
        pairs = [(beginning, seeded(params, i)) for i, beginning in enumerate(self.beginnings) for params in self.strategies.values()]
        results = iter(generate(model, self.tokenizer, [beginning for beginning, _ in pairs], [params for _, params in pairs], on_error="raise"))
        self.texts = [{name: next(results).text for name in self.strategies} for _ in self.beginnings]
        for beginning, texts in zip(self.beginnings, self.texts, strict=True):
            begun = beginning if isinstance(beginning, str) else self.tokenizer.decode(beginning, skip_special_tokens=True)
            for name, text in texts.items():
                if self.show is not None:
                    self.show(name, begun, text)
        return {}
