"""A traced answer in the terminal: its tokens, what the filters made of their chances, and what the strategy did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp

from rich.cells import cell_len, set_cell_size
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree
from torch import Tensor

from ..requests.trace import CANDIDATES, Candidates, ChoiceTrace, ContrastTrace, DiffusionStep, DraftTrace, LayerTrace, PassTrace
from ..text.token_labels import TokenLabels
from .beam_tree import Node, beam_tree, chains
from .diffusion_steps import fitting, when_certain
from .generation_trace import GenerationTrace, Step

CHOSEN, HEADING, QUIET = "bold green", "bold cyan", "dim"
LEAVING = {"drops": "dim strike", "behind": "dim", None: ""}
SHOWN = 5  # candidates of a distribution
SHADES = " ░▒▓█"


def explain(generation_trace: GenerationTrace, names: TokenLabels, steps: int = 20, width: int = 100) -> RenderableType:
    """Show all answers, `steps` tokens of each in full, with the beams and drafts; for a rich console of `width` columns."""
    parts: list[RenderableType] = []
    for result, own in generation_trace.answers:
        parts.append(answer_panel(result, len(generation_trace.answers)))
        parts += denoising(generation_trace.steps_of(result), names, steps, width)
        if not any(step.filtered for step in own):
            parts.append(Text("  ").join(Text.assemble(names(step.id), (f" {chance(exp(step.logprob))}", QUIET)) for step in own[:steps]))
        else:
            parts.append(Text("position, token, probability, entropy in nats, time, positions in the cache", style=QUIET))
        parts += [shown_step(step, names) for step in own[:steps] if step.filtered or step.contrast]
        if len(own) > steps and any(step.filtered for step in own):
            parts.append(Text(f"... {len(own) - steps} more tokens: --shown {len(own)} shows all of them", style=QUIET))
    if generation_trace.beams:
        parts += [Text("\nbeams", style=HEADING), tree_of_beams(generation_trace, names), Text(), beam_table(generation_trace, names, steps)]
    if generation_trace.drafts:
        parts += [Text("\ndrafts", style=HEADING), *drafts(generation_trace, names)]
    return Group(*parts, Text("\ntime", style=HEADING), times(generation_trace))


def denoising(found: Sequence[DiffusionStep], names: TokenLabels, steps: int, width: int) -> Iterator[Text]:
    """The canvas after each step of diffusion, a line each: what is new in green, masks where it is open; then when each position became certain."""
    yield from fitting(found[:steps], names, width)
    if len(found) > steps:
        yield Text(f"... {len(found) - steps} more steps: --shown {len(found)} shows all of them", style=QUIET)
    if found:
        yield when_certain(found, names, width)


def answer_panel(result, count: int) -> Panel:
    """The answer's text with how it ended."""
    said = [f"{len(result.ids)} tokens", f"ended by {result.finish_reason}", f"seed {result.seed}"]
    said += [] if result.score is None else [f"score {result.score:.4f}"]
    title = "answer" if count == 1 else f"answer {result.choice + 1} of {count}"
    return Panel(Text(result.text), title=title, title_align="left", subtitle=Text(", ".join(said)), subtitle_align="right")


def shown_step(step: Step, names: TokenLabels) -> RenderableType:
    """One token: what it is, how sure the model was, what it cost, and its rivals at each stage."""
    title = title_of(step, names)
    line = Text(f"{step.position:>4}  ", no_wrap=True, overflow="ellipsis")
    line.append(title + " " * (12 - cell_len(title)), style=CHOSEN)
    if step.filtered is not None:
        line.append(f"  p {chance(step.filtered.probability)}  entropy {abs(step.filtered.entropy):.2f}")
    if step.denoised is not None:
        line.append(f"  step {step.denoised}", style=QUIET)
    if step.passes:
        line.append(f"  {cost(step.passes)}", style=QUIET)
    body: list[RenderableType] = []
    if step.layer is not None:
        body.append(layer_line(step.layer))
    if step.filtered is not None:
        body.append(stages(step.filtered, names))
    if step.contrast is not None:
        body.append(contrast_table(step.contrast, step.id, names))
    return Group(line, *(Padding(each, (0, 0, 0, 6)) for each in body))


def title_of(step: Step, names: TokenLabels) -> str:
    """A token's name, with the characters that it completes where it has only a part of them."""
    name = names(step.id)
    return f"{name} ({step.text.strip()})" if names.unfinished(step.id) and step.text.strip() else name


def chance(p: float) -> str:
    """A probability in few digits.

    >>> chance(0.12345), chance(1), chance(0.00001)
    ('0.123', '1.000', '1e-05')
    """
    return f"{p:.3f}" if p >= 0.001 or p == 0 else f"{p:.0e}"


