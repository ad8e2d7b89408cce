"""Texts that a model writes while it is trained, to be looked at."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...infer import SamplingParams, generate


@dataclass
class TextSampler:
    """Continue some beginnings, each by every one of the strategies; call it with a model, `show` gets what it wrote.

    A beginning is a text, encoded as `generate` encodes a prompt, or ids. The same seed draws the same at each call, so that what changes is the model. The
    last texts stay in `texts`, [beginnings] lists of one a strategy.
    """

    tokenizer: PreTrainedTokenizerBase
    beginnings: Sequence[str | list[int]]
    params: Sequence[SamplingParams]
    show: Callable[[str, SamplingParams, str], None] | None = None
    texts: list[list[str]] = field(default_factory=list)

    def __call__(self, model: PreTrainedModel) -> dict[str, float]:
        pairs = [(beginning, params) for beginning in self.beginnings for params in self.params]
        results = generate(model, self.tokenizer, [beginning for beginning, _ in pairs], [params for _, params in pairs], on_error="raise")
        written = [result.text for result in results]
        self.texts = [written[i : i + len(self.params)] for i in range(0, len(written), len(self.params))]
        for (beginning, params), text in zip(pairs, written, strict=True):
            if self.show is not None:
                self.show(beginning if isinstance(beginning, str) else self.tokenizer.decode(beginning, skip_special_tokens=True), params, text)
        return {}
