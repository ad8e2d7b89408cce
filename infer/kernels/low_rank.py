"""Low-rank adapters (LoRA, Hu et al. 2022) beside the weights that they were trained on: each adds to the rows of a product that are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .linear_kernel import LinearKernel, linear_kernel


class LowRank(NamedTuple):
    """What an adapter adds to a linear layer: x @ down.T @ up, the adapter's scale multiplied into `up`."""

    down: Tensor  # [rank, in]
    up: Tensor  # [rank, out], of which what belongs to an output lies together

    def add_to(self, y: Tensor, x: Tensor, rows: slice | Tensor) -> None:
        """Add to some rows of y, [rows, out], what it makes of those of x, [rows, in]."""
        if isinstance(rows, slice):
            y[rows].addmm_(x[rows] @ self.down.t(), self.up)
        else:
            y.index_add_(0, rows, (x[rows] @ self.down.t()) @ self.up)


class Adapter:
    """An adapter over a model, which stays as it is: what it adds to which of the model's linear layers."""

    def __init__(self, name: str, layers: dict[nn.Module, LowRank]):
        self.name, self.layers = name, layers
        self.unloaded = False  # no request to come has it: nothing that is read with it is worth keeping
        self._joined: dict[tuple[nn.Module, ...], LowRank | None] = {}

    def over(self, layers: tuple[nn.Module, ...]) -> LowRank | None:
        """What it adds to the outputs, side by side, of layers that read the same input; None where it leaves all of them as they are."""
        if len(layers) == 1:
            return self.layers.get(layers[0])
        if layers not in self._joined:
            self._joined[layers] = self._join(layers)
        return self._joined[layers]

    def _join(self, layers: Sequence[nn.Module]) -> LowRank | None:
        own = [layer for layer in layers if layer in self.layers]
        if not own:
            return None
        down = torch.cat([self.layers[layer].down for layer in own])
        up = down.new_zeros(sum(width_of(layer)[1] for layer in layers), len(down)).t()
        row = column = 0
        for layer in layers:
            width = width_of(layer)[1]
            if layer in self.layers:
                rank = len(self.layers[layer].down)
                up[row : row + rank, column : column + width] = self.layers[layer].up
                # what stands in both is kept once
                self.layers[layer] = LowRank(down[row : row + rank], up[row : row + rank, column : column + width])
                row += rank
            column += width
        return LowRank(down, up)


def width_of(layer: nn.Module) -> tuple[int, int]:
    """Return how many inputs and outputs a linear layer has, of any of our kinds; raises AttributeError for another module."""
    if hasattr(layer, "whole"):  # a slice of layers that were quantised as one
        return layer.whole.in_features, layer.stop - layer.start
    return (layer.nx, layer.nf) if hasattr(layer, "nx") else (layer.in_features, layer.out_features)


class SlotAdapters:
    """Which adapter each slot of a runner runs with, where it has one, and during a pass which rows are whose."""

    def __init__(self) -> None:
        self._of: dict[int, Adapter] = {}
        self._spans: list[tuple[Adapter, slice]] = []  # rows of the pass under way
        self._rows: list[tuple[Adapter, slice | Tensor]] = []  # the same, once an adapter

    def put(self, slot: int, adapter: Adapter | None) -> None:
        """Run a slot with this adapter from now on."""
        if adapter is None:
            self._of.pop(slot, None)
        else:
            self._of[slot] = adapter

    def of(self, slot: int) -> Adapter | None:
        """The slot's adapter."""
        return self._of.get(slot)

    @property
    def at_work(self) -> set[Adapter]:
        """The adapters of the pass under way."""
        return {adapter for adapter, _ in self._rows}

    def by_row(self) -> dict[int, Adapter]:
        """The adapter of each row of the pass under way that has one."""
        return {row: adapter for adapter, span in self._spans for row in range(span.start, span.stop)}

    @contextmanager
    def over(self, parts: Iterable[tuple[int, slice]], device: Callable[[], torch.device]) -> Iterator[None]:
        """Run a pass in which these rows belong to these slots, on the device that is asked for where one has an adapter."""
        self._lay([(adapter, span) for slot, span in parts if (adapter := self.of(slot)) is not None], device)
        try:
            yield
        finally:
            self._lay([], device)

    @contextmanager
    def among(self, rows: Sequence[int], device: Callable[[], torch.device]) -> Iterator[None]:
        """Run a part of the pass under way that has these of its rows alone, in this order; a slot's are all in it or none."""
        whole, place = self._spans, {row: i for i, row in enumerate(rows)}
        self._lay([(adapter, slice(place[span.start], place[span.stop - 1] + 1)) for adapter, span in whole if span.start in place], device)
        try:
            yield
        finally:
            self._lay(whole, device)

    def _lay(self, spans: list[tuple[Adapter, slice]], device: Callable[[], torch.device]) -> None:
        own: dict[Adapter, list[slice]] = {}
        for adapter, span in spans:
            own.setdefault(adapter, []).append(span)
        self._spans = spans
        self._rows = [(adapter, together(each, device())) for adapter, each in own.items()]

    def kernel(self, layers: Sequence[nn.Module], quick_few: bool = False) -> LinearKernel:
        """Return the product with the weights of layers that read the same input, as `linear_kernel` does, with what the adapters of a pass add to it."""
        plain, layers = linear_kernel(layers, quick_few), tuple(layers)

        def product(x: Tensor) -> Tensor:
            y = plain(x)
            for adapter, rows in self._rows:
                if (added := adapter.over(layers)) is not None:
                    added.add_to(y, x, rows)
            return y

        return product

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Have the model's own modules add what the adapters of the pass do; the rows are those of all their inputs, laid end to end."""
        layers = {layer for adapter, _ in self._rows for layer in adapter.layers}
        handles = [layer.register_forward_hook(self._add) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x, y = inputs[0].flatten(0, -2), output.flatten(0, -2)
        for adapter, rows in self._rows:
            if (added := adapter.layers.get(layer)) is not None:
                added.add_to(y, x, rows)
        return y.view_as(output)


def together(spans: Sequence[slice], device: torch.device) -> slice | Tensor:
    """Return spans of rows as one, where each begins at another's end, else the indices of their rows."""
    spans = sorted(spans, key=lambda span: span.start)
    if all(one.stop == other.start for one, other in zip(spans, spans[1:])):
        return slice(spans[0].start, spans[-1].stop)
    return torch.tensor([row for span in spans for row in range(span.start, span.stop)], device=device)