def cost(passes: Sequence[PassTrace]) -> str:
    """What the passes before a token took."""
    read = sum(each.positions for each in passes if each.prefill)
    said = [f"{1000 * sum(each.seconds for each in passes):.1f} ms"]
    said += [f"{len(passes)} passes"] if len(passes) > 1 else []
    said += [f"prompt {read}"] if read else []
    return ", ".join([*said, f"cache {passes[-1].cached}"])


def stages(filtered: ChoiceTrace, names: TokenLabels) -> RenderableType:
    """The likeliest tokens of each stage side by side; of a single one in a line."""
    found, id = filtered.stages, filtered.id
    lists = [nearest(each, id, filtered.probability if place + 1 == len(found) else None) for place, (_, each) in enumerate(found)]
    if len(found) == 1:
        line = Text(no_wrap=True, overflow="ellipsis")
        for token, p in lists[0]:
            line.append(f"{names(token)} {chance(p)}   ", style=CHOSEN if token == id else "")
        return line
    tables = []
    for place, (name, _) in enumerate(found):
        table = Table(Column(Text(name), no_wrap=True), box=None, padding=(0, 2, 0, 0), header_style="underline")
        for token, p in lists[place]:
            style = CHOSEN if token == id else LEAVING[leaving(token, found, place)]
            table.add_row(Text(f"{chance(p)} {names(token)}", style=style))
        tables.append(table)
    return Columns(tables)


def leaving(token: int, found: Sequence[tuple[str, Candidates]], place: int) -> str | None:
    """What the next stage does to a candidate: "drops" it, leaves it "behind" the likeliest that were kept, or neither (None)."""
    after = found[place + 1][1] if place + 1 < len(found) else None
    if after is None or token in (each for each, _ in after):
        return None
    return "drops" if len(after) < CANDIDATES else "behind"


def nearest(candidates: Candidates, id: int, p: float | None = None) -> list[tuple[int, float]]:
    """The first few candidates, the chosen one among them where its probability `p` is known, or it is among the candidates."""
    first = list(candidates[:SHOWN])
    chosen = [each for each in candidates if each[0] == id] or ([(id, p)] if p is not None else [])
    return first if not chosen or chosen[0] in first else [*first[: SHOWN - 1], chosen[0]]


def layer_line(layer: LayerTrace) -> Text:
    """DoLa's choice among the layers."""
    line = Text("contrasted with layer ")
    line.append(str(layer.chosen), style=CHOSEN)
    line.append("; divergences")
    for number, divergence in layer.divergences:
        line.append(f"  {number}:\u00a0{divergence:.4g}", style=CHOSEN if number == layer.chosen else "")
    return line


