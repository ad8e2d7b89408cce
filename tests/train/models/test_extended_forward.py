import copy

import pytest
import torch
from torch import nn

from seodang.infer.runners.layers import is_replaced
from seodang.train.models.extended_forward import extend_forward, extensions_of, restore_forward


class Doubled(nn.Module):
    """Doubles what it is given and adds its own number."""

    def __init__(self, number=1.0):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(number))

    def forward(self, x):
        return 2 * x + self.number


def plus(amount):
    def extension(before):
        def forward(self, x, extra=None):
            return before(self, x) if extra is None else before(self, x) + amount * extra

        return forward

    return extension


def test_extensions_stand_around_each_other_once_each_and_come_off_in_turn():
    module = Doubled()
    extend_forward(module, "tens", plus(10))
    extend_forward(module, "tens", plus(1000))  # it has that one
    assert module(3.0, extra=1) == 17 and module(3.0) == 7 and type(module).forward(module, 3.0) == 7
    extend_forward(module, "nothing", lambda before: lambda self, *args, **kwargs: before(self, *args, **kwargs))
    assert module(3.0, extra=1) == 17 and extensions_of(module) == ["nothing", "tens"]
    with pytest.raises(ValueError, match="nothing was put around tens"):
        restore_forward(module, "tens")
    restore_forward(module, "nothing")
    assert extensions_of(module) == ["tens"] and module(3.0, extra=1) == 17
    restore_forward(module, "tens")
    assert extensions_of(module) == [] and "forward" not in vars(module)
    restore_forward(module, "tens")  # gone already


def test_a_copy_computes_with_its_own_parameters_and_can_be_restored():
    module = Doubled()
    extend_forward(module, "tens", plus(10))
    extend_forward(module, "hundreds", plus(100))
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.number.fill_(5.0)
    assert (module(1.0).item(), twin(1.0).item()) == (3, 7)
    restore_forward(twin, "hundreds")
    assert (module(1.0, extra=1).item(), twin(1.0, extra=1).item()) == (103, 17)
    restore_forward(twin, "tens")
    assert twin(1.0).item() == 7 and extensions_of(module) == ["hundreds", "tens"]


def test_the_engine_computes_past_what_speaks_as_before_alone():
    module = Doubled()
    assert not is_replaced(module)
    extend_forward(module, "tens", plus(10), speaks_as_before=True)
    assert not is_replaced(module)
    extend_forward(module, "loud", lambda before: lambda self, x: before(self, x) + 1)
    assert is_replaced(module)
    extend_forward(module, "hundreds", plus(100), speaks_as_before=True)
    assert is_replaced(module)  # of itself it changes nothing, beneath it something does
