"""Who am I: rank, device and process group of this process. Joins what a launcher has set up, or sets it up itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rank:
    """This process among all: `device` is where its tensors live."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = CPU

    @property
    def is_main(self) -> bool:
        """Rank 0 records, prints and commits."""
        return self.rank == 0


def join(rank: int, world_size: int, local_rank: int, *, backend: str, device: str, timeout_s: float) -> Rank:
    """Return this process's `Rank`; initialises the process group from the launcher's environment unless one exists.

    Ray Train initialises it before our code runs; torchrun leaves that to us.
    """
    where = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s))
    return Rank(rank, world_size, local_rank, where)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place; with one process nothing happens."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values
