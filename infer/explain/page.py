"""A traced answer as one self-contained page, which draws the same events as are told in the terminal; the chat page draws by the same script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...data.html_template import content_hash, embedded, html_template
from ..requests.events import Result
from ..text.token_labels import TokenLabels
from .trace_events import traced

WEB = Path(__file__).with_name("web")
LOOK_INSIDE = [WEB / f"{name}.js" for name in ("dom", "trace", "canvas", "charts", "token_strip", "overview")]  # which draws a trace
LOOK_INSIDE_STYLE = WEB / "look_inside.css"
SHOWN_WEIGHTS = 200  # positions up to which the page tells the weight under the pointer
LEVELS = 12  # shades of a heat map, a digit each
DIGITS = "0123456789abc"


@dataclass(frozen=True)
class Picture:
    """The attention of one layer, [heads, n, n], of one head or, with None, of their mean; of the n tokens the first `prompt` were given."""

    layer: int
    head: int | None
    heads: Tensor
    tokens: Sequence[str]
    prompt: int

    @cached_property
    def weights(self) -> Tensor:
        """What is drawn, [n, n], a row a query."""
        return self.heads.mean(dim=0) if self.head is None else self.heads[self.head]

    @property
    def title(self) -> str:
        """What the picture is called, for a heading and for those who do not see it."""
        of = f"the mean of {len(self.heads)} heads" if self.head is None else f"head {self.head}"
        return f"attention of layer {self.layer}, {of}"

    @property
    def data(self) -> dict[str, Any]:
        """What is drawn, as JSON: shades of the picture and of every head; where the tokens are few, the weights in thousandths too."""
        few = len(self.tokens) <= SHOWN_WEIGHTS
        weights = [[round(1000 * each) for each in row[: place + 1]] for place, row in enumerate(self.weights.tolist())] if few else None
        return {
            "title": self.title, "tokens": list(self.tokens), "prompt": self.prompt, "levels": LEVELS, "rows": shades(self.weights),
            "heads": [shades(head) for head in self.heads], "weights": weights,
        }  # fmt: skip


def shades(weights: Tensor) -> list[str]:
    """A digit for each weight of a map, [n, n], up to its own position: the shade grows with the square root of the weight.

    >>> shades(torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    ['c', '6a']
    """
    levels = (weights.clamp(0, 1).sqrt() * LEVELS).round().long().tolist()
    return ["".join(DIGITS[each] for each in row[: place + 1]) for place, row in enumerate(levels)]


def to_html(
    results: Sequence[Result], tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], prompt: str, picture: Picture | None = None
) -> str:
    """Return a page with all answers to one prompt, made with `trace=True`: every token's stages, entropy, beams, drafts, layers, time and attention.

    `prompt_ids` are the ids that the model read, `prompt` the text as it was typed. The page loads nothing, follows the reader's light or dark
    theme, tells the answers without scripts too, and all text is escaped.
    """
    script, style = embedded(*LOOK_INSIDE, WEB / "explain.js"), embedded(LOOK_INSIDE_STYLE, WEB / "explain.css")
    names = TokenLabels(tokenizer)
    return html_template(WEB / "explain.html.jinja").render(
        title=prompt if len(prompt) <= 60 else prompt[:59] + "…",
        prompt=prompt,
        prompt_names=[(id, names(id)) for id in prompt_ids],
        results=results,
        names=names,
        picture=picture,
        data={**events_of(results, tokenizer), "picture": picture and picture.data},
        script=script, style=style, script_hash=content_hash(script), style_hash=content_hash(style),
    )  # fmt: skip


def events_of(results: Sequence[Result], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What was observed, as a served answer's trace tells it, with the texts of all ids in one place."""
    events = [told for event in results[0].trace if (told := traced(tokenizer, 0, event))]
    texts: dict[str, str] = {}
    for event in events:
        texts |= event.pop("texts")
    return {"events": events, "texts": texts}
