"""Does this machine's GPU multiply as a scheme of `quantise` takes it, and which GPU is it? Imports torch."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator.compress.float8 import require_able
from orchestrator.compress.runtimes import two_of_four
from orchestrator.compress.runtimes.device import device_of
from orchestrator.errors import NotAbleError
from orchestrator.plan.capability import too_old


def require_gpu(scheme: str) -> None:
    """Raise NotAbleError with the reason where this machine's GPU does not multiply as a scheme takes it."""
    device = device_of("cuda")
    why = too_old(scheme, torch.cuda.get_device_capability(device))
    if why:
        raise NotAbleError(why, hint="compress on a machine with a newer one: `orchestrator compress RUN JOB`")
    if scheme == "float8":
        require_able(device)
        return
    tried = two_of_four.trials(device)
    if all(tried.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in tried.items())
        raise NotAbleError(
            f"this torch does not skip two of every four weights on this GPU ({reasons})",
            hint="pip install -U torch, for the CUDA version of this machine's driver",
        )


def gpu_facts(scheme: str) -> dict[str, Any]:
    """Return what decides the speed of files in a scheme on this machine's GPU."""
    device = device_of("cuda")
    major, minor = torch.cuda.get_device_capability(device)
    found = {
        "gpu": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "cuda": torch.version.cuda,
    }
    if scheme != "2:4":
        return found
    return found | {"skips_zeros_by": next(name for name, why in two_of_four.trials(device).items() if not why)}
