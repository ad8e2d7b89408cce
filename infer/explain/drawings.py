"""Pictures of a traced answer as inline SVG: time, beams, attention. Colours are the page's, by class."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from unicodedata import east_asian_width

from torch import Tensor

from ..text.token_labels import TokenLabels
from .beam_tree import Node
from .generation_trace import GenerationTrace

LEVELS = 12  # shades of a heat map


def svg(width: float, height: float, label: str, *parts: str, scale: str = "") -> str:
    """A drawing with its description for those who do not see it."""
    size = scale or f'width="{width:g}" height="{height:g}"'
    return f'<svg {size} viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def timing_chart(generation_trace: GenerationTrace, height: int = 120) -> str:
    """A bar a pass, as high as its time; the passes that read the prompt are cut off where they tower over the others."""
    shown = generation_trace.later or generation_trace.passes
    top = 1000 * max((each.seconds for each in shown), default=1e-9) * 1.1
    step = max(min(720 / max(len(generation_trace.passes), 1), 24), 4)
    left, parts, cut = 58, [], []
    for share in (0, 0.5, 1):
        y = 10 + height * (1 - share)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + step * len(generation_trace.passes):g}" y1="{y:g}" y2="{y:g}"/>')
        parts.append(f'<text class="axis" x="{left - 6}" y="{y + 4:g}" text-anchor="end">{top * share:.3g} ms</text>')
    for place, each in enumerate(generation_trace.passes):
        ms = 1000 * each.seconds
        tall = min(ms / top, 1) * height
        cut += [f"{ms:.0f} ms"] if ms > top else []
        kind = "prefill" if each.prefill else "pass"
        said = f"pass {place + 1}: {ms:.1f} ms, {each.positions} new positions, {each.cached} in the cache"
        said += ", reads the prompt" if each.prefill else ""
        box = f'x="{left + step * place + 1:g}" y="{10 + height - tall:.1f}" width="{step - 2:g}" height="{tall:.1f}"'
        parts.append(f'<rect class="{kind}" {box}><title>{said}</title></rect>')
    said = "passes in their order" + (f"; cut off: {', '.join(cut[:5])}" if cut else "")
    parts.append(f'<text class="axis" x="{left}" y="{height + 28}">{said}</text>')
    width = left + max(step * len(generation_trace.passes) + 10, 6.5 * len(said))
    return svg(width, height + 34, f"Time of each of {len(generation_trace.passes)} passes", *parts)


def beam_drawing(root: Node, names: TokenLabels, dx: int = 104, dy: int = 46) -> str:
    """The tree of beams, a column a step; the ways of the answers are thick."""
    nodes = [node for node in root.walk() if node.id is not None]
    if not nodes:
        return ""
    last, lanes = max(node.step for node in nodes), max(node.lane for node in nodes)
    place = lambda node: (54, 24) if node.id is None else (54 + dx * (node.step + 1), 24 + dy * node.lane)  # noqa: E731
    edges, boxes = [], []
    for node in root.walk():
        x, y = place(node)
        for child in node.children:
            to_x, to_y = place(child)
            kind = "way" if node.returned and child.returned else "edge"
            middle = (x + to_x) / 2
            edges.append(f'<path class="{kind}" d="M{x + 40} {y}C{middle} {y} {middle} {to_y} {to_x - 40} {to_y}"/>')
        boxes.append(beam_box(node, names, x, y))
    width, height = place(Node(last, 0, 0, 0.0))[0] + 60, 24 + dy * lanes + 34
    edges.sort(key=lambda each: "way" in each)  # the ways of the answers lie above
    return svg(width, height, f"{lanes + 1} beams over {last + 1} steps", *edges, *boxes)


def beam_box(node: Node, names: TokenLabels, x: float, y: float) -> str:
    """A beam's token and sum, and the answers that end after it."""
    name = "prompt" if node.id is None else names(node.id)
    ends = "; ".join(f"answer {result.choice + 1} ends" for result in node.endings)
    said = f"{name}, sum {node.total:.4f}" + (f"; {ends}" if ends else "")
    kind = ("node returned" if node.returned else "node") + (" ends" if ends else "")
    total = "" if node.id is None else f"{node.total:.2f}{' ■' if ends else ''}"
    below = f'<text class="sum" x="{x}" y="{y + 29}" text-anchor="middle">{total}</text>'
    rect = f'<rect class="{kind}" x="{x - 40}" y="{y - 12}" width="80" height="24" rx="5"/>'
    text = f'<text class="name" x="{x}" y="{y + 4}" text-anchor="middle">{escape(short(name, 10))}</text>'
    return f"<g><title>{escape(said)}</title>{rect}{text}{below}</g>"


