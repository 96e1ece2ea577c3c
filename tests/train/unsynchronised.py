"""Faults planted in synchronised batch norm, and a model in which only some norms are: what `verify` must find."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator.models.norms import SyncBatchNorm2d
from orchestrator.parallel.collectives import gather
from orchestrator.train import engine, step, synchronise
from orchestrator.verify.trace import write_trace


def apart(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Leave every rank with the figures of its own samples."""

    def nothing(module: nn.Module, data_group: dist.ProcessGroup | None) -> list[str]:
        return []

    engine.synchronise_norms = nothing
    return write_trace(rank, world_size, job, num_steps, folder)


def one_way(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Pool the figures, but let no rank hear what its own did to the outputs of the others."""
    synchronise.gather_and_sum_back = gather
    return write_trace(rank, world_size, job, num_steps, folder)


def other_samples(rank: int, world_size: int, job: dict[str, Any], num_steps: int, folder: str) -> bool:
    """Send the right samples through the pipeline in other microbatches than the other data ranks'."""
    step.slice_for = partial(_in_one_run, step.slice_for)
    return write_trace(rank, world_size, job, num_steps, folder)


def _in_one_run(right: Any, indices: Any, data_rank: int, num_data_ranks: int, passes: int) -> Any:
    return right(indices, data_rank, num_data_ranks, 1)


class Mixed(nn.Module):
    """One norm over all ranks, one over each rank's own samples."""

    def __init__(self) -> None:
        super().__init__()
        self.everywhere = SyncBatchNorm2d(1)
        self.here = nn.BatchNorm2d(1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.here(self.everywhere(x)), 1))
