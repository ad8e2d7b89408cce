"""What mirostat remembers of a row: how surprising the next token may be."""

from __future__ import annotations

import math

from torch import Tensor


class Mirostat:
    """Steers the surprise of the chosen tokens to tau bits, with learning rate eta (Basu et al., 2021, version 2).

    `mu`, the most surprise that a token may have, begins at 2 tau. As in llama.cpp the surprise of a token is that among
    the tokens which were left to choose from.
    """

    def __init__(self, tau: float, eta: float):
        self.tau, self.eta, self.mu = tau, eta, 2 * tau
        self._logprobs: Tensor | None = None

    def offer(self, logprobs: Tensor) -> None:
        """Remember the distribution, [vocab], that the next token is drawn from."""
        self._logprobs = logprobs

    def accept(self, id: int) -> None:
        """Learn from the token chosen; one that was not offered, forced text say, teaches nothing."""
        logprob = float(self._logprobs[id]) if self._logprobs is not None else -math.inf
        self._logprobs = None
        if logprob > -math.inf:
            self.mu -= self.eta * (-logprob / math.log(2) - self.tau)

    def fork(self) -> Mirostat:
        """Return one that goes on by itself."""
        twin = Mirostat(self.tau, self.eta)
        twin.mu, twin._logprobs = self.mu, self._logprobs
        return twin
