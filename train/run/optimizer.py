"""AdamW for bfloat16 weights: float32 master copies take the steps, the weights follow rounded."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...data.errors import UserError


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of low-precision parameters.

    A bfloat16 weight has 8 bits of mantissa: an update under 1/256 of it would be rounded away. The masters keep those bits
    (Micikevicius et al. 2018, "Mixed Precision Training"), are saved with the optimizer's state and are what resuming restores.
    Parameters that are float32 already are their own masters. By hand, as torchao's optimizers round at random instead and keep no masters.
    """

    def __init__(self, params: Iterable[Any], **settings: Any):
        groups = [dict(group) for group in params]
        self.pairs: list[tuple[Tensor, Tensor]] = []
        for group in groups:
            group["params"] = [self._with_master(p) for p in group["params"]]
        super().__init__(groups, **settings)

    def _with_master(self, parameter: Tensor) -> Tensor:
        low = parameter.dtype in (torch.bfloat16, torch.float16)
        master = torch.nn.Parameter(parameter.detach().float()) if low else parameter
        self.pairs.append((parameter, master))
        return master

    @torch.no_grad()
    def step(self, closure=None):
        """Step the masters by the gradients of their parameters, which follow, rounded."""
        lowered = [(p, m) for p, m in self.pairs if p is not m and p.grad is not None]
        for parameter, master in lowered:
            master.grad, parameter.grad = parameter.grad.float(), None  # two sets of gradients at once would cost memory
        result = super().step(closure)
        for parameter, master in lowered:
            master.grad = None
            parameter.copy_(master)
        return result

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of parameters and masters."""
        super().zero_grad(set_to_none)
        for parameter, _ in self.pairs:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state, and a master for each parameter, None where that is its own."""
        return {**super().state_dict(), "masters": [None if p is m else m.detach() for p, m in self.pairs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state of the same parameters, saved in this dtype or another, by this optimizer or a plain AdamW.

        A saved master becomes the parameter's value, exactly where that is float32 by now; where none was saved, the master becomes the
        parameter's value, so load the weights first. Raises UserError for a state of other parameters.
        """
        masters = state_dict.get("masters") or [None] * len(self.pairs)
        if len(masters) != len(self.pairs):
            raise UserError(f"the optimizer's state is of {len(masters)} parameters, the model trains {len(self.pairs)}: resume with the same ones")
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "masters"})
        with torch.no_grad():
            for (parameter, master), saved in zip(self.pairs, masters, strict=True):
                master.copy_(parameter if saved is None else saved)
                parameter.copy_(master)
