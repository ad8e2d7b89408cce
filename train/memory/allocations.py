"""A step of training on tensors without values: what is allocated and let go of, in its order."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

AT_A_TIME = 1 << 10  # bytes: what is smaller makes no moment of its own


class Moment(NamedTuple):
    """What was held when something was allocated, in bytes, beside what was there before: gradients of parameters, and all else."""

    gradients: int
    others: int


class Allocations(TorchDispatchMode):
    """Counts the storages of fake tensors that operations make, for as long as they live; `moments` says how much there was after each.

    A fake tensor has a shape, a dtype and a device and no values: it goes through the very code that trains, autograd and autocast included. Where that asks
    for a value, it is told 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.others = self.gradients = 0
        self.moments: list[Moment] = []
        self.in_backward = False
        self._sizes: dict[int, int] = {}  # of the storages that are counted
        self._of_gradients: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1
        if func is torch.ops.aten.add.Tensor and self.in_backward and not torch.is_grad_enabled() and self._sums_in_place(*args):
            return args[0]
        out = func(*args, **(kwargs or {}))
        for each in tree_iter(out):
            if isinstance(each, FakeTensor):
                self._note(each)
        return out

    def knows(self, tensors: Iterator[Tensor] | Sequence[Tensor]) -> None:
        """Leave tensors out that were there before."""
        for each in tensors:
            self._sizes.setdefault(each.untyped_storage()._cdata, 0)

    def is_gradient(self, tensor: Tensor) -> None:
        """Count a tensor among the gradients from here on."""
        key = tensor.untyped_storage()._cdata
        if key not in self._of_gradients and key in self._sizes:
            self._of_gradients.add(key)
            self.gradients += self._sizes[key]
            self.others -= self._sizes[key]

    def _sums_in_place(self, into: Any, other: Any) -> bool:
        """Whether autograd adds a gradient to another that came before without a third tensor, as it does to those that nobody else holds, but never to fakes."""
        return isinstance(into, FakeTensor) and isinstance(other, FakeTensor) and into.shape == other.shape and bool(self._sizes.get(into.untyped_storage()._cdata))

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.others += size
        weakref.finalize(storage, self._let_go, key)
        if size >= AT_A_TIME:
            self.moments.append(Moment(self.gradients, self.others))

    def _let_go(self, key: int) -> None:
        size = self._sizes.pop(key, 0)
        if key in self._of_gradients:
            self._of_gradients.discard(key)
            self.gradients -= size
        else:
            self.others -= size


@contextmanager
def gradients_noted(parameters: Sequence[nn.Parameter], allocations: Allocations) -> Iterator[None]:
    """Count what the backward pass leaves in `.grad` among the gradients."""
    handles = [p.register_post_accumulate_grad_hook(lambda p: allocations.is_gradient(p.grad)) for p in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def give_fakes(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Put fake tensors of a device in the place of the modules' parameters and buffers, in place; what was shared is shared."""
    made: dict[int, Tensor] = {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            with mode:
                like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            made[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else like
        return made[id(tensor)]

    for module in {id(each): each for top in modules for each in top.modules()}.values():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, tensor in held.items():
                if isinstance(tensor, Tensor) and not isinstance(tensor, FakeTensor):
                    held[name] = fake(tensor)


def step_moments(loss_of: Callable[[], Tensor], parameters: Sequence[nn.Parameter], standing: Sequence[Tensor]) -> tuple[list[Moment], list[Moment], Moment]:
    """Run a forward and a backward pass: the moments of each, and what was kept between them. Gradients that there are stay and are counted by the caller."""
    allocations = Allocations()
    allocations.knows(standing)
    allocations.knows([p.grad for p in parameters if p.grad is not None])
    with allocations, gradients_noted(parameters, allocations):
        loss: Any = loss_of()
        kept = Moment(allocations.gradients, allocations.others)
        forward, allocations.moments, allocations.in_backward = allocations.moments, [], True
        loss.backward()
    return forward, allocations.moments, kept
