"""Losses of a reward model: the better answer should score higher, and scores should not drift."""

import torch.nn.functional as F
from torch import Tensor


def ranking_loss(better: Tensor, worse: Tensor, margins: Tensor | None = None) -> Tensor:
    """-log sigmoid(better - worse - margin), the negative log-likelihood of the judgement under Bradley and Terry.

    better and worse are scores, [pairs], so are margins, by how much the better should lead, and the result; of a ranking of K answers give all
    its pairs and divide by their number. Ouyang et al. 2022, "Training language models to follow instructions", eq. 1; the margin is that of
    Touvron et al. 2023, "Llama 2", eq. 2. Raises ValueError where the shapes differ.
    """
    _check(better=better, worse=worse, **({} if margins is None else {"margins": margins}))
    lead = better - worse
    return -F.logsigmoid(lead if margins is None else lead - margins)


def centring(better: Tensor, worse: Tensor) -> Tensor:
    """(better + worse)^2, which draws a pair's scores to lie about 0: Bradley and Terry see differences only, and leave the level free.

    All are [pairs]; the caller weights it, takes the mean and adds it to the ranking loss, as trl's `center_rewards_coefficient` does.
    Eisenstein et al. 2023, "Helping or Herding?". Raises ValueError where the shapes differ.
    """
    _check(better=better, worse=worse)
    return (better + worse).square()


def _check(**tensors: Tensor) -> None:
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) > 1:
        raise ValueError(f"scores of pairs must all be [pairs], got {shapes}")  # [pairs, 1] against [pairs] would compare every two
