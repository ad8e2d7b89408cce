"""trl's batches of padded lines, and the groups of answers to one prompt that they hold."""

from collections.abc import Iterator
from itertools import compress, groupby
from typing import Any

import torch
from torch import Tensor

PromptGroup = tuple[list[int], list[tuple[int, list[int]]]]  # a prompt's ids; each answer's line in the batch, and its ids


def group_by_prompt(input_ids: Tensor, attention_mask: Tensor, answer_length: int) -> list[PromptGroup]:
    """The lines of a batch by their prompts, in the order in which these first come; lines without an answer token are left out.

    input_ids and attention_mask are [lines, prompts + answer_length], prompts padded on the left, answers on the right.
    """
    border = input_ids.shape[1] - answer_length
    found: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
    for line, (ids, seen) in enumerate(zip(input_ids.tolist(), attention_mask.tolist(), strict=True)):
        answer = list(compress(ids[border:], seen[border:]))
        if answer:
            found.setdefault(tuple(compress(ids[:border], seen[:border])), []).append((line, answer))
    return [(list(prompt), answers) for prompt, answers in found.items()]


def branch_batches(groups: list[PromptGroup], size: int) -> Iterator[list[dict[str, Any]]]:
    """Rows for `collate_branches`, at most `size` answers at a time, as few prompts as may be in two parts."""
    flat = [(i, answer) for i, (_, answers) in enumerate(groups) for _, answer in answers]
    for start in range(0, len(flat), size):
        by_group = groupby(flat[start : start + size], key=lambda pair: pair[0])
        yield [{"prompt_ids": groups[i][0], "branches": [answer for _, answer in some]} for i, some in by_group]


def answer_indices(groups: list[PromptGroup], answer_length: int, device: torch.device) -> Tensor:
    """Where in [lines, answer_length], read as one row, each answer token belongs: [answer tokens]."""
    places = [line * answer_length + i for _, answers in groups for line, answer in answers for i in range(len(answer))]
    return torch.tensor(places, device=device)


def scatter_answers(values: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """Put values [answer tokens] to their places in a batch of zeros."""
    return values.new_zeros(shape[0] * shape[1]).index_copy(0, places, values).view(shape)


def regroup(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same lines, cut into the same number of parts, those of one prompt beside each other in the order in which prompts first come."""
    lines = {name: torch.cat([part[name] for part in parts]) for name, value in parts[0].items() if isinstance(value, Tensor) and value.dim()}
    prompts = list(map(tuple, torch.cat([lines["prompt_mask"], lines["prompt_ids"]], dim=1).tolist()))
    first = {prompt: i for i, prompt in reversed(list(enumerate(prompts)))}
    order = torch.tensor(sorted(range(len(prompts)), key=lambda i: first[prompts[i]]))
    sorted_lines = {name: value[order.to(value.device)].chunk(len(parts)) for name, value in lines.items()}
    return [{**part, **{name: value[i] for name, value in sorted_lines.items()}} for i, part in enumerate(parts)]
