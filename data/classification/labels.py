"""Labels: what a column holds, as the names or the number that a classifier learns, and which names there are."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from numbers import Real
from typing import Any

from ..errors import UserError
from ..json_text import parsed

SINGLE, MULTI, REGRESSION = PROBLEMS = ("single_label_classification", "multi_label_classification", "regression")  # as transformers calls them
SEPARATOR = ","  # between several labels in one text
Label = str | tuple[str, ...] | float


def parse_label(value: Any, problem: str, where: str) -> Label | None:
    """A column's value as the name of a class, the names of several, or a number; None where nothing stands there.

    Raises UserError for what is no label of such a problem, with the option that it may be one of.

    >>> parse_label(3.0, SINGLE, ""), parse_label("news, sport", MULTI, ""), parse_label("-0.5", REGRESSION, "")
    ('3', ('news', 'sport'), -0.5)
    """
    if value is None or isinstance(value, str) and not value.strip() and problem != MULTI:
        return None
    if problem == REGRESSION:
        return _number(value, where)
    if problem == MULTI:
        names = tuple(_name(each, where) for each in _several(value, where))
        if doubled := next((name for name, count in Counter(names).items() if count > 1), None):
            raise UserError(f"{where}: the label {doubled!r} stands there twice")
        return names
    return _name(value, where)


def _number(value: Any, where: str) -> float:
    try:
        number = float(value) if isinstance(value, (str, Real)) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if number is None:
        raise UserError(f"{where}: the label is {value!r:.60}, no number: name another column by --label_column, or leave --regression out")
    if not math.isfinite(number):
        raise UserError(f"{where}: the label is {str(value):.60}, which nothing can be learned from: mend the record or leave it out")
    return number


def _several(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, str):
        if not value.strip().startswith("["):
            return [part.strip() for part in value.split(SEPARATOR) if part.strip()]
        try:
            value = parsed(value)
        except json.JSONDecodeError as error:
            raise UserError(f"{where}: the label {value!r:.60} begins as a JSON list and is none: {error}") from None
    if isinstance(value, (list, tuple)):
        return value
    return [value]


def _name(value: Any, where: str) -> str:
    """The name of a class; a number without a fraction is written without one, as a table may have made 3 into 3.0."""
    if isinstance(value, (list, tuple)):
        raise UserError(f"{where}: the label is a list, {value!r:.60}: give --multi_label where a record has several labels")
    if isinstance(value, (str, bool, int)):
        return str(value)
    if isinstance(value, Real) and not math.isfinite(value):
        raise UserError(f"{where}: the label is {value}, which names no class: mend the record or leave it out")
    if isinstance(value, Real):
        if value != int(value):
            raise UserError(f"{where}: the label {value} is a number with a fraction: give --regression to learn the number itself")
        return str(int(value))
    raise UserError(f"{where}: the label must be a text or a number, got {value!r:.60}")


def names_in(label: Label) -> tuple[str, ...]:
    """The names of the classes that a label is of: one, several, or, a number, none."""
    return (label,) if isinstance(label, str) else label if isinstance(label, tuple) else ()


def label_names(labels: Sequence[Label]) -> list[str]:
    """The names that occur, numbers by their size and anything else by the alphabet; of a regression none."""
    names = {name for label in labels for name in names_in(label)}
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    return sorted(names, key=int if numeric else str)


def label_counts(labels: Sequence[Label], names: Sequence[str]) -> list[int]:
    """How many records have each of the names."""
    counts = Counter(name for label in labels for name in names_in(label))
    return [counts[name] for name in names]


def check_classes(labels: Sequence[Label], names: Sequence[str], problem: str) -> None:
    """Raise UserError where the labels to train on leave a class without a record, or nothing to tell apart."""
    if problem == REGRESSION:
        if len(set(labels)) == 1:
            raise UserError(f"all {len(labels)} records have the label {labels[0]}: there is nothing to learn")
        return
    if problem == MULTI and not names:
        raise UserError(f"none of the {len(labels)} records has a label: there is nothing to learn")
    counts = label_counts(labels, names)
    if problem == SINGLE and sum(count > 0 for count in counts) < 2 and sum(counts) == len(labels):  # labels beside the names are refused with their records
        only = next(name for name, count in zip(names, counts, strict=True) if count)
        raise UserError(f"all {len(labels)} records have the label {only!r}: a classifier needs two classes at least")
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise UserError(f"no record to train on has the label {empty[0]!r}: add some, or leave the label out")
    if problem == MULTI and (full := [name for name, count in zip(names, counts, strict=True) if count == len(labels)]):
        raise UserError(f"all {len(labels)} records have the label {full[0]!r}: there is nothing to tell apart, leave the label out")


def to_target(label: Label, names: Sequence[str], problem: str, where: str) -> int | list[float] | float:
    """What a row keeps of a label: the place of its name, a 1 or a 0 a name, or the number. Raises UserError for a name that is not among them."""
    if problem == REGRESSION:
        return label
    given = (label,) if problem == SINGLE else label
    if unknown := [name for name in given if name not in names]:
        told = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(f"{where}: the label {unknown[0]!r} is none of those trained on ({told}): mend the record, or add records of that label to the training data")
    return names.index(label) if problem == SINGLE else [float(name in given) for name in names]


def class_weights(given: Sequence[str] | None, names: Sequence[str], counts: Sequence[int], records: int, problem: str) -> list[float] | None:
    """A weight a class: `balanced`, or numbers as NAME=WEIGHT or in the order of the names; None without.

    Balanced is records / (classes * count), King and Zeng 2001, as scikit-learn has it; of several labels (records - count) / count, by which a
    label's presence weighs as much as its absence. Raises UserError for what fits no class.
    """
    if not given:
        return None
    if problem == REGRESSION:
        raise UserError("class_weights is for classes, and --regression has none: leave it out")
    if list(given) == ["balanced"]:
        return [(records - count) / count if problem == MULTI else records / (len(names) * count) for count in counts]
    if all("=" in word for word in given):
        pairs = dict(word.rpartition("=")[::2] for word in given)
        if len(pairs) < len(given):
            raise UserError(f"class_weights names a class twice: {' '.join(given)}")
        if unknown := [name for name in pairs if name not in names]:
            raise UserError(f"class_weights {unknown[0]}={pairs[unknown[0]]}: there is no class {unknown[0]!r} among {', '.join(names)}")
        words = [pairs.get(name, "1") for name in names]
    elif len(given) == len(names):
        words = list(given)
    else:
        raise UserError(f"class_weights takes balanced, NAME=WEIGHT, or a number for each of the {len(names)} classes, got {' '.join(given)}")
    try:
        weights = [float(word) for word in words]
    except ValueError as error:
        raise UserError(f"class_weights: {error}: give numbers above 0, NAME=WEIGHT or balanced") from None
    if bad := [weight for weight in weights if not 0 < weight < math.inf]:
        raise UserError(f"class_weights must be above 0, got {bad[0]}")
    return weights
