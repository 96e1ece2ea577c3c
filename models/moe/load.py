"""`LoadStatistics`: where a router's tokens went, summed up over passes. E experts, N places, T tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LoadStatistics(nn.Module):
    """Sums over training passes since the last reset; sums over ranks can be added up. Not part of a checkpoint."""

    counts: Tensor
    dropped: Tensor
    tokens: Tensor
    entropy: Tensor

    def __init__(self, experts: int) -> None:
        super().__init__()
        whole = {"counts": torch.zeros(experts, dtype=torch.int64), "dropped": torch.zeros((), dtype=torch.int64)}
        whole["tokens"] = torch.zeros((), dtype=torch.int64)
        for name, value in whole.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("entropy", torch.zeros(()), persistent=False)

    def reset_buffers(self) -> None:
        """Start counting anew."""
        for value in self.buffers():
            value.zero_()

    @torch.no_grad()
    def add(self, counts_E: Tensor, kept_N: Tensor | None, logits_TE: Tensor) -> None:
        """Count one pass: places per expert before any drop, which places were kept (None: all), the router's view."""
        self.counts += counts_E
        self.tokens += logits_TE.shape[0]
        share_TE = logits_TE.softmax(-1)
        self.entropy += -(share_TE * logits_TE.log_softmax(-1)).sum()
        if kept_N is not None:
            self.dropped += (~kept_N).sum()

    def read(self) -> dict[str, Tensor]:
        """Return `load` (share of places per expert, [E], sum 1), `drop_rate`, and `entropy` in nats.

        The entropy is that of a token's softmax over experts, averaged: ln E is indifference, 0 is certainty.
        """
        places = self.counts.sum().clamp(min=1)
        return {
            "load": self.counts / places,
            "drop_rate": self.dropped / places,
            "entropy": self.entropy / self.tokens.clamp(min=1),
        }
