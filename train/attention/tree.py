"""A prompt computed once, its answers as branches that see the prompt and themselves: the attention, and the layout of a batch.

Laid end to end, a group is the prompt and then each branch; every branch begins at the position behind the prompt, so that its tokens
come out as if it stood there alone (tree attention: Miao et al. 2024, "SpecInfer"; Cai et al. 2024, "Medusa").
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...infer.runners.attention import attend
from ...infer.runners.packed_records import attend_records

Group = tuple[int, tuple[int, ...]]  # tokens of the prompt, tokens of each branch
Tree = tuple[Group, ...]

BRANCH_PADDING = 1.25  # branches share a call where padding them to the longest costs no more than this: each also repeats its prompt


def attend_tree(query: Tensor, key: Tensor, value: Tensor, tree: Tree, **settings) -> Tensor:
    """Attend within each group: prompts to themselves, a branch to its prompt and itself, everything causally.

    query is [1, heads, total, d], key and value [1, kv_heads, total, d]; `settings` are those of `attend`. Returns [1, heads, total, d_v].
    """
    sizes = tuple(prompt + sum(branches) for prompt, branches in tree)
    if all(len(branches) < 2 for _, branches in tree):  # a prompt with one answer is a record like any other
        return attend_records(query, key, value, sizes, **settings)
    parts = zip(tree, *(x.split(sizes, dim=2) for x in (query, key, value)), strict=True)
    out = [piece for group, *qkv in parts for piece in _attend_group(*qkv, *group, **settings)]
    return torch.cat(out, dim=2)


def _attend_group(query: Tensor, key: Tensor, value: Tensor, prompt: int, lengths: tuple[int, ...], **settings) -> list[Tensor]:
    context, *branches = zip(*(x.split([prompt, *lengths], dim=2) for x in (query, key, value)), strict=True)
    out = [attend(*context, **settings)]
    branches = [(branch, length) for branch, length in zip(branches, lengths, strict=True) if length]
    _, keys, values = context
    longest, count = max(lengths, default=0), len(branches)
    if count > 1 and count * longest <= BRANCH_PADDING * sum(lengths):
        padded = [torch.cat([F.pad(x, (0, 0, 0, longest - x.shape[2])) for x in some]) for some in zip(*(b for b, _ in branches), strict=True)]
        together = attend(
            padded[0],
            torch.cat([keys.expand(count, -1, -1, -1), padded[1]], dim=2),
            torch.cat([values.expand(count, -1, -1, -1), padded[2]], dim=2),
            past=prompt,
            **settings,
        )  # what is padded stands behind the branch, where none of its tokens looks
        return out + [part[None, :, :length] for part, (_, length) in zip(together, branches, strict=True)]
    for (q, k, v), _ in branches:
        out.append(attend(q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2), past=prompt, **settings))
    return out


def collate_branches(rows: Sequence[dict[str, Any]], keep_last: bool = False) -> dict[str, Any]:
    """Lay rows of `prompt_ids` and `branches` (token ids of each answer) end to end.

    A branch's last token predicts nothing and is left out, unless `keep_last`, which a model that scores whole answers wants.
    input_ids and position_ids are [1, total]; `tree` says where prompts and branches lie. For each answer token of all branches, in
    their order, `predictors` [answer tokens] is the place that predicts it and `targets` [answer tokens] its id; `branch_lengths`
    counts them by branch, `ends` [branches] are the places of the last tokens (of the last token but one without `keep_last`).

    >>> batch = collate_branches([{"prompt_ids": [5, 6], "branches": [[7, 8], [9]]}], keep_last=True)
    >>> batch["input_ids"].tolist(), batch["position_ids"].tolist(), batch["tree"]
    ([[5, 6, 7, 8, 9]], [[0, 1, 2, 3, 2]], ((2, (2, 1)),))
    >>> batch["predictors"].tolist(), batch["targets"].tolist(), batch["ends"].tolist()
    ([1, 2, 1], [7, 8, 9], [3, 4])
    """
    ids: list[int] = []
    positions: list[int] = []
    tree: list[Group] = []
    predictors: list[int] = []
    ends: list[int] = []
    for row in rows:
        prompt = row["prompt_ids"]
        last_of_prompt = len(ids) + len(prompt) - 1
        ids += prompt
        positions += range(len(prompt))
        shown = [branch if keep_last else branch[:-1] for branch in row["branches"]]
        for branch, seen in zip(row["branches"], shown, strict=True):
            predictors += [last_of_prompt, *range(len(ids), len(ids) + len(branch) - 1)]
            ids += seen
            positions += range(len(prompt), len(prompt) + len(seen))
            ends.append(len(ids) - 1 if seen else last_of_prompt)
        tree.append((len(prompt), tuple(map(len, shown))))
    branches = [branch for row in rows for branch in row["branches"]]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "tree": tuple(tree),
        "predictors": torch.tensor(predictors),
        "targets": torch.tensor([id for branch in branches for id in branch]),
        "branch_lengths": tuple(map(len, branches)),
        "ends": torch.tensor(ends),
    }


def collate_padded_branches(rows: Sequence[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
    """The same answers for an architecture whose attention cannot be replaced: each behind a copy of its prompt, padded on the right.

    input_ids and attention_mask are [branches, longest]; `predictors` and `ends` count places row after row, as in the flattened batch.
    """
    whole = [row["prompt_ids"] + branch for row in rows for branch in row["branches"]]
    prompts = [len(row["prompt_ids"]) for row in rows for _ in row["branches"]]
    longest = max(map(len, whole))
    starts = [longest * i for i in range(len(whole))]
    return {
        "input_ids": torch.tensor([ids + [pad_token_id] * (longest - len(ids)) for ids in whole]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in whole]),
        "predictors": torch.tensor([s + i for s, p, ids in zip(starts, prompts, whole, strict=True) for i in range(p - 1, len(ids) - 1)]),
        "targets": torch.tensor([id for p, ids in zip(prompts, whole, strict=True) for id in ids[p:]]),
        "branch_lengths": tuple(len(ids) - p for p, ids in zip(prompts, whole, strict=True)),
        "ends": torch.tensor([s + len(ids) - 1 for s, ids in zip(starts, whole, strict=True)]),
    }


def sum_by_branch(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Sum [answer tokens] over each branch: [branches]."""
    index = torch.repeat_interleave(torch.arange(len(lengths), device=values.device), torch.tensor(lengths, device=values.device))
    return values.new_zeros(len(lengths)).index_add(0, index, values)


def offsets(lengths: Sequence[int]) -> list[int]:
    """Where each branch's answer tokens begin."""
    return [0, *accumulate(lengths)][:-1]
