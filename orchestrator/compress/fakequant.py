"""Layers that compute in floats as if on the integers of a quantised file, so that training can get used to them.

The grids are those that ONNX Runtime's quantisers lay over a weight, so weights that lie on one come out of them as
they went in. Rounding passes gradients on as they are (Bengio et al. 2013); ranges of activations are trained (Jain et
al. 2019). O outputs, I inputs per output, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

_TINY = 1e-12


@dataclass(frozen=True)
class Grid:
    """Where a weight's values may lie: `bits`, one scale for each output, or for each `group` inputs of an output.

    `whole`: one scale for all of it. These and the grouped grids have a zero point, those of outputs are symmetric.
    """

    bits: int = 8
    group: int | None = None
    whole: bool = False

    def snap(self, weight: Tensor) -> Tensor:
        """Return the weight with every value moved to the nearest on its grid, [O, ...]."""
        if self.whole:
            low, high = weight.detach().aminmax()
            return _on_range(weight, low.clamp(max=0), high.clamp(min=0), 2**self.bits - 1)
        rows_OI: Tensor = weight.flatten(1)
        if self.group is None:
            top = 2 ** (self.bits - 1) - 1
            scale_O1 = (rows_OI.detach().abs().amax(1, keepdim=True) / top).clamp(min=_TINY)
            snapped_OI: Tensor = _rounded(rows_OI / scale_O1).clamp(-top, top) * scale_O1
            return snapped_OI.view_as(weight)
        missing = -rows_OI.shape[1] % self.group
        padded_OI = functional.pad(rows_OI, (0, missing))
        parts_OGI = padded_OI.view(len(padded_OI), -1, self.group)
        low, high = parts_OGI.detach().aminmax(dim=2, keepdim=True)
        snapped = _on_range(parts_OGI, low.clamp(max=0), high.clamp(min=0), 2**self.bits - 1)
        return snapped.flatten(1)[:, : rows_OI.shape[1]].view_as(weight)


class Range(nn.Module):
    """The least and greatest value of an activation, both trained; 8 bits with a zero point lie in between."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = (nn.Parameter(torch.tensor([value])) for value in (min(low, 0.0), max(high, _TINY)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the values moved to the nearest on the range's grid."""
        # All numbers of a sample pull at two: their gradient is brought to a weight's size (Esser et al. 2020).
        share = (x[0].numel() * 255) ** -0.5
        low, high = (end * share + (end * (1 - share)).detach() for end in (self.low, self.high))
        return _on_range(x, low.clamp(max=0), high.clamp(min=_TINY), 255)

    def scale_and_zero(self) -> tuple[float, int]:
        """Return the scale, and the integer that stands for 0."""
        low, high = min(float(self.low), 0.0), max(float(self.high), _TINY)
        scale = (high - low) / 255
        return scale, round(-low / scale)


class Momentary(nn.Module):
    """In place of a range: that of the very batch at hand, as dynamic quantisation takes it."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the values moved to the nearest on the grid of the batch's own range. Collective under ranks."""
        low, high = x.detach().aminmax()
        if dist.is_initialized():  # the batch is that of all ranks: else the layout would change the result
            ends = torch.stack([-low, high])
            dist.all_reduce(ends, dist.ReduceOp.MAX)
            low, high = -ends[0], ends[1]
        return _on_range(x, low.clamp(max=0), high.clamp(min=0), 255)


class FakeLinear(nn.Linear):
    """A linear layer on grids. Made by `wear`, so that names and parameters stay those of the layer it was."""

    grid: Grid
    inputs: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return what the quantised layer would, but for the rounding of its own sum."""
        return functional.linear(self.inputs(input), self.grid.snap(self.weight), self.bias)


class FakeConv2d(nn.Conv2d):
    """A convolution on grids."""

    grid: Grid
    inputs: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return what the quantised layer would, but for the rounding of its own sum."""
        outputs: Tensor = self._conv_forward(self.inputs(input), self.grid.snap(self.weight), self.bias)
        return outputs


class FakeEmbedding(nn.Embedding):
    """An embedding on a grid."""

    grid: Grid

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows asked for, as the quantised table holds them."""
        return functional.embedding(input, self.grid.snap(self.weight), self.padding_idx)


_FAKES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FakeLinear,
    nn.Conv2d: FakeConv2d,
    nn.Embedding: FakeEmbedding,
}


def wear(layer: nn.Module, grid: Grid, inputs: nn.Module | None = None) -> bool:
    """Let a layer compute on grids, in place; say whether it is of a kind that can."""
    fake = _FAKES.get(type(layer))
    if fake is None:
        return False
    layer.__class__ = fake
    layer.grid = grid  # type: ignore[assignment]
    if not isinstance(layer, nn.Embedding):
        layer.inputs = inputs or nn.Identity()
    return True


def take_off(model: nn.Module) -> dict[str, Range]:
    """Make all layers plain again, their weights on their grids; return the trained ranges by layer."""
    plain = {fake: kind for kind, fake in _FAKES.items()}
    ranges: dict[str, Range] = {}
    snapped: set[int] = set()
    for name, layer in list(model.named_modules()):
        if type(layer) not in plain:
            continue
        grid: Any = layer.grid
        weight: Any = layer.weight
        if id(weight) not in snapped:  # a tied one has the grid of both
            weight.data = grid.snap(weight.data)
            snapped.add(id(weight))
        span = getattr(layer, "inputs", None)
        if isinstance(span, Range):
            ranges[name] = span
        layer.__class__ = plain[type(layer)]
        del layer.grid
        if hasattr(layer, "inputs"):
            del layer.inputs
    return ranges


def _rounded(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def _on_range(x: Tensor, low: Tensor, high: Tensor, steps: int) -> Tensor:
    """Return x on the grid of `steps` + 1 values from low (at most 0) to high (at least 0), one of which is 0."""
    scale = ((high - low) / steps).clamp(min=_TINY)
    exact = (-low / scale).clamp(0, steps)
    zero = exact.round() + (exact - exact.detach())  # a whole number; its rounding passes gradients on, too
    snapped: Tensor = (_rounded(x / scale + zero).clamp(0, steps) - zero) * scale
    return snapped
