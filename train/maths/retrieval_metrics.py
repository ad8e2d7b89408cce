"""How well vectors find what belongs together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...infer.kernels.device import in_float64
from .classification_metrics import pearson, ranks

BLOCK = 1024  # queries compared at a time


def places(queries: Tensor, documents: Tensor, own: Sequence[int], beside: Sequence[Sequence[int]]) -> Tensor:
    """The place, from 1 on, of each query's own document among all by cosine, [n]; one as near as it stands before it.

    queries is [n, d], documents [m, d], both of length 1; own[i] is the document of query i, and beside[i] are others that take no part in it.
    """
    found = []
    for begin in range(0, len(queries), BLOCK):
        scores = queries[begin : begin + BLOCK] @ documents.T
        some = range(begin, begin + len(scores))
        rows = torch.arange(len(scores))
        target = torch.tensor([own[i] for i in some])
        nearest = scores[rows, target, None].clone()
        for row, i in enumerate(some):
            scores[row, list(beside[i])] = -torch.inf
        scores[rows, target] = -torch.inf
        found.append(1 + (scores >= nearest).sum(1))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def retrieval_metrics(place: Tensor, k: int) -> dict[str, float]:
    """Of the places of own documents, [n]: the share that stand first (recall@1) and among the first k, and the mean of 1 / place (MRR)."""
    at_k = {} if k == 1 else {f"recall@{k}": in_float64(place <= k).mean().item()}
    return {"recall@1": in_float64(place == 1).mean().item(), **at_k, "mrr": (1 / in_float64(place)).mean().item()}


def spearman(x: Tensor, y: Tensor) -> float:
    """The correlation of ranks, those of equal values their mean; no number (NaN) where one of both has a single value."""
    return pearson(ranks(in_float64(x)), ranks(in_float64(y)))
