"""STRATEGIES.md is what the code says."""

from types import SimpleNamespace

import pytest
import torch

from seodang.infer.engine.params import SamplingParams
from seodang.infer.explain.strategy_table import HOME, cell, families, refusal, settings_of, table
from seodang.infer.filters.registry import FILTERS
from seodang.infer.strategies.registry import STRATEGIES, choose


def test_the_file_is_what_the_code_gives():
    assert HOME.read_text(encoding="utf-8") == table(), "run python -m seodang.infer.explain.strategy_table"


def test_every_strategy_and_filter_is_in_it():
    text = table()
    assert all(text.count(f"| `{name}` |") >= 2 for name in STRATEGIES)
    assert all(f"| `{name}` | {spec.kind} |" in text for name, spec in FILTERS.items())


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_least_settings_of_a_strategy_are_taken_and_mean_it(name):
    assert refusal(STRATEGIES[name], {}) is None
    assert choose(SamplingParams(**STRATEGIES[name].least)).name == name


def test_every_setting_that_is_tried_asks_for_its_filter():
    for name, spec in FILTERS.items():
        assert all(spec.asks(SamplingParams(**settings)) for settings in settings_of(name)), name


def test_a_cell_says_what_is_refused_and_why():
    contrastive, tried = STRATEGIES["contrastive"], families()
    text, reasons = cell(contrastive, tried["warpers"])
    assert text == "only `top_k`" and "takes no random choices" in reasons["temperature"] and "top_k" not in reasons
    assert cell(contrastive, tried["penalties"]) == ("yes", {})
    assert cell(contrastive, tried["random choices"])[0] == "no"
    assert cell(contrastive, [{"min_length": 2}, {"min_new_tokens": 1}, {"temperature": 0.5}])[0] == "but `temperature`"


def request_row(settings):
    """What filters read of a row: some history and settings."""
    ids = [5, 6, 7, 5, 6, 9, 5, 6]
    params = SamplingParams(**{"do_sample": True, "max_new_tokens": 20, **settings})
    request = SimpleNamespace(params=params, prompt_ids=ids[:3], source_ids=None, end_ids=frozenset({2}), seed=1, breaker_ids=frozenset(), index=0)
    return SimpleNamespace(
        request=request, ids=ids, new_ids=ids[3:], position=5, seed=1, states={}, constraints=[],
        history=lambda: torch.tensor(ids), noise=lambda draw=0: 0.3,
    )  # fmt: skip


def test_the_filters_that_depend_on_the_scale_are_the_ones_named():
    logits = torch.randn(1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1
    logprobs = logits.log_softmax(-1)
    depends = []
    for name, spec in FILTERS.items():
        if spec.kind in ("own", "constraint"):
            continue
        [settings] = settings_of(name)
        settings = {"bad_words_ids": ((5, 6, 1),)} if name == "bad_words" else settings
        settings = {"exponential_decay_length_penalty": (1, 1.5)} if name == "exponential_decay_length_penalty" else settings
        settings = {"prefix_allowed_tokens_fn": lambda ids: [1, 2, 3]} if name == "prefix_allowed_tokens_fn" else settings
        of_logits, of_logprobs = (spec.make([request_row(settings)])(scores.clone()).softmax(-1) for scores in (logits, logprobs))
        if not torch.allclose(of_logits, of_logprobs, atol=1e-9):
            depends.append(name)
    assert depends == [name for name, spec in FILTERS.items() if spec.of_the_scale], "of_the_scale in a FilterSpec says otherwise"
