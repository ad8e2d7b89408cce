"""What goes with what: the strategies and the filters, as a table in Markdown drawn from the code itself.

python -m seodang.infer.explain.strategy_table writes STRATEGIES.md beside this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ...data.errors import UserError
from ..filters.specs import CONSTRAINTS, FILTERS
from ..requests.params import SamplingParams
from ..runners.architecture import Capabilities
from ..strategies import selection
from ..strategies.registry import AMATEUR, GUIDANCE, KINDS, Kind, check

HOME = Path(__file__).with_name("STRATEGIES.md")
ABLE = Capabilities(hidden_states=True, mask_holes=True)  # a runner that can do everything

PAPERS = {
    "best_of_n": "Stiennon et al. 2020, Learning to summarize from human feedback",
    "self_consistency": "Wang et al. 2022, Self-consistency improves chain of thought reasoning",
    "minimum_bayes_risk": "Eikema & Aziz 2020, Is MAP decoding all you need?",
    "contrastive": "Su et al. 2022, A contrastive framework for neural text generation",
    "assisted": "Leviathan et al. 2023, Fast inference from transformers via speculative decoding; Chen et al. 2023",
    "beam": "Lowerre 1976; length penalty: Wu et al. 2016, Google's neural machine translation system",
    "diverse_beam": "Vijayakumar et al. 2018, Diverse beam search",
    "constrained_beam": "Hokamp & Liu 2017, Lexically constrained decoding; Post & Vilar 2018",
    "dola": "Chuang et al. 2024, DoLa: decoding by contrasting layers",
}
# the fewest settings that mean a strategy; of one that is not here its name alone is tried
LEAST: dict[str, dict[str, Any]] = {
    "sampling": {},
    "best_of_n": {"best_of": 3, "do_sample": True},
    "self_consistency": {"best_of": 3, "do_sample": True, "answer_of": str.strip},
    "minimum_bayes_risk": {"best_of": 3, "do_sample": True, "utility": lambda answer, other: float(answer == other)},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "assisted": {"prompt_lookup_num_tokens": 4},
    "beam": {"num_beams": 2},
    "diverse_beam": {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "constrained_beam": {"num_beams": 2, "force_words_ids": ((5,),)},
    "dola": {"dola_layers": "high"},
}
# a value for each setting that asks for a filter
VALUES: dict[str, Any] = {
    "sequence_bias": {(5,): 1.0}, "logit_bias": {5: 1.0}, "bad_words": ("bad",), "suppress_tokens": (5,), "begin_suppress_tokens": (5,),
    "encoder_repetition_penalty": 1.2, "repetition_penalty": 1.2, "frequency_penalty": 0.5, "presence_penalty": 0.5, "dry_multiplier": 0.8,
    "no_repeat_ngram_size": 3, "encoder_no_repeat_ngram_size": 3, "min_length": 2, "min_new_tokens": 2, "prefix_allowed_tokens_fn": list,
    "forced_bos_token_id": 5, "forced_eos_token_id": 5, "exponential_decay_length_penalty": (5, 1.1),
    "filters": (lambda logits, history: logits,), "temperature": 0.7, "top_n_sigma": 1.0, "top_h": 0.5, "top_k": 4, "top_p": 0.9,
    "min_p": 0.1, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.01, "xtc_probability": 0.5, "mirostat_tau": 3.0, "forced_text": {3: " so"}, "trie": ("yes", "no"),
    "json_schema": "{}", "regex": "a+", "choice": ("yes", "no"), "grammar": 'start: "a"', "thinking_budget": 8, "token_healing": True,
}  # fmt: skip
KINDS_OF_FILTER = {"bias": "biases", "penalty": "penalties", "ban": "bans", "own": "own filters", "constraint": "constraints", "warper": "warpers"}

OF_THE_SCALE = ("encoder_repetition_penalty", "repetition_penalty", "exponential_decay_length_penalty")


def settings_of(name: str) -> list[dict[str, Any]]:
    """Settings that ask for a filter, one each."""
    if name == "dynatemp":
        return [{"temperature": 0.7, "dynatemp_range": 0.2}]
    if name == "constraints":
        return [{each: VALUES[each]} for each in CONSTRAINTS]
    return [{FILTERS[name].fields[0]: VALUES[FILTERS[name].fields[0]]}]


def families() -> dict[str, list[dict[str, Any]]]:
    """What is tried with each strategy, by the heading of its column."""
    found: dict[str, list[dict[str, Any]]] = {heading: [] for heading in KINDS_OF_FILTER.values()}
    for name, spec in FILTERS.items():
        found[KINDS_OF_FILTER[spec.kind]] += settings_of(name)
    return found | {
        "random choices": [{"do_sample": True}],
        "several answers": [{"num_return_sequences": 2}],
        "guidance": [{"guidance_scale": 1.5}],
        "amateur": [{"amateur_model": nn.Identity()}],
        "stops": [{"stop": ("end",)}, {"stop_regex": "x"}, {"stop_when": bool}, {"stop_token_ids": (5,)}, {"max_time": 9.0}],
        "prefix": [{"prefix": "Yes"}],
        "hidden spans": [{"attention_mask": (0, 1)}],
    }


def refusal(kind: Kind, settings: Mapping[str, Any], encoder_decoder: bool = False) -> str | None:
    """Return why a strategy does not take these settings, None where it does; it may need `do_sample` with them."""
    reason = None
    for more in ({}, {"do_sample": True}):
        try:
            check(SamplingParams(**{"strategy": kind.name, **LEAST.get(kind.name, {}), **settings, **more}), ABLE, encoder_decoder)
            return None
        except UserError as error:
            reason = reason or str(error)
    return reason


def cell(kind: Kind, tried: Iterable[Mapping[str, Any]]) -> tuple[str, dict[str, str]]:
    """Return yes, no or what is left out, and the reasons by the setting that is refused."""
    tried = list(tried)
    reasons = {", ".join(settings): reason for settings in tried if (reason := refusal(kind, settings))}
    if not reasons:
        return "yes", {}
    if len(reasons) == len(tried):
        return "no", reasons
    if 2 * len(reasons) <= len(tried):
        return f"but {', '.join(f'`{name}`' for name in reasons)}", reasons
    return f"only {', '.join(f'`{name}`' for name in map(', '.join, tried) if name not in reasons)}", reasons


def about(kind: Kind) -> str:
    """What a strategy does, in the first sentence of its documentation."""
    source = getattr(selection, kind.name, None) or kind.start
    return " ".join((inspect.getdoc(source) or "").split("\n\n")[0].split()).rstrip(".")


def streams(kind: Kind) -> str:
    """When the tokens of an answer are told."""
    if "best_of" in kind.options:
        return "once it is chosen"
    return "what all beams share" if "num_beams" in kind.options else "as they come"


def options_of(kind: Kind) -> str:
    """The settings that are the strategy's own."""
    return ", ".join(f"`{name}`" for name in sorted(kind.options - {*GUIDANCE, *AMATEUR})) or "none"


