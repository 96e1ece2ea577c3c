"""Networks as a user would write them: plain classes, some of which no format can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Two layers with batch norm (buffers) and a tied weight."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        self.norm = nn.BatchNorm1d(width)
        self.middle = nn.Linear(width, width, bias=False)
        self.again = nn.Linear(width, width, bias=False)
        self.again.weight = self.middle.weight
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x)))
        return self.last(torch.relu(self.again(torch.relu(self.middle(hidden)))))


class Branching(nn.Module):
    """Its forward asks for a value, so it cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(x)
        return outputs if float(x.sum()) > 0 else -outputs


class FixedBatch(nn.Module):
    """Its forward fixes the batch size that it was first seen with."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.last(x)
        return outputs + torch.zeros(2, 1) if len(x) == 2 else outputs


class Embedder(nn.Module):
    """Takes int64 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        outputs: Tensor = self.last(self.table(tokens).mean(1))
        return outputs


class Pair(nn.Module):
    """Returns two tensors, which is no single output."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.last(x), x
