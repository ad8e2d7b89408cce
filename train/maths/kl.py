"""How far a policy is from its reference, estimated from sampled tokens, and the coefficient that holds it there."""

import math
from typing import Any

import torch
from torch import Tensor

from ...data.errors import UserError

KINDS = ("k1", "k2", "k3")
LARGEST_ERROR = 0.2  # one update changes the coefficient by no more than this share of samples / horizon


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k1") -> Tensor:
    """Estimate, token by token, the KL divergence from the reference of the policy that sampled the tokens, in nats.

    Both are log-probabilities of the sampled tokens, of one shape, which is the result's. With r = reference / policy: k1 is -log r, unbiased
    and often negative; k2 is (log r)^2 / 2, biased a little where the two are near; k3 is r - 1 - log r, unbiased and never negative.
    Schulman 2020, "Approximating KL Divergence". Raises UserError for an unknown kind.
    """
    if kind not in KINDS:
        raise UserError(f"the KL estimator must be one of {', '.join(KINDS)}, got {kind!r}")
    log_ratio = ref_logprobs - logprobs
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return log_ratio.square() / 2
    return torch.expm1(log_ratio) - log_ratio


class FixedKL:
    """A coefficient that stays as it is set."""

    def __init__(self, coefficient: float):
        """Raises UserError for a coefficient that is negative or not a number."""
        if not 0 <= coefficient < math.inf:
            raise UserError(f"the KL coefficient must be a number of at least 0, got {coefficient}: 0.05 is usual, 0 leaves the KL free")
        self.coefficient = coefficient

    def update(self, kl: float, samples: int) -> None:
        """Take note of the KL in nats an answer, the mean of so many answers: nothing changes."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: the coefficient is a setting, and the one set now holds."""


class AdaptiveKL:
    """A proportional controller that moves the coefficient until the KL, in nats an answer, is at its target.

    After each update the coefficient is multiplied by 1 + error * samples / horizon, where error is KL / target - 1 held within 0.2 of 0.
    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 2.2; the horizon is that of their code, where 10,000
    answers are usual.
    """

    def __init__(self, coefficient: float, target: float, horizon: float):
        """Raises UserError for a value that is not a number above 0."""
        for name, value in (("coefficient", coefficient), ("target", target), ("horizon", horizon)):
            if not 0 < value < math.inf:
                hint = ": multiplying never moves it from 0" if name == "coefficient" and value == 0 else ""
                raise UserError(f"the adaptive KL's {name} must be a number above 0, got {value}{hint}")
        self.coefficient = coefficient
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, samples: int) -> None:
        """Move the coefficient for the next rollout: kl is the mean over so many answers of the sum over their tokens.

        Raises ValueError for a KL that is not finite, UserError for so many samples that the coefficient could turn negative.
        """
        if not math.isfinite(kl):
            raise ValueError(f"the KL is {kl}: the policy or its reference is broken")
        if not 0 < samples * LARGEST_ERROR < self.horizon:
            raise UserError(f"an update of {samples} answers does not fit a horizon of {self.horizon}: set the horizon to some tens of updates")
        error = min(max(kl / self.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        self.coefficient *= 1 + error * samples / self.horizon

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: the coefficient as it has come to be."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a checkpoint's coefficient."""
        self.coefficient = float(state["coefficient"])
