"""Cross-entropy on logits whose classes are split over the tensor axis: no rank ever holds them whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SplitCrossEntropy(torch.autograd.Function):
    """Sum over targets of logsumexp(logits) - logits[target]; the gradient is softmax - one-hot, piece by piece."""

    @staticmethod
    def forward(
        ctx: Any, logits_NV: Tensor, targets_N: Tensor, ignore_index: int, smoothing: float, group: dist.ProcessGroup
    ) -> Tensor:
        valid_N = targets_N != ignore_index
        num_local = logits_NV.shape[-1]
        first = dist.get_rank(group) * num_local
        largest_N = logits_NV.amax(-1)
        dist.all_reduce(largest_N, dist.ReduceOp.MAX, group=group)
        exp_NV = (logits_NV - largest_N[:, None]).exp()
        mine_N = valid_N & (targets_N >= first) & (targets_N < first + num_local)
        at_N = torch.where(mine_N, targets_N - first, 0)
        target_logit_N = logits_NV.gather(-1, at_N[:, None])[:, 0] * mine_N
        sums_3N = torch.stack([exp_NV.sum(-1), target_logit_N, logits_NV.sum(-1)])
        dist.all_reduce(sums_3N, group=group)
        total_N, target_N, all_N = sums_3N
        num_classes = num_local * dist.get_world_size(group)
        log_sum_N = total_N.log() + largest_N
        loss_N = log_sum_N - (1 - smoothing) * target_N - smoothing * all_N / num_classes
        ctx.save_for_backward(exp_NV / total_N[:, None], at_N, mine_N, valid_N)
        ctx.smoothing, ctx.num_classes = smoothing, num_classes
        loss: Tensor = (loss_N * valid_N).sum()
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        softmax_NV, at_N, mine_N, valid_N = ctx.saved_tensors
        gradient_NV = softmax_NV - ctx.smoothing / ctx.num_classes
        hit_N = mine_N.to(gradient_NV.dtype) * (1 - ctx.smoothing)
        gradient_NV = gradient_NV.scatter_add(-1, at_N[:, None], -hit_N[:, None])
        return gradient_NV * valid_N[:, None] * grad, None, None, None, None


def split_cross_entropy(
    logits: Tensor, targets: Tensor, group: dist.ProcessGroup, *, ignore_index: int = -100, smoothing: float = 0.0
) -> Tensor:
    """Return the cross-entropy summed over targets, equal on every rank of `group`.

    `logits` [..., classes / ranks] holds this rank's classes, `targets` [...] class indices over all of them.
    """
    flat = logits.flatten(0, -2)
    result: Tensor = _SplitCrossEntropy.apply(flat, targets.flatten(), ignore_index, smoothing, group)  # type: ignore[no-untyped-call]
    return result