def row(*cells: str) -> str:
    return f"| {' | '.join(each.replace('|', chr(92) + '|') for each in cells)} |"


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A table in Markdown."""
    head = list(head)
    return [row(*head), row(*["---"] * len(head)), *(row(*each) for each in rows)]


def strategies_part() -> list[str]:
    """The strategies, what they do and where they run."""
    rows = []
    for kind in KINDS.values():
        encoder_decoder = "yes" if refusal(kind, {}, encoder_decoder=True) is None else "no"
        rows.append((f"`{kind.name}`", "yes", streams(kind), encoder_decoder, about(kind), PAPERS.get(kind.name, ""), options_of(kind)))
    head = ("strategy", "in a batch", "streams", "encoder-decoder", "what it does", "paper", "options")
    return ["## Strategies", "", "Requests of all strategies share the passes of one engine.", "", *grid(head, rows)]


def combinations_part() -> list[str]:
    """Strategy by family of options, each cell asked of the check that every request goes through."""
    columns = families()
    rows, reasons = [], []
    for kind in KINDS.values():
        found = {heading: cell(kind, tried) for heading, tried in columns.items()}
        rows.append((f"`{kind.name}`", *(text for text, _ in found.values())))
        by_reason: dict[str, list[str]] = {}
        for _, why in found.values():
            for name, reason in why.items():
                by_reason.setdefault(reason, []).append(name)
        reasons += [f"- `{kind.name}` with {', '.join(f'`{name}`' for name in names)}: {reason}" for reason, names in by_reason.items()]
    about = "yes: exactly as documented; no: an error that names the option, before the first token. Nothing is dropped in silence."
    return ["## What goes with what", "", about, "", *grid(("strategy", *columns), rows), "", "The reasons:", "", *reasons]


def filters_part() -> list[str]:
    """The filters in their default order, and how it is changed."""
    rows = []
    for place, (name, spec) in enumerate(FILTERS.items(), 1):
        rows.append((str(place), f"`{name}`", spec.kind, ", ".join(f"`{each}`" for each in spec.fields)))
    beams = ", ".join(f"`{kind.name}`" for kind in KINDS.values() if "num_beams" in kind.options)
    bound = ", ".join(f"`{name}`" for name in OF_THE_SCALE)
    return [
        "## Filters, in their default order",
        "",
        *grid(("", "filter", "kind", "settings"), rows),
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
