"""What a part learns from the wide net's answers in the same step (in-place distillation, Yu & Huang 2019)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from orchestrator.train.loss import BinaryCrossEntropy, CrossEntropy, Loss, MeanSquaredError


def lesson_sum(loss: Loss, outputs: Tensor, answers: Tensor, targets: Tensor) -> Tensor:
    """Return the distance of a part's outputs to the wide net's answers, summed over the targets that count.

    Classes: cross-entropy with the answers' probabilities; numbers: squared difference to the answers; one logit:
    logistic loss with the answers' probability. A loss of another kind is taken on the targets themselves.
    """
    if isinstance(loss, CrossEntropy):
        probabilities = answers.float().softmax(-1)
        each = -(probabilities * functional.log_softmax(outputs.float(), dim=-1)).sum(-1)
        ignored = loss.config.ignore_index
        return each.sum() if ignored is None else each.masked_fill(targets == ignored, 0.0).sum()
    if isinstance(loss, MeanSquaredError):
        return loss.sum(outputs, answers.reshape(targets.shape))
    if isinstance(loss, BinaryCrossEntropy):
        return loss.sum(outputs, torch.sigmoid(answers).reshape(targets.shape))
    return loss.sum(outputs, targets)
