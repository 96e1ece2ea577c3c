"""What is there to run on: cores, GPUs and memory of this machine, found without importing torch or ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.environment import visible_cuda_devices

_NVIDIA = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Available:
    """Resources that a plan may count on. `known` is False for a cluster that has not been asked yet."""

    num_cpus: float
    num_gpus: int
    memory_bytes: int
    known: bool = True

    @classmethod
    def local(cls) -> Available:
        """Return what this machine has: cores this process may use, GPUs it may see, physical memory."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return cls(float(cores), _num_local_gpus(), memory)

    @classmethod
    def unknown(cls) -> Available:
        """Return the stand-in for a cluster that is asked only when the job starts there."""
        return cls(0.0, 0, 0, known=False)


def _num_local_gpus() -> int:
    present = len(list(_NVIDIA.iterdir())) if _NVIDIA.is_dir() else 0
    visible = visible_cuda_devices()
    return present if visible is None else min(present, len(visible))
