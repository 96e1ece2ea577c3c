"""What is there to run on: cores, GPUs and memory of this machine, found without importing torch or ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator.environment import visible_cuda_devices

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_WSL = Path("/dev/dxg")
"""There under Windows' Linux, where GPUs are Windows' own and the driver has no folder in /proc."""


@dataclass(frozen=True)
class Available:
    """Resources that a plan may count on. `known` is False for a cluster that has not been asked yet."""

    num_cpus: float
    num_gpus: int
    memory_bytes: int
    known: bool = True
    capability: tuple[int, int] | None = None
    """CUDA compute capability of the weakest GPU, where it is given; else this machine is asked when it matters."""

    def compute_capability(self) -> tuple[int, int] | None:
        """Return the compute capability of the weakest GPU; None when there is none or it cannot be found out."""
        return min(self._capabilities(), default=None)

    def best_capability(self) -> tuple[int, int] | None:
        """Return the compute capability of the strongest GPU; None when there is none or it cannot be found out."""
        return max(self._capabilities(), default=None)

    def _capabilities(self) -> tuple[tuple[int, int], ...]:
        if self.capability is not None:
            return (self.capability,)
        return _local_capabilities() if self.known and self.num_gpus else ()

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


@cache
def _local_capabilities() -> tuple[tuple[int, int], ...]:
    import subprocess

    # The driver's own tool: asking torch would take seconds and a context on the GPU.
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return tuple((int(major), int(minor)) for major, minor in (line.split(".") for line in said.split()))
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _num_local_gpus() -> int:
    present = len(list(_NVIDIA.iterdir())) if _NVIDIA.is_dir() else len(_local_capabilities()) if _WSL.exists() else 0
    visible = visible_cuda_devices()
    return present if visible is None else min(present, len(visible))
