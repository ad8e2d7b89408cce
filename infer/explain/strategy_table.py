"""What goes with what: the strategies and the filters, as a table in Markdown drawn from the code itself.

python -m seodang.infer.explain.strategy_table writes STRATEGIES.md beside this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...data.errors import UserError
from ..engine.params import OPTIONS, SamplingParams
from ..engine.settings_schema import ABLE
from ..filters.registry import FILTERS
from ..filters.spec import KINDS
from ..requests.options import options_of
from ..strategies.registry import STRATEGIES, check
from ..strategies.spec import Amateur, Guidance, StrategySpec

HOME = Path(__file__).with_name("STRATEGIES.md")

def settings_of(name: str) -> list[dict[str, Any]]:
    """Settings that ask for a filter, each by themselves."""
    return [{each: OPTIONS[each].example for each in asked} for asked in FILTERS[name].asked_by]


def families() -> dict[str, list[dict[str, Any]]]:
    """What is tried with each strategy, by the heading of its column."""
    found: dict[str, list[dict[str, Any]]] = {heading: [] for heading in KINDS.values()}
    for name, spec in FILTERS.items():
        found[KINDS[spec.kind]] += settings_of(name)
    others = {
        "random choices": ["do_sample"],
        "several answers": ["num_return_sequences"],
        "guidance": [*options_of(Guidance)][:1],
        "amateur": [*options_of(Amateur)][:1],
        "stops": ["stop", "stop_regex", "stop_when", "stop_token_ids", "max_time"],
        "prefix": ["prefix"],
        "hidden spans": ["attention_mask"],
    }
    return found | {heading: [{name: OPTIONS[name].example} for name in names] for heading, names in others.items()}


def refusal(spec: StrategySpec, settings: Mapping[str, Any], encoder_decoder: bool = False) -> str | None:
    """Return why a strategy does not take these settings, None where it does; it may need `do_sample` with them."""
    reason = None
    for more in ({}, {"do_sample": True}):
        try:
            check(SamplingParams(**{"strategy": spec.name, **spec.least, **settings, **more}), ABLE, encoder_decoder)
            return None
        except UserError as error:
            reason = reason or str(error)
    return reason


def cell(spec: StrategySpec, tried: Iterable[Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """Return yes, no or what is left out, and the reasons by the setting that is refused."""
    tried = list(tried)
    reasons = {", ".join(settings): reason for settings in tried if (reason := refusal(spec, settings))}
    if not reasons:
        return "yes", {}
    if len(reasons) == len(tried):
        return "no", reasons
    if 2 * len(reasons) <= len(tried):
        return f"but {', '.join(f'`{name}`' for name in reasons)}", reasons
    return f"only {', '.join(f'`{name}`' for name in map(', '.join, tried) if name not in reasons)}", reasons


def options_text(spec: StrategySpec) -> str:
    """The settings that are the strategy's own."""
    return ", ".join(f"`{name}`" for name in sorted(spec.own)) or "none"


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(each.replace('|', chr(92) + '|') for each in cells)} |"


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table in Markdown."""
    head = list(head)
    return [row(*head), row(*["---"] * len(head)), *(row(*each) for each in rows)]


def strategies_part() -> list[str]:
    """The strategies, what they do and where they run."""
    rows = []
    for spec in STRATEGIES.values():
        encoder_decoder = "yes" if refusal(spec, {}, encoder_decoder=True) is None else "no"
        rows.append((f"`{spec.name}`", "yes", spec.streams, encoder_decoder, spec.summary, spec.paper, options_text(spec)))
    head = ("strategy", "in a batch", "streams", "encoder-decoder", "what it does", "paper", "options")
    return ["## Strategies", "", "Requests of all strategies share the passes of one engine.", "", *grid(head, rows)]


def combinations_part() -> list[str]:
    """Strategy by family of options, each cell asked of the check that every request goes through."""
    columns = families()
    rows, reasons = [], []
    for spec in STRATEGIES.values():
        found = {heading: cell(spec, tried) for heading, tried in columns.items()}
        rows.append((f"`{spec.name}`", *(text for text, _ in found.values())))
        by_reason: dict[str, list[str]] = {}
        for name, reason in ((name, reason) for _, why in found.values() for name, reason in why.items()):
            by_reason.setdefault(reason.replace(f"{name} ", "it ", 1) if reason.startswith(f"{name} ") else reason, []).append(name)
        reasons += [f"- `{spec.name}` with {', '.join(f'`{name}`' for name in names)}: {reason}" for reason, names in by_reason.items()]
    about = "yes: exactly as documented; no: an error that names the option, before the first token. Nothing is dropped in silence."
    return ["## What goes with what", "", about, "", *grid(("strategy", *columns), rows), "", "The reasons:", "", *reasons]


def elsewhere(name: str) -> str:
    """The vocabularies in which a setting is known, with its names there where they are others."""
    names = {vocabulary: [theirs for theirs in known if theirs] for vocabulary, known in OPTIONS[name].aliases.items()}
    return ", ".join(f"{vocabulary} (`{'`, `'.join(theirs)}`)" if theirs else vocabulary for vocabulary, theirs in names.items())


def filters_part() -> list[str]:
    """The filters in their default order, and how it is changed."""
    rows = []
    for place, (name, spec) in enumerate(FILTERS.items(), 1):
        settings = ", ".join(f"`{each}`" for each in spec.fields)
        rows.append((str(place), f"`{name}`", spec.kind, settings, elsewhere(spec.asked_by[0][-1]), spec.source))
    beams = ", ".join(f"`{spec.name}`" for spec in STRATEGIES.values() if spec.sees_logprobs)
    bound = ", ".join(f"`{name}`" for name, spec in FILTERS.items() if spec.of_the_scale)
    return [
        "## Filters, in their default order",
        "",
        *grid(("", "filter", "kind", "settings", "known to", "source"), rows),
        "",
        "`filter_order` changes the order: a list of the names above, which must have every filter that the request asks for.",
        "`constraints` may be left out; they then come before the first warper. Warpers apply to requests that sample, all others always.",
        "",
        "`min_new_tokens` and `min_length` are refused where what the answer may be (trie, json_schema, regex, choice, grammar) has no text as long,",
        "so far as its texts are few enough to be looked through; elsewhere its end wins: where nothing else can follow, the answer ends.",
        "",
        f"In {beams} the filters act on log-probabilities, as in transformers; elsewhere on logits.",
        f"Most give the same distribution for both: a constant added to all scores does not matter to them. It does to {bound}, which multiply scores.",
    ]


def table() -> str:
    """The whole file."""
    head = ["# Strategies and filters", "", "Written by `python -m seodang.infer.explain.strategy_table` from the code: do not edit."]
    return "\n".join([*head, "", *strategies_part(), "", *combinations_part(), "", *filters_part(), ""])


if __name__ == "__main__":
    HOME.write_text(table(), encoding="utf-8")