def contrast_table(contrast: ContrastTrace, id: int, names: TokenLabels) -> Table:
    """The candidates of contrastive search with both terms."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="underline")
    for heading in ("candidate", "probability", "likeness", "score"):
        table.add_column(heading, justify="left" if heading == "candidate" else "right")
    for token, p, likeness, score in contrast.candidates:
        cells = (names(token), chance(p), f"{likeness:.3f}", f"{score:.3f}")
        table.add_row(*map(Text, cells), style=CHOSEN if token == id else "")
    return table


def drafts(generation_trace: GenerationTrace, names: TokenLabels) -> Iterator[Text]:
    """Every draft, and how many of its tokens stayed in all."""
    for position, choice, draft in generation_trace.drafts:
        line = Text(f"{position:>4}  ") if len(generation_trace.answers) == 1 else Text(f"{choice + 1:>3}.{position:<4}  ")
        yield line.append_text(shown_draft(draft, names))
    said, kept = sum(len(each.ids) for *_, each in generation_trace.drafts), sum(each.accepted for *_, each in generation_trace.drafts)
    tokens = sum(len(steps) for _, steps in generation_trace.answers)
    yield Text(f"      {kept} of {said} drafted tokens accepted ({kept / said:.0%}); {tokens} tokens in {len(generation_trace.passes)} passes, those that draft included")


def shown_draft(draft: DraftTrace, names: TokenLabels) -> Text:
    """Accepted tokens green, rejected ones struck out in red, apart from each other."""
    line = Text()
    for place, id in enumerate(draft.ids):
        line.append(names(id), style="green" if place < draft.accepted else "red strike")
        line.append(" ")
    return line.append(f" {draft.accepted} of {len(draft.ids)}", style=QUIET)


def tree_of_beams(generation_trace: GenerationTrace, names: TokenLabels) -> Tree:
    """All beams that lived. A line goes on in the next one of its depth that begins with three dots; what left it is set in below it."""
    tree = Tree("", hide_root=True)
    grow(tree, beam_tree(generation_trace.beams, [result for result, _ in generation_trace.answers]), names)
    return tree


def grow(tree: Tree, node: Node, names: TokenLabels) -> None:
    """Add a node with all below it, along its heirs at one depth."""
    going = False
    while node is not None:
        way, last = chains(node)
        text = names.of([each.id for each in way if each.id is not None])
        line = Text("... " if going else "", style="green" if last.returned else "", no_wrap=True, overflow="ellipsis")
        line.append("prompt " + text if way[0].id is None else text)
        branch = tree.add(line if last.id is None else line.append(f"  {last.total:.3f}", style=QUIET))
        for result in last.endings:
            score = "" if result.score is None else f" score {result.score:.4f}"
            branch.add(Text(f"{names.of(result.ids[-1:])} = answer {result.choice + 1}{score}", style=CHOSEN))
        node = heir(last)
        for child in last.children:
            if child is not node:
                grow(branch, child, names)
        going = True


def heir(node: Node) -> Node | None:
    """The child that lived the longest, one on the way of an answer before the others."""
    return max(node.children, key=lambda child: (child.returned, max(each.step for each in child.walk()), child.total), default=None)


def beam_table(generation_trace: GenerationTrace, names: TokenLabels, steps: int) -> Table:
    """Every step's beams: whose child, their sum, and which token; and how many are finished, with the best score."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="underline")
    table.add_column("step", justify="right", no_wrap=True, min_width=4)
    lanes = max(len(record.live) for _, record in generation_trace.beams)
    for lane in range(lanes):
        table.add_column(f"beam {lane}", no_wrap=True)
    table.add_column("finished", no_wrap=True)
    for position, record in generation_trace.beams[:steps]:
        live = [Text.assemble((f"{parent}→ {total:.2f} ", QUIET), names(id)) for parent, id, total in record.live]
        finished = f"{len(record.finished)}: {max(record.finished):.2f}" if record.finished else ""
        table.add_row(str(position), *live, *[""] * (lanes - len(live)), Text(finished, style="green"))
    if len(generation_trace.beams) > steps:
        table.add_row("...", Text(f"{len(generation_trace.beams) - steps} more", style=QUIET))
    return table


def times(generation_trace: GenerationTrace) -> Text:
    """What reading the prompt took, and the steps after it."""
    lines = []
    if reading := generation_trace.prefill:
        parts = f" in {len(reading)} passes" if len(reading) > 1 else ""
        lines.append(f"prefill  {1000 * sum(each.seconds for each in reading):.1f} ms for {sum(each.positions for each in reading)} positions{parts}")
    if later := sorted(each.seconds for each in generation_trace.later):
        lengths = [max(len(steps) - 1, 0) for _, steps in generation_trace.answers]  # the first token came with the prompt
        speed = (max(lengths) if generation_trace.beams else sum(lengths)) / sum(later)
        lines.append(f"steps    {len(later)} passes, {1000 * later[len(later) // 2]:.1f} ms in the middle, {speed:.1f} tokens/s")
    if generation_trace.passes:
        lines.append(f"cache    {generation_trace.passes[-1].cached} positions at the last pass, {max(each.cached for each in generation_trace.passes)} at most")
    return Text("\n".join(lines))


def heat_map(weights: Tensor, tokens: Sequence[str], width: int = 100) -> Text:
    """Attention as shades, a line a query, for a terminal of `width` columns: [n, n], and the n tokens' names.

    The shade grows with the square root of the weight. Where there is no room for all, neighbours share a cell: the greatest counts.
    """
    label = min(max(map(cell_len, tokens)), 14)
    n = len(tokens)
    share = -(-n // max(width - label - 2, 8))
    cells = 2 if share == 1 and 2 * n <= width - label - 2 else 1
    lines = [f"each line is a token, shaded by what it attends to, from the first token on; {SHADES[1:]} up to 1, by the square root"]
    lines += [f"{share} neighbours share a cell"] if share > 1 else []
    for first in range(0, n, share):
        row = [weights[first : first + share, at : at + share].max().item() for at in range(0, n, share)]
        shaded = "".join(SHADES[min(round(max(weight, 0.0) ** 0.5 * 4), 4)] * cells for weight in row)
        name = tokens[first] if cell_len(tokens[first]) <= label else set_cell_size(tokens[first], label)
        lines.append(f"{' ' * (label - cell_len(name))}{name}  {shaded.rstrip()}")
    return Text("\n".join(lines), no_wrap=True)
