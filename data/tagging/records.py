"""Records with a text and the entities in it: tokens with tags, or a text with places counted in characters."""

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ..columns import columns_by_option
from ..errors import UserError
from ..files.conll import conll_records, looks_like_conll
from ..files.sources import kind_of, records_of
from ..files.text_files import lines_of
from ..json_text import parsed
from ..surrogates import refuse_surrogates
from .schemes import IOB1, SCHEMES, Span, first_broken, parted, scheme_of, spans_of

KEYS = ("text", "label")
READ = ("text", "tokens", "words")  # what the column of a text, or of its tokens, is called where nobody says it
TAGS, ENTITIES, EITHER = ("tags", "ner_tags"), ("entities", "spans"), ("labels", "label")  # and that of the tags, or of the entities
BORDERS = (("start", "end"), ("start_offset", "end_offset"))  # the keys of an entity's places
CALLED = ("label", "type", "entity", "entity_group", "slot")  # and that of what it is
AUTO = "auto"


@dataclass(frozen=True)
class TaggedText:
    """A text, its words, [start, end) in characters, where the record has tokens that are words, and its entities, None where nobody says which."""

    where: str
    text: str
    entities: tuple[Span, ...] | None = None
    words: tuple[tuple[int, int], ...] | None = None

    @property
    def record(self) -> tuple[str, str]:
        """What tells its record from others, of a file of the same name too."""
        return self.where, self.text


@dataclass(frozen=True)
class TagColumns:
    """Which columns hold the text or the tokens, and the tags or the entities (None: one of the usual names), and how tags are read.

    `scheme` is one of `SCHEMES`, or "auto"; `tag_names` are what tags that are numbers are called, in their order.
    """

    text: str | None = None
    label: str | None = None
    scheme: str = AUTO
    tag_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str | None, label: str | None, columns: Sequence[str] | None, **how: Any) -> "TagColumns":
        """The columns that options name, each by its own or by KEY=COLUMN. Raises UserError for one that is named in both ways, and for other keys."""
        given = {key: (f"--{key}_column", column) for key, column in zip(KEYS, (text, label), strict=True)}
        return cls(**columns_by_option(columns, given, f"a tagger reads {' and '.join(KEYS)}"), **how)


def tagged_texts(
    sources: str | Sequence[str], columns: TagColumns = TagColumns(), encoding: str | None = None, split: str = "train", *, labelled: bool = True
) -> Iterator[TaggedText]:
    """The texts of files, folders or datasets on the hub, one after the other; a source of tokens is read whole, for all of it says what its tags mean.

    Tokens are joined by spaces; where one of a source is itself a space, they are its characters, and joined as they are. Where they need not be `labelled`
    a record without tags or entities is one, and so is a line of a .txt file. Raises UserError, naming the place, for what cannot be read.
    """
    empty = True
    for name in [sources] if isinstance(sources, str) else sources:
        records = _records(name, columns, encoding, split, labelled)
        first = next(records, None)
        if first is None:
            continue
        empty, records = False, chain([first], records)
        if _reads(first[1], columns, first[0])[1]:
            yield from _of_tokens(list(records), columns, labelled)
        else:
            yield from (_of_text(where, record, columns, labelled) for where, record in records)
    if empty:
        raise UserError(f"{', '.join([sources] if isinstance(sources, str) else sources)} has no records")


