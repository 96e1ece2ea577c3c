"""Models that compute something else on some layouts: what `verify` must find."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn


class RankDependent(nn.Module):
    """Its second layer is scaled by the rank, as a wrong shard or a mis-scaled gradient would do."""

    def __init__(self, scale: float = 0.01) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.second = nn.Linear(8, 10)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rank = dist.get_rank() if dist.is_initialized() else 0
        return self.second(torch.relu(self.first(x))) * (1 + self.scale * rank)


class Plain(nn.Module):
    """Nothing wrong with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 8)
        self.second = nn.Linear(8, 10)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.dropout(torch.relu(self.first(x))))
