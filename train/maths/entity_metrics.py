"""How well entities are found: one is right where its borders and its label are those of a true one, as seqeval counts."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ...data.tagging.schemes import Span
from .classification_metrics import ClassifierMetrics, class_scores, macro_f1


def entity_decisions(truth: Collection[Span], predicted: Collection[Span], labels: Mapping[str, int]) -> Tensor:
    """Of each label how many entities of a text were found rightly, found wrongly and missed: [labels, 3] int64; `labels` are their places."""
    found = torch.zeros(len(labels), 3, dtype=torch.int64)
    truth, predicted = set(truth), set(predicted)
    for column, spans in enumerate((truth & predicted, predicted - truth, truth - predicted)):
        for span in spans:
            found[labels[span.label], column] += 1
    return found


def decisions_over(texts: Iterable[tuple[Collection[Span], Collection[Span]]], labels: Sequence[str]) -> Tensor:
    """The same over texts, each its true and its predicted entities."""
    places = {label: place for place, label in enumerate(labels)}
    return sum((entity_decisions(*each, places) for each in texts), torch.zeros(len(labels), 3, dtype=torch.int64))


def entity_metrics(found: Tensor) -> ClassifierMetrics:
    """What decisions, [labels, 3], come to: precision, recall and F1 of all entities together (micro), and the mean F1 of the labels that occur (macro).

    That is seqeval's `classification_report` in its default mode, in which CoNLL's shared tasks were measured; with tags in IOB2 on both sides
    its strict mode gives the same.
    """
    micro = class_scores(found.sum(0))
    values = {"precision": micro.precision.item(), "recall": micro.recall.item(), "f1": micro.f1.item(), "macro_f1": macro_f1(found)}
    return ClassifierMetrics(values, found)
