"""A traced answer as one self-contained page, drawn from the same events as in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from math import exp
from pathlib import Path

from torch import Tensor

from ..requests.events import Result
from ..requests.trace import CANDIDATES, ContrastTrace, ChoiceTrace, LayerTrace
from ..text.token_labels import TokenLabels
from .beam_tree import beam_tree
from .drawings import attention_drawing, beam_drawing, thumbnail, timing_chart
from .generation_trace import Step, GenerationTrace
from .terminal import chance, cost, leaving, times, title_of

LINE_END = "⏎"
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
        return self.heads.mean(dim=0) if self.head is None else self.heads[self.head]

    @property
    def title(self) -> str:
        of = f"the mean of {len(self.heads)} heads" if self.head is None else f"head {self.head}"
        return f"attention of layer {self.layer}, {of}"


def to_html(generation_trace: GenerationTrace, names: TokenLabels, prompt_ids: Sequence[int], prompt: str, picture: Picture | None = None) -> str:
    """A page with the answers, every token's stages, time, beams, drafts, layers and attention.

    It loads nothing, follows the reader's light or dark theme, can be read without scripts, and all text is escaped.
    """
    parts = [
        f'<p class="prompt">{escape(prompt)}</p>',
        f"<details><summary>The {len(prompt_ids)} ids that the model read</summary>{plain_strip(prompt_ids, names)}</details>",
        *(answer(result, steps, names, len(generation_trace.answers)) for result, steps in generation_trace.answers),
        beams(generation_trace, names),
        drafts(generation_trace, names),
        layers(generation_trace, names),
        f'<section><h2>Time</h2><p class="lines">{escape(times(generation_trace).plain)}</p><div class="wide">{timing_chart(generation_trace)}</div></section>',
        attention(picture) if picture else "",
    ]
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    title = prompt if len(prompt) <= 60 else prompt[:59] + "…"
    before, after = template.split("{{ body }}")
    return before.replace("{{ title }}", escape(title)) + "\n".join(filter(None, parts)) + after


def plain_strip(ids: Sequence[int], names: TokenLabels) -> str:
    tokens = (f'<span class="token" title="{id}">{escape(names(id))}</span>{broken(names(id))}' for id in ids)
    return f'<p class="strip">{"".join(tokens)}</p>'


def broken(name: str) -> str:
    """A line break after a token that has one."""
    return "<br>" if LINE_END in name else ""


def answer(result: Result, steps: Sequence[Step], names: TokenLabels, count: int) -> str:
    """An answer: its text, its tokens in the colour of their probability, and each token's story."""
    said = [f"{len(result.ids)} tokens", f"ended by {result.finish_reason}", f"seed {result.seed}"]
    said += [] if result.score is None else [f"score {result.score:.4f}"]
    heading = "Answer" if count == 1 else f"Answer {result.choice + 1} of {count}"
    shown = [step for step in steps if step.filtered or step.contrast or step.layer]
    key = f"a{result.choice}"
    links = "".join(token_link(step, names, key if step in shown else None) for step in steps)
    stories = "".join(step_story(step, names, key) for step in shown)
    hint = '<p class="legend"><span class="scale">unlikely</span> to <span class="scale sure">certain</span>'
    hint += '<span class="script">; point at a token, or use the arrow keys, to see what it was chosen from</span></p>' if shown else "</p>"
    return (
        f'<section class="answer"><h2>{heading} <small>{escape(", ".join(said))}</small></h2><p class="text">{escape(result.text)}</p>'
        f'{hint}<p class="strip" data-answer="{key}">{links}</p><div class="steps">{stories}</div></section>'
    )


def token_link(step: Step, names: TokenLabels, key: str | None) -> str:
    """A token of the strip, which leads to its story where it has one."""
    p = step.filtered.probability if step.filtered else exp(step.logprob)
    name = names(step.id)
    look = f'class="token" style="--p:{min(p, 1):.3f}" title="{step.id}: {chance(p)}"'
    tag = f'<a {look} href="#{key}t{step.position}">{escape(name)}</a>' if key else f"<span {look}>{escape(name)}</span>"
    return tag + broken(name)


