"""Several short records in one row, and rows laid end to end without padding."""

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

Row = dict[str, list[int]]  # input_ids, labels; packed rows also lengths


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put each length into the fullest bin that still holds it, longest first; each bin is a list of indices into `lengths`.

    Ding et al. 2024, "Fewer Truncations Improve Language Modeling", best-fit-decreasing. By hand, as trl's `pack_dataset` packs whole Arrow tables
    and cuts what is too long: here rows of a stream are packed too, and ours raises ValueError for a length above the capacity.

    >>> best_fit_decreasing([3, 7, 5, 4], capacity=10)
    [[1, 0], [2, 3]]
    """
    order, ends = best_fit_order(np.asarray(lengths, dtype=np.int64), capacity)
    return [chosen.tolist() for chosen in np.split(order, ends[:-1])] if len(order) else []


def best_fit_order(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The bins of `best_fit_decreasing` one behind the other, and where each ends: [lengths] and [bins] int64, a few numbers a length in memory."""
    by_length = np.argsort(-lengths, kind="stable")
    bin_of = np.empty(len(lengths), dtype=np.int32)  # of each, in that order
    by_room: dict[int, list[int]] = {}  # room left -> bins with just that room
    rooms: list[int] = []  # its keys, sorted
    bins = 0
    for place, length in enumerate(map(int, lengths[by_length])):
        if length > capacity:
            raise ValueError(f"a record of {length} tokens does not fit into rows of {capacity}")
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            chosen, room = bins, capacity
            bins += 1
        else:
            room = rooms[at]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        bin_of[place] = chosen
        left = room - length
        if left not in by_room:
            by_room[left] = []
            bisect.insort(rooms, left)
        by_room[left].append(chosen)
    return by_length[np.argsort(bin_of, kind="stable")], np.cumsum(np.bincount(bin_of, minlength=bins))


def pack(rows: Sequence[Row], capacity: int) -> list[Row]:
    """Join rows end to end into rows of at most `capacity` tokens; `lengths` keeps the records' borders.

    >>> pack([{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3], "labels": [-100]}], capacity=4)
    [{'input_ids': [1, 2, 3], 'labels': [-100, 2, -100], 'lengths': [2, 1]}]
    """
    bins = best_fit_decreasing([len(row["input_ids"]) for row in rows], capacity)
    return [joined([rows[index] for index in chosen]) for chosen in bins]


def pack_window(rows: Iterable[Row], capacity: int, window: int = 1000) -> Iterator[Row]:
    """Pack a stream, `window` rows at a time. Raises ValueError for a window below 1, or a row longer than the capacity."""
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    rows = iter(rows)
    while some := list(itertools.islice(rows, window)):
        yield from pack(some, capacity)


def joined(rows: Sequence[Row]) -> Row:
    """One row of several."""
    end_to_end = {key: list(itertools.chain.from_iterable(row[key] for row in rows)) for key in ("input_ids", "labels")}
    return {**end_to_end, "lengths": [len(row["input_ids"]) for row in rows]}


def collate(features: Sequence[Row]) -> dict[str, Any]:
    """All records of the features end to end in one sequence, with nothing between and no padding.

    input_ids, labels and position_ids are [1, total] int64, the positions restarting with each record; cu_seq_lens_q and cu_seq_lens_k are
    int32 [records + 1], the borders; max_length_q and max_length_k the longest record, as transformers' FlashAttentionKwargs names them.
    A feature without `lengths` is one record.
    """
    lengths = [length for feature in features for length in feature.get("lengths") or [len(feature["input_ids"])]]
    borders = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)  # [records + 1]
    positions = torch.cat([torch.arange(length) for length in lengths])
    return {
        "input_ids": flat(features, "input_ids"),  # [1, total]
        "labels": flat(features, "labels"),
        "position_ids": positions[None],
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def flat(features: Sequence[Row], key: str) -> torch.Tensor:
    """What the features have under a key, end to end: [1, total] int64."""
    return torch.tensor([list(itertools.chain.from_iterable(feature[key] for feature in features))], dtype=torch.int64)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """What rows are padded with; 0 where the tokenizer has nothing for it: no token sees it."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def collate_padded(features: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """One record a row, padded on the right: input_ids, labels and attention_mask, each [records, longest] int64.

    The padding is known by length, never by id, so a pad token that is also the end-of-turn token stays learnable. Packed rows are taken apart.
    """
    records = [record for feature in features for record in records_of(feature)]
    return {**padded_rows([record["input_ids"] for record in records], pad_token_id), "labels": pad_right([record["labels"] for record in records], -100)}


def padded_rows(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows of ids padded on the right: input_ids and attention_mask, each [rows, longest] int64."""
    return {"input_ids": pad_right(rows, pad_token_id), "attention_mask": pad_right([[1] * len(row) for row in rows], 0)}


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    """Rows filled up behind their ends, [rows, longest] int64."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows], dtype=torch.int64)


def records_of(feature: Row) -> Iterator[Row]:
    """The records of a row, packed or not, each with its own `input_ids` and `labels`."""
    start = 0
    for length in feature.get("lengths") or [len(feature["input_ids"])]:
        yield {key: list(feature[key][start : start + length]) for key in ("input_ids", "labels")}
        start += length