def short(text: str, length: int) -> str:
    """A text cut to so many characters; those of full width count twice."""
    if width_of(text) <= length:
        return text
    while width_of(text) >= length:
        text = text[:-1]
    return text + "…"


def width_of(text: str) -> int:
    """How many characters of half width a text is wide."""
    return sum(2 if east_asian_width(each) in "WF" else 1 for each in text)


def heat_squares(weights: Tensor) -> str:
    """The cells of a map, [n, n], as one path a shade, each cell 1 by 1; the shade grows with the square root of the weight."""
    levels = (weights.clamp(0, 1).sqrt() * LEVELS).round().long().tolist()
    paths: dict[int, list[str]] = {}
    for y, row in enumerate(levels):
        x = 0
        while x < len(row):
            end = x
            while end < len(row) and row[end] == row[x]:
                end += 1
            if row[x]:
                paths.setdefault(row[x], []).append(f"M{x} {y}h{end - x}v1h-{end - x}z")
            x = end
    drawn = [(level / LEVELS, "".join(cells)) for level, cells in sorted(paths.items())]
    return "".join(f'<path class="heat" style="opacity:{shade:.2f}" d="{cells}"/>' for shade, cells in drawn)


def attention_drawing(weights: Tensor, tokens: Sequence[str], prompt: int, title: str) -> str:
    """The heat map of one head, [n, n] with a row a query, and its n tokens along both sides; a line tells the first `prompt` from the answer."""
    n = len(tokens)
    cell = max(min(760 / n, 20), 11)  # so small that labels can just be read
    longest = 10 + 0.62 * min(cell * 0.85, 13) * min(max(map(width_of, tokens)), 15)
    side, left, top = cell * n, round(longest), round(longest)
    parts = [f'<rect class="ground" x="{left}" y="{top}" width="{side:g}" height="{side:g}"/>']
    parts.append(f'<g id="map" transform="translate({left} {top}) scale({cell:g})">{heat_squares(weights)}</g>')
    size = f'font-size="{min(cell * 0.85, 13):.1f}"'
    for place, token in enumerate(tokens):
        middle = (place + 0.5) * cell
        name, kind = escape(short(token, 14)), "name answer" if place >= prompt else "name"
        parts.append(f'<text class="{kind}" {size} x="{left - 6}" y="{top + middle:.1f}" dy=".35em" text-anchor="end">{name}</text>')
        at = f"{left + middle:.1f} {top - 6}"
        parts.append(f'<text class="{kind}" {size} transform="translate({at}) rotate(-60)" dy=".35em">{name}</text>')
    if 0 < prompt < n:
        border = prompt * cell
        parts.append(f'<path class="border" d="M{left} {top + border:g}h{side:g}M{left + border:g} {top}v{side:g}"/>')
    parts.append(f'<rect class="cursor" id="cursor" width="{cell:g}" height="{cell:g}" visibility="hidden"/>')
    return svg(left + side + 60, top + side + 10, title, *parts)


def thumbnail(weights: Tensor, title: str) -> str:
    """The heat map of one head, [n, n], without labels."""
    n = len(weights)
    return svg(n, n, title, f'<rect class="ground" width="{n}" height="{n}"/>', heat_squares(weights), scale='class="thumbnail"')
