"""Writes seqeval.json: random tags, and what seqeval 1.2.2 says of them. Run in an environment of its own, `pip install seqeval==1.2.2`."""

import json
import random
from pathlib import Path

from seqeval.metrics import classification_report
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2

LABELS = ["LOC", "ORG", "PER", "creative-work"]


def valid(draw, length):
    """Tags in IOB2."""
    tags = []
    while len(tags) < length:
        label, count = draw.choice(LABELS), draw.randint(1, 3)
        tags += [f"B-{label}", *[f"I-{label}"] * (count - 1)] if draw.random() < 0.4 else ["O"] * count
    tags = tags[:length]
    return tags


def noisy(draw, tags, prefixes):
    """The same with some tags drawn anew, whether they may stand there or not."""
    return [draw.choice(["O", *(f"{prefix}-{label}" for prefix in prefixes for label in LABELS)]) if draw.random() < 0.25 else tag for tag in tags]


def case(draw, make):
    truth, predicted = [], []
    for _ in range(draw.randint(2, 7)):
        tags = valid(draw, draw.randint(1, 9))
        truth.append(tags)
        predicted.append(make(draw, tags))
    found = {"truth": truth, "predicted": predicted, "report": classification_report(truth, predicted, output_dict=True, zero_division=0)}
    try:
        found["strict"] = classification_report(truth, predicted, output_dict=True, zero_division=0, mode="strict", scheme=IOB2)
    except ValueError:  # strict mode takes no tags of another scheme
        pass
    found["entities"] = [[[label, start, end + 1] for label, start, end in get_entities(tags)] for tags in predicted]
    return found


def main():
    draw, cases = random.Random(0), []
    makes = [lambda draw, tags: valid(draw, len(tags)), lambda draw, tags: noisy(draw, tags, "BI"), lambda draw, tags: noisy(draw, tags, "BIES")]
    for number in range(12):
        make = makes[number % 3]
        # half of the sentences rightly
        cases.append(case(draw, lambda draw, tags, make=make: list(tags) if draw.random() < 0.4 else make(draw, tags)))
    plain = lambda value: value.item() if hasattr(value, "item") else str(value)
    Path(__file__).with_name("seqeval.json").write_text(json.dumps(cases, default=plain) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