def _records(name: str, columns: TagColumns, encoding: str | None, split: str, labelled: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    path = Path(os.path.expanduser(name))
    kind = kind_of(path) if os.path.isfile(path) else ""
    if kind == ".txt" and labelled:
        raise UserError(f"{name}: a text a line has no entities: name it .conll if a line is a token and its tag, .jsonl if it is a record in JSON")
    if kind == ".txt":
        located = ((f"{path.name} line {number}", {"text": line.rstrip("\r\n")}) for number, line in enumerate(lines_of(path, encoding), 1) if line.strip())
    elif kind == ".tsv" and looks_like_conll(path, encoding):
        located = conll_records(path, encoding)
    else:
        located = records_of(name, encoding, {*READ, *TAGS, *ENTITIES, *EITHER, columns.text or "", columns.label or ""}, split, streaming=not labelled)
    for where, record in located:
        if not isinstance(record, Mapping):
            raise UserError(f"{where}: a record must be an object with a text and its entities, or tokens and their tags, got {record!r:.60}")
        refuse_surrogates(record, where)
        yield where, record


def _reads(record: Mapping[str, Any], columns: TagColumns, where: str) -> tuple[Any, bool]:
    """The text or the tokens of a record, and whether it is tokens. Raises UserError where it has neither."""
    names = [columns.text] if columns.text else [name for name in READ if name in record]
    if columns.text is None and columns.label is None and len(names) > 1 and isinstance(_listed(record.get("tags", record.get("ner_tags"))), list):
        names = names[1:]  # a text beside its tokens, whose tags are there
    if not names or names[0] not in record:
        asked = repr(columns.text) if columns.text else "'text' or 'tokens'"
        raise UserError(f"{where}: there is no column {asked} among {', '.join(map(str, record))[:200]}: {_remedy('text', columns.text, record)}")
    value = _listed(record[names[0]]) if names[0] != "text" else record[names[0]]
    if value is None:
        value = ""
    if isinstance(value, str):
        return value, False
    if isinstance(value, (list, tuple)) and all(isinstance(token, str) and token for token in value):
        return list(value), True
    raise UserError(f"{where}: {names[0]} must be a text, or a list of tokens that are texts and not empty, got {value!r:.60}")


def _label(record: Mapping[str, Any], columns: TagColumns, where: str, labelled: bool, usual: Sequence[str]) -> Any:
    """What stands in the column of the tags or entities, of `usual` names the first; None where nothing does and nothing must."""
    name = columns.label or next((name for name in usual if name in record), None)
    if name in record:
        value = _listed(record[name])
        if value is not None and not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: {name} must be a list of tags, or of entities, got {value!r:.60}: name another column by --label_column")
        return value
    if columns.label is None and not labelled:
        return None
    told = f"no column {columns.label!r}" if columns.label else "no column of tags or entities"
    raise UserError(f"{where}: there is {told} among {', '.join(map(str, record))[:200]}: {_remedy('label', columns.label, record)}")


def _remedy(key: str, asked: str | None, record: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(asked or "", list(map(str, record)), n=1)
    usual = next((name for name in (READ if key == "text" else (*TAGS, *ENTITIES, *EITHER)) if name in record and name != asked), None)
    meant = near[0] if near else usual
    return f"did you mean --{key}_column {meant}?" if meant else f"name it, as --{key}_column COLUMN"


def _listed(value: Any) -> Any:
    """A value as it is, or what a table's cell has as a JSON list."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parsed(value)
        except json.JSONDecodeError:
            return value
    return value


# Texts with places


def _of_text(where: str, record: Mapping[str, Any], columns: TagColumns, labelled: bool) -> TaggedText:
    text, tokens = _reads(record, columns, where)
    if tokens:
        raise UserError(f"{where}: this record has tokens, and the first one of its source a text: keep one kind a source")
    given = _label(record, columns, where, labelled, (*ENTITIES, *EITHER, *TAGS))
    if given and isinstance(given[0], (str, int)):
        raise UserError(f"{where}: there are tags and no tokens that they belong to: name the column of the tokens by --text_column")
    return TaggedText(where, text, None if given is None else entities_of(given, text, where))


def entities_of(given: Sequence[Any], text: str, where: str) -> tuple[Span, ...]:
    """The entities that a record names, by their places: {start, end, label} or [start, end, label], counted in characters, from 0, without the end.

    Raises UserError for places outside the text, for two that overlap, and where the record says what stands there and it is something else.

    >>> entities_of([{"start": 3, "end": 6, "label": "LOC"}], "In 서울역에서", "")
    (Span(start=3, end=6, label='LOC'),)
    """
    found = []
    for entity in given:
        start, end, label, said = _entity(entity, where)
        if not all(type(place) is int for place in (start, end)) or not isinstance(label, str) or not label.strip():
            raise UserError(f"{where}: an entity must have whole numbers as start and end and a label, got {entity!r:.100}")
        if not 0 <= start < end <= len(text):
            raise UserError(f"{where}: an entity goes from {start} to {end}, and the text has {len(text)} characters: count from 0, the end not included")
        if isinstance(said, str) and said != text[start:end]:
            raise UserError(f"{where}: from {start} to {end} stands {text[start:end]!r:.60}, and the entity is to be {said!r:.60}: count characters, not bytes")
        found.append(Span(start, end, label))
    found.sort()
    for one, other in zip(found, found[1:], strict=False):
        if other.start < one.end:
            told = " and ".join(f"{text[each.start : each.end]!r:.40} ({each.label}, {each.start} to {each.end})" for each in (one, other))
            raise UserError(f"{where}: the entities {told} overlap, and a token has one tag: leave one of them out")
    return tuple(found)


def _entity(entity: Any, where: str) -> tuple[Any, Any, Any, Any]:
    if isinstance(entity, (list, tuple)) and len(entity) == 3:
        return *entity, None
    if isinstance(entity, Mapping):
        start, end = next((pair for pair in BORDERS if pair[0] in entity), BORDERS[0])
        return entity.get(start), entity.get(end), next((entity[key] for key in CALLED if key in entity), None), entity.get("text")
    raise UserError(f"{where}: an entity must be {{start, end, label}} or [start, end, label], got {entity!r:.60}")


# Tokens with tags


def _of_tokens(records: Sequence[tuple[str, Mapping[str, Any]]], columns: TagColumns, labelled: bool) -> Iterator[TaggedText]:
    sentences = []
    for where, record in records:
        tokens, are = _reads(record, columns, where)
        if not are:
            raise UserError(f"{where}: this record has a text, and the first one of its source tokens: keep one kind a source")
        sentences.append((where, tokens, _tags(_label(record, columns, where, labelled, (*TAGS, *EITHER, *ENTITIES)), tokens, columns, where)))
    check_scheme([(where, tokens, tags) for where, tokens, tags in sentences if tags is not None], columns.scheme)
    joint = "" if any(token.isspace() for _, tokens, _ in sentences for token in tokens) else " "
    for where, tokens, tags in sentences:
        places = token_places(tokens, joint)
        spans = None if tags is None else tuple(Span(places[span.start][0], places[span.end - 1][1], span.label) for span in spans_of(tags))
        yield TaggedText(where, joint.join(tokens), spans, tuple(places) if joint else None)


def token_places(tokens: Sequence[str], joint: str) -> list[tuple[int, int]]:
    """Where tokens lie in the text that they are joined to.

    >>> token_places(["New", "York"], " ")
    [(0, 3), (4, 8)]
    """
    places, begin = [], 0
    for token in tokens:
        places.append((begin, begin + len(token)))
        begin += len(token) + len(joint)
    return places


def _tags(given: Any, tokens: Sequence[str], columns: TagColumns, where: str) -> list[str] | None:
    if given is None:
        return None
    if len(given) != len(tokens):
        raise UserError(f"{where}: {len(tokens)} tokens and {len(given)} tags: give each token its tag")
    tags = []
    for place, tag in enumerate(given):
        if type(tag) is int and tag in range(len(columns.tag_names)):
            tag = columns.tag_names[tag]
        if not isinstance(tag, str):
            remedy = "" if isinstance(tag, (Mapping, list)) else ": say what numbers mean by --tag_names O B-PER I-PER ..., in their order"
            raise UserError(f"{_at(where, place, tokens)}: a tag must be a text, got {tag!r:.60}{remedy}")
        try:
            parted(tag)
        except UserError as error:
            raise UserError(f"{_at(where, place, tokens)}: {error}") from None
        tags.append(tag)
    return tags


def check_scheme(sentences: Iterable[tuple[str, Sequence[str], Sequence[str]]], scheme: str = AUTO) -> None:
    """Raise UserError where the tags of some sentences, each (where, tokens, tags), do not follow a scheme; with "auto" they must follow one of them all.

    IOB1 that is asked for by name takes any B- and I-: an I- that nothing goes before begins an entity.
    """
    sentences = list(sentences)
    if scheme == AUTO and scheme_of(tags for _, _, tags in sentences) is not None:
        return
    ends = any(parted(tag)[0] in ("E", "S") for _, _, tags in sentences for tag in tags)
    wanted = scheme if scheme != AUTO else SCHEMES[2] if ends else SCHEMES[0]
    for where, tokens, tags in sentences:
        place = next((place for place, tag in enumerate(tags) if parted(tag)[0] in ("E", "S")), None) if wanted == IOB1 else first_broken(tags, wanted)
        if place is None:
            continue
        before = f"behind {tags[place - 1]}" if place else "at the beginning"
        remedy = "mend it" if ends or wanted == IOB1 else "mend it, or give --scheme IOB1, by which an I- may begin an entity"
        raise UserError(f"{_at(where, place, tokens)}: the tag {tags[place]} {before} is not {wanted}: {remedy}")


def _at(where: str, place: int, tokens: Sequence[str]) -> str:
    return f"{where}, token {place + 1} ({tokens[place]!r:.40})"
