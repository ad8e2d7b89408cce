"""What an encoder learns by from texts that belong together: each anchor is to be nearest to its own, among all texts of the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(anchors: Tensor, candidates: Tensor, left_out: Tensor, temperature: float, symmetric: bool = False) -> Tensor:
    """The loss of each anchor, [n]: minus the log of the share that its own candidate has of all, by exp(cosine / temperature).

    anchors is [n, d], candidates [m, d], of which the first n are the anchors' own and the others hard negatives; `left_out` [n, m] says which count
    for nothing beside an anchor. This is InfoNCE (van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding"), with the
    negatives of the batch (Henderson et al. 2017, section 4.4) sentence-transformers' MultipleNegativesRankingLoss at the scale 1 / temperature. `symmetric`
    is the mean with the loss of each own candidate among the anchors (Radford et al. 2021, "CLIP").
    """
    n = len(anchors)
    scores = F.normalize(anchors, dim=-1) @ F.normalize(candidates, dim=-1).T / temperature  # [n, m]
    scores = scores.masked_fill(left_out, -torch.inf)
    own = torch.arange(n, device=scores.device)
    losses = F.cross_entropy(scores, own, reduction="none")
    return (losses + F.cross_entropy(scores[:, :n].T, own, reduction="none")) / 2 if symmetric else losses
