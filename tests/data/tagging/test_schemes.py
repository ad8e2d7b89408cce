import itertools
import random

import pytest

from seodang.data.errors import UserError
from seodang.data.tagging.schemes import BIOES, IOB1, IOB2, Span, first_broken, label_set, parted, scheme_of, spans_of, tag_names, tags_of

SPANS = [Span(0, 1, "A"), Span(1, 3, "A"), Span(3, 4, "B"), Span(5, 8, "A")]  # of nine tokens; three lie beside each other
SENTENCE = {
    IOB2: ["B-A", "B-A", "I-A", "B-B", "O", "B-A", "I-A", "I-A", "O"],
    IOB1: ["I-A", "B-A", "I-A", "I-B", "O", "I-A", "I-A", "I-A", "O"],
    BIOES: ["S-A", "B-A", "E-A", "S-B", "O", "B-A", "I-A", "E-A", "O"],
    "BILOU": ["U-A", "B-A", "L-A", "U-B", "O", "B-A", "I-A", "L-A", "O"],
}


@pytest.mark.parametrize("scheme", SENTENCE)
def test_one_sentence_says_the_same_in_every_scheme_and_shows_which_it_is(scheme):
    assert spans_of(SENTENCE[scheme]) == SPANS
    assert scheme_of([["O"], SENTENCE[scheme]]) == (BIOES if scheme == "BILOU" else scheme)


def test_tags_of_spans_are_iob2():
    assert tags_of(SPANS, 9) == SENTENCE[IOB2]


def test_what_may_follow_what_is_what_a_search_over_all_sentences_says():
    """Every sentence of three tags that is valid by a scheme is one that some entities are written as by it, and no other is."""
    prefixes = {IOB2: "BI", IOB1: "BI", BIOES: "BIES"}
    for scheme, letters in prefixes.items():
        tags = ["O", *(f"{letter}-{label}" for letter in letters for label in "AB")]
        valid = {sentence for sentence in itertools.product(tags, repeat=3) if first_broken(sentence, scheme) is None}
        assert valid == {tuple(written(spans, 3, scheme)) for spans in all_spans(3)}


def all_spans(length):
    """Every way to lay entities of A and B on so many tokens."""
    if length <= 0:
        return [[]]
    found = [[Span(*(place + 1 for place in span[:2]), span[2]) for span in rest] for rest in all_spans(length - 1)]  # the first token is O
    for size in range(1, length + 1):
        rests = [[Span(span.start + size, span.end + size, span.label) for span in rest] for rest in all_spans(length - size)]
        found += [[Span(0, size, label), *rest] for label in "AB" for rest in rests]
    return found


def written(spans, length, scheme):
    """Slowly, by the definition of each scheme."""
    tags = ["O"] * length
    for span in spans:
        beside = any(other.end == span.start and other.label == span.label for other in spans)
        for place in range(span.start, span.end):
            first, last = place == span.start, place == span.end - 1
            letter = {
                IOB2: "B" if first else "I",
                IOB1: "B" if first and beside else "I",
                BIOES: "S" if first and last else "B" if first else "E" if last else "I",
            }[scheme]
            tags[place] = f"{letter}-{span.label}"
    return tags


def test_a_mixture_follows_none():
    assert scheme_of([["B-A", "O"], ["I-A"]]) is None  # the B- is not beside an A, the I- has none before it
    assert first_broken(["O", "I-A"], IOB2) == 1 and first_broken(["O", "B-A"], IOB1) == 1 and first_broken(["O", "B-A"], BIOES) == 1


def test_random_spans_come_back():
    draw = random.Random(0)
    for _ in range(100):
        spans, at = [], 0
        while at < 12:
            begin = at + draw.randint(0, 3)
            spans.append(Span(begin, begin + draw.randint(1, 4), draw.choice("AB")))
            at = spans[-1].end
        assert spans_of(tags_of(spans, at)) == spans


@pytest.mark.parametrize("tag", ["PER", "B_PER", "B-", "X-PER", "", "per-B", "o"])
def test_what_is_no_tag_is_refused(tag):
    with pytest.raises(UserError, match="is no BIO tag: write O, or B-LABEL and I-LABEL"):
        parted(tag)


def test_labels_keep_their_hyphens():
    assert label_set(["B-creative-work", "O", "I-creative-work", "B-PER"]) == ["PER", "creative-work"]
    assert tag_names(["PER"]) == ["O", "B-PER", "I-PER"]