def step_story(step: Step, names: TokenLabels, key: str) -> str:
    """What a token was chosen from, stage by stage."""
    facts = []
    if step.filtered is not None:
        facts = [f"p {chance(step.filtered.probability)}", f"entropy {abs(step.filtered.entropy):.2f} nats"]
    facts += [cost(step.passes)] if step.passes else []
    inner = layer_bars(step.layer) if step.layer else ""
    if step.filtered is not None:
        inner += f'<div class="stages">{"".join(stages(step.filtered, names))}</div>'
    inner += contrast_table(step.contrast, step.id, names) if step.contrast else ""
    title = f'<span class="place">{step.position}</span> <b>{escape(title_of(step, names))}</b> <small>{", ".join(facts)}</small>'
    return f'<details class="step" id="{key}t{step.position}"><summary>{title}</summary>{inner}</details>'


def stages(filtered: ChoiceTrace, names: TokenLabels) -> Iterator[str]:
    """A list of bars for the distribution of the model and after each filter."""
    found = filtered.stages
    for place, (name, candidates) in enumerate(found):
        shown = list(candidates)
        if place + 1 == len(found) and filtered.id not in (id for id, _ in shown):
            shown = [*shown[: CANDIDATES - 1], (filtered.id, filtered.probability)]
        rows = "".join(bar(names(id), p, chance(p), "chosen" if id == filtered.id else leaving(id, found, place) or "") for id, p in shown)
        yield f'<div class="stage"><h3>{escape(name)}</h3><table class="bars">{rows}</table></div>'


def bar(name: str, share: float, value: str, kind: str = "") -> str:
    box = f'<td class="bar"><span style="width:{100 * max(min(share, 1), 0):.1f}%"></span></td>'
    return f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{box}<td class="number">{value}</td></tr>'


def layer_bars(layer: LayerTrace) -> str:
    """The divergence of each candidate layer from the last, the chosen one marked."""
    most = max(each for _, each in layer.divergences) or 1.0
    rows = "".join(bar(f"layer {n}", each / most, f"{each:.4g}", "chosen" if n == layer.chosen else "") for n, each in layer.divergences)
    return f'<div class="stages"><div class="stage"><h3>divergence from the last layer</h3><table class="bars">{rows}</table></div></div>'


def contrast_table(contrast: ContrastTrace, id: int, names: TokenLabels) -> str:
    """The candidates of contrastive search with both terms."""
    head = "".join(f'<th scope="col">{each}</th>' for each in ("candidate", "probability", "likeness", "score"))
    rows = ""
    for token, p, likeness, score in contrast.candidates:
        cells = "".join(f'<td class="number">{each}</td>' for each in (chance(p), f"{likeness:.3f}", f"{score:.3f}"))
        rows += f'<tr class="{"chosen" if token == id else ""}"><th scope="row">{escape(names(token))}</th>{cells}</tr>'
    return f'<table class="terms"><tr>{head}</tr>{rows}</table>'


def beams(generation_trace: GenerationTrace, names: TokenLabels) -> str:
    """The beams as a drawing, and the scores of the finished ones."""
    if not generation_trace.beams:
        return ""
    drawing = beam_drawing(beam_tree(generation_trace.beams, [result for result, _ in generation_trace.answers]), names)
    rows, before = "", ()
    for position, record in generation_trace.beams:
        if record.finished != before:
            rows += f'<tr><th scope="row">{position}</th><td>{", ".join(f"{score:.4f}" for score in record.finished)}</td></tr>'
            before = record.finished
    table = f'<table><tr><th scope="col">after step</th><th scope="col">scores of the finished</th></tr>{rows}</table>' if rows else ""
    about = "<p>A column a step: each box is a live beam's token, below it the sum of its log-probabilities.</p>"
    return f'<section><h2>Beams</h2>{about}<div class="wide">{drawing}</div>{table}</section>'


