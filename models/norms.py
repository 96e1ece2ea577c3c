"""Norms that also work on a slice of their channels. Imports torch."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class GroupNorm(nn.GroupNorm):
    """Group norm whose number of groups follows from the channels at hand, so that whole groups may be elsewhere."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels)
        self.group_width = channels // groups

    def forward(self, input: Tensor) -> Tensor:
        """Return the normed input, [B, channels, ...]."""
        groups = input.shape[1] // self.group_width
        return functional.group_norm(input, groups, self.weight, self.bias, self.eps)
