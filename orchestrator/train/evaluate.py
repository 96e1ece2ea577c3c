"""Loss and metrics over a whole split, the same number on every rank and under every layout (to rounding)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.data.order import EvalSlice, eval_slices
from orchestrator.parallel.collectives import gather
from orchestrator.parallel.process import sum_over_ranks
from orchestrator.train.engine import Engine


@dataclass
class _Sums:
    """What this rank has added up: loss, valid targets, and each metric's vector."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


def evaluate(engine: Engine, split_name: str) -> dict[str, float]:
    """Return {"loss": ..., metric: ...} over the split; empty when the split is. Collective."""
    split = engine.data.splits.get(split_name)
    if split is None or len(split) == 0:
        return {}
    batch = engine.plan.batch
    engine.model.module.eval()
    sums = _Sums(torch.zeros(2, dtype=torch.float64, device=engine.rank.device))
    with torch.no_grad():
        # Every rank runs equally many batches, since a sharded forward pass is collective; padding is cut off.
        for piece in eval_slices(len(split), batch.eval_batch, engine.data_rank, batch.num_data_ranks):
            inputs, targets = engine.to_device(*split.batch(torch.from_numpy(piece.indices)))
            with engine.autocast():
                outputs = engine.model.evaluate(inputs)
            if outputs is not None:
                _add(engine, sums, outputs, targets, piece)
    _over_ranks(engine, sums)
    total, count = sums.loss.tolist()
    return {
        "loss": total / max(1.0, count),
        **{name: metric.compute(sums.metrics[name]) for name, metric in engine.metrics.items()},
    }


def _add(engine: Engine, sums: _Sums, outputs: Tensor, targets: Tensor, piece: EvalSlice) -> None:
    outputs, targets = outputs[: piece.num_valid], targets[: piece.num_valid]
    if piece.num_valid:
        count = engine.loss.count(targets)
        sums.loss[0] += engine.loss.sum(outputs, targets)
        sums.loss[1] += piece.num_valid if count is None else count
    if engine.logits_group is not None:
        outputs = gather(outputs, -1, engine.logits_group)
    for name, metric in engine.metrics.items():
        part = metric.sums(outputs, targets).double()
        sums.metrics[name] = sums.metrics[name] + part if name in sums.metrics else part


def _over_ranks(engine: Engine, sums: _Sums) -> None:
    """Add up over ranks, in place."""
    if engine.model.pipeline is None:
        sums.loss = sum_over_ranks(sums.loss * engine.counts)
        sums.metrics = {name: sum_over_ranks(part * engine.counts) for name, part in sums.metrics.items()}
        return
    # Only the last stage knows how long a metric's vector is, so ranks exchange lists.
    mine: dict[str, list[float]] = {"": sums.loss.tolist()}
    mine |= {name: part.tolist() for name, part in sums.metrics.items()}
    everyone: list[Any] = [None] * engine.rank.world_size
    dist.all_gather_object(everyone, mine if engine.counts else {})
    for name in ["", *engine.metrics]:
        rows = [torch.tensor(each[name], dtype=torch.float64) for each in everyone if name in each]
        total = torch.stack(rows).sum(0)
        if name:
            sums.metrics[name] = total
        else:
            sums.loss = total
