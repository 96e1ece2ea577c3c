"""Which places of a batch count in what a pupil learns from its teacher: those whose targets count in the loss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Counted:
    """`valid`: of every target of this rank's piece, whether it counts; `mean_count`: how many do, a rank on average.

    Gradients are averaged over ranks, so sums over the mean count are the mean over the global batch, however padding
    is spread over ranks.
    """

    valid: Tensor
    mean_count: float

    def mean(self, each: Tensor) -> Tensor:
        """Return the mean of what has a value (or several, in later dims) for every target; of else, over all."""
        shape = self.valid.shape
        if each.shape[: len(shape)] != shape:
            return each.mean()
        per_target = each.flatten(len(shape)).mean(-1) if each.dim() > len(shape) else each
        return per_target.masked_fill(~self.valid, 0.0).sum() / self.mean_count
