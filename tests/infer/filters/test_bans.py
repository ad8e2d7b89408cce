"""Filters that forbid, force and bias by name: against transformers' processors, row by row, and by hand."""

import pytest
import torch
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from seodang.infer.filters.bans import (
    after,
    allow,
    bad_words,
    ban,
    encoder_no_repeat_ngram,
    force,
    logit_bias,
    no_repeat_ngram,
    sequence_bias,
)

VOCAB, ROWS = 6, 40
GENERATOR = torch.Generator().manual_seed(5)
HISTORY = [torch.randint(VOCAB, (1 + i // 2,), generator=GENERATOR) for i in range(ROWS)]
SOURCES = [torch.randint(VOCAB, (2 + i % 9,), generator=GENERATOR) for i in range(ROWS)]
SCORES = torch.randn(ROWS, VOCAB, generator=GENERATOR)


def check(got: torch.Tensor, processor_of) -> None:
    """Every row equals what the processor made for it gives alone; and something was changed, but not everything."""
    expected = torch.cat([processor_of(i)(HISTORY[i][None], SCORES[i : i + 1].clone()) for i in range(ROWS)])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    changed = (got != SCORES).any(dim=-1)
    assert changed.any() and not (got == SCORES).any(dim=-1).logical_not().all()


def test_no_repeat_ngram_equals_transformers():
    sizes = [1 + i % 4 for i in range(ROWS)]
    check(no_repeat_ngram(SCORES, sizes, HISTORY), lambda i: NoRepeatNGramLogitsProcessor(sizes[i]))


def test_encoder_no_repeat_ngram_equals_transformers():
    sizes = [1 + i % 4 for i in range(ROWS)]
    got = encoder_no_repeat_ngram(SCORES, sizes, HISTORY, SOURCES)
    check(got, lambda i: EncoderNoRepeatNGramLogitsProcessor(sizes[i], SOURCES[i][None]))


def test_bad_words_of_one_and_more_tokens_equal_transformers():
    words = [[[0], [1, 2], [3, 3, 4]], [[int(HISTORY[-1][-1]), 5]], [[2, 1], [2, 1], [4, 1]]]
    got = bad_words(SCORES, [words[i % 3] for i in range(ROWS)], HISTORY)
    check(got, lambda i: NoBadWordsLogitsProcessor(words[i % 3], eos_token_id=99))


def test_sequence_bias_equals_transformers_and_biases_of_one_token_add_up():
    biases = [{(0,): 1.5, (1, 0): -2.0, (3,): -10.0}, {(2, 1, 4): 3.0, (1, 4): 0.25, (4,): 0.5}]
    check(sequence_bias(SCORES, [biases[i % 2] for i in range(ROWS)], HISTORY), lambda i: SequenceBiasLogitsProcessor(biases[i % 2]))
    got = sequence_bias(torch.zeros(1, 6), [biases[1]], [torch.tensor([2, 1])])
    assert got.tolist() == [[0, 0, 0, 0, 3.75, 0]]


def test_suppressed_tokens_equal_transformers():
    suppressed = [[i % VOCAB, 3] for i in range(ROWS)]
    check(ban(SCORES, suppressed), lambda i: SuppressTokensLogitsProcessor(suppressed[i]))


def test_allowed_tokens_equal_transformers():
    allowed = [[i % VOCAB, 3] for i in range(ROWS)]
    check(allow(SCORES, allowed), lambda i: PrefixConstrainedLogitsProcessor(lambda batch, past: allowed[i], 1))


def test_logit_bias_adds_to_the_named_tokens_of_its_row():
    got = logit_bias(torch.zeros(2, 4), [{0: 1.0, 2: -100.0}, {3: 0.5}])
    assert got.tolist() == [[1, 0, -100, 0], [0, 0, 0, 0.5]]


def test_forcing_leaves_nothing_else_and_revives_what_was_dropped():
    got = force(torch.tensor([[-torch.inf, 2.0, 1.0], [1.0, 2.0, 3.0]]), [[0], None])
    assert got.tolist() == [[0.0, -torch.inf, -torch.inf], [1.0, 2.0, 3.0]]


@pytest.mark.parametrize("function", [lambda s: ban(s, [[1]]), lambda s: allow(s, [[1]]), lambda s: force(s, [[1]])])
def test_what_is_given_stays_as_it_is(function):
    scores = torch.tensor([[1.0, 2.0, 3.0]])
    assert not torch.equal(function(scores), scores)
    assert scores.tolist() == [[1.0, 2.0, 3.0]]


def test_what_came_after_the_same_words_before():
    text = torch.tensor([1, 2, 3, 1, 2, 4, 1, 2])
    assert after(text, text, 2).tolist() == [3, 4]
    assert after(text, text[:1], 2).tolist() == []  # too short a past
    assert after(text, text, 0).tolist() == text.tolist()


def test_ids_beyond_the_vocabulary_are_passed_over():
    assert ban(torch.zeros(1, 3), [torch.tensor([1, 9])]).tolist() == [[0.0, -torch.inf, 0.0]]
