"""Rows of sources and targets: several short pairs in one row, and rows laid end to end without padding, or padded on the right."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..labels import IGNORE_INDEX
from ..packing import flat, pad_right, padded_rows

Row = dict[str, Any]  # input_ids; decoder_input_ids and labels, of one length; packed rows also lengths and target_lengths
TARGET = ("decoder_input_ids", "labels")
WINDOW = 10_000  # rows that are packed together: each is compared with all that are open


def best_fit_of_two(sizes: Sequence[tuple[int, int]], capacities: tuple[int, int]) -> list[list[int]]:
    """Put each pair of lengths into the fullest bin that still holds both, the largest first; each bin is a list of indices into `sizes`.

    How large a pair is, and how full a bin, is said by the greater share of its two capacities, then by their sum. Best-fit-decreasing, as
    `best_fit_decreasing`, of vectors. Raises ValueError for a length above its capacity.

    >>> best_fit_of_two([(3, 1), (7, 2), (2, 8), (3, 2)], capacities=(10, 10))
    [[2, 0, 3], [1]]
    """
    room, bins = np.zeros((len(sizes), 2)), []
    lengths = np.array(sizes, dtype=np.float64).reshape(-1, 2)
    if (lengths > capacities).any():
        at = int((lengths > capacities).any(axis=1).argmax())
        raise ValueError(f"a pair of {sizes[at][0]} source and {sizes[at][1]} target tokens does not fit into rows of {capacities[0]} and {capacities[1]}")
    shares = lengths / capacities
    order = np.lexsort((np.arange(len(sizes)), -shares.sum(axis=1), -shares.max(axis=1)))
    for index in order.tolist():
        left = room[: len(bins)] - lengths[index]
        fits = np.flatnonzero((left >= 0).all(axis=1))
        if len(fits):
            emptiness = (left[fits] / capacities).sum(axis=1)
            chosen = int(fits[emptiness.argmin()])
            bins[chosen].append(index)
        else:
            chosen = len(bins)
            bins.append([index])
            room[chosen] = capacities
        room[chosen] -= lengths[index]
    return bins


def pack_seq2seq(rows: Sequence[Row], source_capacity: int, target_capacity: int) -> list[Row]:
    """Join pairs end to end into rows of at most so many source and so many target tokens; `lengths` and `target_lengths` keep the borders.

    >>> pack_seq2seq([{"input_ids": [5, 6], "decoder_input_ids": [0, 7], "labels": [7, 1]}, {"input_ids": [8], "decoder_input_ids": [0], "labels": [1]}], 4, 4)
    [{'input_ids': [5, 6, 8], 'decoder_input_ids': [0, 7, 0], 'labels': [7, 1, 1], 'lengths': [2, 1], 'target_lengths': [2, 1]}]
    """
    packed = []
    for start in range(0, len(rows), WINDOW):
        some = rows[start : start + WINDOW]
        sizes = [(len(row["input_ids"]), len(row["labels"])) for row in some]
        packed += [_joined([some[index] for index in chosen]) for chosen in best_fit_of_two(sizes, (source_capacity, target_capacity))]
    return packed


def pack_alike(rows: Sequence[Row], pairs: int) -> list[Row]:
    """Join pairs of like lengths, so many to a row and fewer in the last: attention takes the pairs of a row in one call or few.

    Short pairs learn so in the least time, a step's rows being drawn at random; `pack_seq2seq` fills rows by tokens. Raises ValueError for less than one pair.

    >>> row = lambda n: {"input_ids": [5] * n, "decoder_input_ids": [0], "labels": [1]}
    >>> [packed["lengths"] for packed in pack_alike([row(3), row(1), row(2), row(1)], 2)]
    [[1, 1], [2, 3]]
    """
    if pairs < 1:
        raise ValueError(f"a row holds at least one pair, got {pairs}")
    ordered = sorted(rows, key=lambda row: (len(row["labels"]), len(row["input_ids"])))
    return [_joined(ordered[start : start + pairs]) for start in range(0, len(ordered), pairs)]


def _joined(rows: Sequence[Row]) -> Row:
    joined = {key: list(itertools.chain.from_iterable(row[key] for row in rows)) for key in ("input_ids", *TARGET)}
    return {**joined, "lengths": [len(row["input_ids"]) for row in rows], "target_lengths": [len(row["labels"]) for row in rows]}


def lengths_of(row: Row) -> tuple[list[int], list[int]]:
    """How many tokens the sources and the targets of a row have, packed or not."""
    return row.get("lengths") or [len(row["input_ids"])], row.get("target_lengths") or [len(row["labels"])]


def collate_pairs(features: Sequence[Row]) -> dict[str, torch.Tensor]:
    """All pairs of the features end to end, with nothing between and no padding.

    input_ids is [1, total of sources], decoder_input_ids and labels are [1, total of targets], source_lengths and target_lengths [pairs], all int64.
    """
    sources, targets = (list(itertools.chain.from_iterable(lengths)) for lengths in zip(*map(lengths_of, features), strict=True))
    ids = {key: flat(features, key) for key in ("input_ids", *TARGET)}
    return {**ids, "source_lengths": torch.tensor(sources), "target_lengths": torch.tensor(targets)}


def collate_padded_pairs(features: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """One pair a row, padded on the right: input_ids and attention_mask [pairs, longest source], decoder_input_ids and labels [pairs, longest target].

    The padding is known by length, never by id: T5 begins each target with its pad token. Padded targets stand behind, where no token looks. Packed rows
    are taken apart.
    """
    pairs = [pair for feature in features for pair in pairs_of(feature)]
    sources = padded_rows([pair["input_ids"] for pair in pairs], pad_token_id)
    fills = zip(TARGET, (pad_token_id, IGNORE_INDEX), strict=True)
    return {**sources, **{key: pad_right([pair[key] for pair in pairs], fill) for key, fill in fills}}


def pairs_of(row: Row) -> Iterator[Row]:
    """The pairs of a row, packed or not, each with its own `input_ids`, `decoder_input_ids` and `labels`."""
    source = target = 0
    for size, said in zip(*lengths_of(row), strict=True):
        yield {"input_ids": list(row["input_ids"][source : source + size]), **{key: list(row[key][target : target + said]) for key in TARGET}}
        source, target = source + size, target + said
