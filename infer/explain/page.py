"""A traced answer as one self-contained page, drawn from the same events as in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp
from pathlib import Path

from markupsafe import Markup
from torch import Tensor

from ...data.html_template import html_template
from ..requests.events import Result
from ..requests.trace import CANDIDATES, ChoiceTrace
from ..text.token_labels import TokenLabels
from .beam_tree import beam_tree
from .drawings import attention_drawing, beam_drawing, thumbnail, timing_chart
from .generation_trace import GenerationTrace, Step
from .terminal import chance, cost, leaving, times, title_of

TEMPLATE = Path(__file__).with_name("page.html")
SHOWN_WEIGHTS = 200  # positions up to which the page tells the weight under the pointer


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
    def shown_weights(self) -> list[list[int]] | None:
        """A row of thousandths for each token, up to itself; None where there are too many to tell."""
        if len(self.tokens) > SHOWN_WEIGHTS:
            return None
        return [[round(1000 * each) for each in row[: place + 1]] for place, row in enumerate(self.weights.tolist())]

    @property
    def drawing(self) -> Markup:
        """The heat map as SVG."""
        return Markup(attention_drawing(self.weights, self.tokens, self.prompt, self.title))

    @property
    def thumbnails(self) -> list[tuple[str, Markup]]:
        """The name and the picture of every head."""
        return [(f"head {number}", Markup(thumbnail(head, f"head {number}"))) for number, head in enumerate(self.heads)]


def to_html(generation_trace: GenerationTrace, names: TokenLabels, prompt_ids: Sequence[int], prompt: str, picture: Picture | None = None) -> str:
    """Return a page with the answers, every token's stages, time, beams, drafts, layers and attention.

    `prompt_ids` are the ids that the model read, `prompt` the text as it was typed. The page loads nothing, follows the reader's light or dark
    theme, can be read without scripts, and all text is escaped.
    """
    results = [result for result, _ in generation_trace.answers]
    return html_template(TEMPLATE, chance=chance).render(
        title=prompt if len(prompt) <= 60 else prompt[:59] + "…",
        prompt=prompt,
        prompt_names=[(id, names(id)) for id in prompt_ids],
        answers=[answer(result, steps, names, len(results)) for result, steps in generation_trace.answers],
        beam_drawing=Markup(beam_drawing(beam_tree(generation_trace.beams, results), names)) if generation_trace.beams else None,
        finished=list(finished_scores(generation_trace)),
        drafts=drafts(generation_trace, names),
        layers=layers(generation_trace, names),
        times=times(generation_trace).plain,
        timing_chart=Markup(timing_chart(generation_trace)),
        picture=picture,
    )


def answer(result: Result, steps: Sequence[Step], names: TokenLabels, count: int) -> dict:
    """What the page tells of one of `count` answers: how it ended, its tokens, and what each was chosen from."""
    facts = [f"{len(result.ids)} tokens", f"ended by {result.finish_reason}", f"seed {result.seed}"]
    facts += [] if result.score is None else [f"score {result.score:.4f}"]
    return {
        "key": f"a{result.choice}",
        "heading": "Answer" if count == 1 else f"Answer {result.choice + 1} of {count}",
        "facts": ", ".join(facts),
        "text": result.text,
        "steps": [shown_step(step, names) for step in steps],
    }


def shown_step(step: Step, names: TokenLabels) -> dict:
    """A token with its probability, and, where something was observed, what it was chosen from, stage by stage."""
    facts = []
    if step.filtered is not None:
        facts = [f"p {chance(step.filtered.probability)}", f"entropy {abs(step.filtered.entropy):.2f} nats"]
    facts += [cost(step.passes)] if step.passes else []
    return {
        "position": step.position,
        "id": step.id,
        "name": names(step.id),
        "probability": step.filtered.probability if step.filtered else exp(step.logprob),
        "has_story": bool(step.filtered or step.contrast or step.layer),
        "title": title_of(step, names),
        "facts": ", ".join(facts),
        "stages": list(stages(step.filtered, names)) if step.filtered else [],
        "layer": step.layer,
        "contrast": [(names(id), id == step.id, *terms) for id, *terms in step.contrast.candidates] if step.contrast else [],
    }


def stages(filtered: ChoiceTrace, names: TokenLabels) -> Iterator[tuple[str, list[tuple[str, float, str]]]]:
    """For the model's distribution and after each filter: its name, and its likeliest tokens with their probability and what became of them."""
    found = filtered.stages
    for place, (name, candidates) in enumerate(found):
        shown = list(candidates)
        if place + 1 == len(found) and filtered.id not in (id for id, _ in shown):
            shown = [*shown[: CANDIDATES - 1], (filtered.id, filtered.probability)]
        yield name, [(names(id), p, "chosen" if id == filtered.id else leaving(id, found, place) or "") for id, p in shown]


def finished_scores(generation_trace: GenerationTrace) -> Iterator[tuple[int, tuple[float, ...]]]:
    """The position and the scores of the finished beams, wherever they changed."""
    before: tuple[float, ...] = ()
    for position, record in generation_trace.beams:
        if record.finished != before:
            yield position, record.finished
            before = record.finished


def drafts(generation_trace: GenerationTrace, names: TokenLabels) -> dict | None:
    """Each draft with its accepted and rejected tokens, and how many there were; None without drafts."""
    if not generation_trace.drafts:
        return None
    several = len(generation_trace.answers) > 1
    rows = [
        (f"{choice + 1}.{position}" if several else str(position), draft.accepted, [names(id) for id in draft.ids])
        for position, choice, draft in generation_trace.drafts
    ]
    said, kept = sum(len(tokens) for *_, tokens in rows), sum(accepted for _, accepted, _ in rows)
    tokens = sum(len(steps) for _, steps in generation_trace.answers)
    return {"rows": rows, "said": said, "kept": kept, "share": f"{kept / said:.0%}", "tokens": tokens, "passes": len(generation_trace.passes)}


def layers(generation_trace: GenerationTrace, names: TokenLabels) -> dict | None:
    """For each token the candidate layers' divergences from the last, and the greatest of all; None where no layers were contrasted."""
    shown = [(names(step.id), step.layer) for _, steps in generation_trace.answers for step in steps if step.layer]
    if not shown:
        return None
    most = max(each for _, layer in shown for _, each in layer.divergences) or 1.0
    return {"candidates": [number for number, _ in shown[0][1].divergences], "tokens": shown, "most": most}