def drafts(generation_trace: GenerationTrace, names: TokenLabels) -> str:
    """Each draft with its accepted and rejected tokens."""
    if not generation_trace.drafts:
        return ""
    rows = ""
    for position, choice, draft in generation_trace.drafts:
        where = str(position) if len(generation_trace.answers) == 1 else f"{choice + 1}.{position}"
        tokens = "".join(
            f'<ins class="token">{escape(names(id))}</ins>' if place < draft.accepted else f'<del class="token">{escape(names(id))}</del>'
            for place, id in enumerate(draft.ids)
        )
        count = f'<td class="number">{draft.accepted} of {len(draft.ids)}</td>'
        rows += f'<tr><th scope="row">{where}</th>{count}<td class="strip">{tokens}</td></tr>'
    said, kept = sum(len(each.ids) for *_, each in generation_trace.drafts), sum(each.accepted for *_, each in generation_trace.drafts)
    tokens = sum(len(steps) for _, steps in generation_trace.answers)
    about = f"<p>{kept} of {said} drafted tokens were accepted ({kept / said:.0%}); {tokens} tokens took {len(generation_trace.passes)} passes, those that draft included.</p>"
    head = '<tr><th scope="col">from</th><th scope="col">accepted</th><th scope="col">draft</th></tr>'
    return f'<section><h2>Drafts</h2>{about}<div class="wide"><table class="drafts">{head}{rows}</table></div></section>'


def layers(generation_trace: GenerationTrace, names: TokenLabels) -> str:
    """For each token the layers' divergences as shades, the chosen one framed."""
    shown = [step for _, steps in generation_trace.answers for step in steps if step.layer]
    if not shown:
        return ""
    candidates = [number for number, _ in shown[0].layer.divergences]
    most = max(each for step in shown for _, each in step.layer.divergences) or 1.0
    head = "".join(f'<th scope="col">{number}</th>' for number in candidates)
    rows = ""
    for step in shown:
        cells = "".join(
            f'<td class="shade{" chosen" if number == step.layer.chosen else ""}" style="--p:{each / most:.3f}" title="{each:.4f}"></td>'
            for number, each in step.layer.divergences
        )
        rows += f'<tr><th scope="row">{escape(names(step.id))}</th>{cells}</tr>'
    about = "<p>How far each candidate layer's distribution is from the last one's; the framed one was contrasted with it.</p>"
    table = f'<table class="layers"><tr><th scope="col">token</th>{head}</tr>{rows}</table>'
    return f'<section><h2>Layers</h2>{about}<div class="wide">{table}</div></section>'


def attention(picture: Picture) -> str:
    """The heat map, the other heads small beside it, and the weights for the pointer."""
    drawing = attention_drawing(picture.weights, picture.tokens, picture.prompt, picture.title)
    captions = [(head, f"head {number}") for number, head in enumerate(picture.heads)]
    small = "".join(f"<figure>{thumbnail(head, caption)}<figcaption>{caption}</figcaption></figure>" for head, caption in captions)
    data = ""
    if len(picture.tokens) <= SHOWN_WEIGHTS:
        rows = [[round(1000 * each) for each in row[: place + 1]] for place, row in enumerate(picture.weights.tolist())]
        safe = json.dumps({"weights": rows, "tokens": list(picture.tokens)}, ensure_ascii=False).replace("<", "\\u003c")
        data = f'<script type="application/json" id="weights">{safe}</script>'
    about = "<p>Each line is a token, shaded by how much it attends to the token of each column, as the square root of the weight.</p>"
    return (
        f'<section><h2>{picture.title[0].upper() + picture.title[1:]}</h2>{about}<p class="script" id="weight">&nbsp;</p>'
        f'<div class="wide">{drawing}</div><h3>All heads of the layer</h3><div class="heads">{small}</div>{data}</section>'
    )
