"""Norms that also work on a slice of their channels, or on a slice of the batch. Imports torch.

B batch, C channels, H x W pixels, R ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
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


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose mean and spread are those of the samples of all ranks; names and values as torch's batch norm.

    It knows nothing of ranks but `gather_over_ranks`: a row [1, K] of this rank -> the rows of all ranks [R, K], in the
    same order on each; the gradient of the rows is summed over ranks and handed back. Every rank brings equally many
    samples. Without it (one process), and in evaluation, this is plain batch norm.
    """

    gather_over_ranks: Callable[[Tensor], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return the normed input, [B, C, H, W]. In training every rank calls it, equally often."""
        if not self.training or self.gather_over_ranks is None:
            return super().forward(input)
        self._check_input_dim(input)
        return self.normalise(input, self.weight, self.bias, self.running_mean, self.running_var)

    def normalise(
        self,
        x_BCHW: Tensor,
        weight_C: Tensor | None,
        bias_C: Tensor | None,
        running_mean_C: Tensor | None,
        running_var_C: Tensor | None,
    ) -> Tensor:
        """Return the input normed by the figures of all ranks; bring the running ones up to date in place. Collective.

        The channels may be a slice of the layer's: then weights and running figures are the same slice. Figures are
        computed in float32 or wider, the result has the input's type.
        """
        wide_BCHW = x_BCHW.float() if x_BCHW.dtype in (torch.bfloat16, torch.float16) else x_BCHW
        mean_C, var_C, count = self._pooled(wide_BCHW)
        self._follow(mean_C, var_C * (count / (count - 1)), running_mean_C, running_var_C)
        scale_C = (var_C + self.eps).rsqrt()
        if weight_C is not None:
            scale_C = scale_C * weight_C
        y_BCHW = (wide_BCHW - mean_C[:, None, None]) * scale_C[:, None, None]
        if bias_C is not None:
            y_BCHW = y_BCHW + bias_C[:, None, None]
        return y_BCHW.to(x_BCHW.dtype)

    def _pooled(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return mean and (biased) variance over the samples of all ranks, and how many numbers that was per channel.

        Parts of equal size are pooled after Chan, Golub & LeVeque 1979: the mean of the means, and the mean of the
        variances plus the variance of the means. No large sums of squares are subtracted from one another.
        """
        if self.gather_over_ranks is None:
            raise RuntimeError("the figures of all ranks were asked for without gather_over_ranks")
        var_C, mean_C = torch.var_mean(x_BCHW, dim=(0, 2, 3), correction=0)
        means_RC, vars_RC = self.gather_over_ranks(torch.cat([mean_C, var_C])[None]).chunk(2, dim=1)
        spread_C, all_mean_C = torch.var_mean(means_RC, dim=0, correction=0)
        count = means_RC.shape[0] * x_BCHW.numel() // x_BCHW.shape[1]
        return all_mean_C, vars_RC.mean(0) + spread_C, count

    def _follow(
        self, mean_C: Tensor, unbiased_var_C: Tensor, running_mean_C: Tensor | None, running_var_C: Tensor | None
    ) -> None:
        if running_mean_C is None or running_var_C is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            running_mean_C.lerp_(mean_C.to(running_mean_C.dtype), share)
            running_var_C.lerp_(unbiased_var_C.to(running_var_C.dtype), share)
