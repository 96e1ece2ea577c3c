"""What a part of the wide net scores on the validation split with the weights as they are, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.parallel.apply import ParallelModel
from orchestrator.train.engine import Engine
from orchestrator.train.evaluate import evaluate

Batches = Sequence[tuple[Tensor, Tensor]]


def score(engine: Engine, part: nn.Module, batches: Batches) -> dict[str, float]:
    """Return the part's metrics on the validation split (`val/...`); its batch norms are recalibrated first."""
    recalibrate(part, batches, engine)
    found = evaluate(replace(engine, model=ParallelModel(part, part)), "val")
    return {f"val/{name}": value for name, value in found.items()}


def recalibrate(part: nn.Module, batches: Batches, engine: Engine) -> int:
    """Take the figures of every batch norm anew from these training batches; return how many norms there are.

    In the wide net's training they mix those of all nets that used the norm, which fit none of them (Yu & Huang 2019).
    Means over all batches, each alike. A net without batch norm is not run.
    """
    norms = [each for each in part.modules() if isinstance(each, _BatchNorm)]
    if not norms:
        return 0
    part.eval()
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for inputs, _ in batches:
            with engine.autocast():
                part(inputs)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    part.eval()
    return len(norms)
