"""Tags of tokens: which begin an entity, which go on with it; the schemes that they follow, and the entities that they tell of."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..errors import UserError

OUTSIDE = "O"
IOB2, IOB1, BIOES = SCHEMES = ("IOB2", "IOB1", "BIOES")
BEGIN, INSIDE = "B", "I"
_ALIKE = {"L": "E", "U": "S"}  # BILOU's last and unit are BIOES's end and single


class Span(NamedTuple):
    """An entity: where it begins, where it has ended, counted in tokens or in characters, and what it is."""

    start: int
    end: int
    label: str


def parted(tag: str) -> tuple[str, str]:
    """A tag's prefix, one of B, I, E, S and O, and its label, which O has not. Raises UserError for what is no such tag.

    >>> parted("B-creative-work"), parted("U-PER"), parted("O")
    (('B', 'creative-work'), ('S', 'PER'), ('O', ''))
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    prefix, dash, label = tag.partition("-")
    prefix = _ALIKE.get(prefix, prefix)
    if not dash or not label or prefix not in ("B", "I", "E", "S"):
        raise UserError(f"{tag!r} is no BIO tag: write {OUTSIDE}, or B-LABEL and I-LABEL, as B-PER")
    return prefix, label


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The entities of tags of any scheme, as seqeval reads them, which is as conlleval did: an I- that nothing goes before begins one.

    >>> spans_of(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [Span(start=0, end=2, label='PER'), Span(start=3, end=4, label='LOC'), Span(start=4, end=5, label='LOC')]
    """
    found, begun, of, before = [], None, "", OUTSIDE
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, label = parted(tag)
        if begun is not None and (prefix in ("O", "B", "S") or before in ("E", "S") or label != of):
            found.append(Span(begun, place, of))
            begun = None
        if prefix != OUTSIDE and begun is None:
            begun, of = place, label
        before = prefix
    return found


def tags_of(spans: Iterable[Span], length: int) -> list[str]:
    """The tags of so many tokens, in IOB2, of entities that do not overlap."""
    tags = [OUTSIDE] * length
    for start, end, label in spans:
        tags[start:end] = [f"{BEGIN}-{label}", *[f"{INSIDE}-{label}"] * (end - start - 1)]
    return tags


def first_broken(tags: Sequence[str], scheme: str) -> int | None:
    """The place of the first tag that cannot stand there by a scheme; None where all can.

    In IOB2 every entity begins with B-; in IOB1 B- stands only where an entity of the same label has just ended; in BIOES the last token has E-, a lone one S-.
    """
    before, label_before = OUTSIDE, ""
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, label = parted(tag)
        goes_on = label == label_before and before in ("B", "I")
        wrong = {
            IOB2: prefix in ("E", "S") or prefix == "I" and not goes_on,
            IOB1: prefix in ("E", "S") or prefix == "B" and not goes_on,
            BIOES: (prefix in ("I", "E")) != (before in ("B", "I")) or prefix in ("I", "E") and not goes_on,
        }[scheme]
        if wrong:
            return min(place, len(tags) - 1)
        before, label_before = prefix, label
    return None


def scheme_of(sentences: Iterable[Sequence[str]]) -> str | None:
    """The scheme that all tags of some sentences follow, IOB2 where it could be several; None where they follow none."""
    fitting = list(SCHEMES)
    for tags in sentences:
        fitting = [scheme for scheme in fitting if first_broken(tags, scheme) is None]
    return fitting[0] if fitting else None


def label_set(tags: Iterable[str]) -> list[str]:
    """The labels of some tags, by the alphabet."""
    return sorted({label for _, label in map(parted, tags) if label})


def tag_names(labels: Iterable[str]) -> list[str]:
    """The tags that a model tells apart: O, and of each label, in their order, B- and I-."""
    return [OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in (BEGIN, INSIDE))]
