"""The device that a target stands for. Imports torch."""

from __future__ import annotations

import torch

from orchestrator.errors import NotAbleError


def device_of(target: str) -> torch.device:
    """Return where files of a target are run. Raises NotAbleError where this machine has no such device."""
    if target == "cuda" and not torch.cuda.is_available():
        raise NotAbleError(
            "target: cuda is an NVIDIA GPU, and torch sees none here",
            hint="compress where there is one: `orchestrator compress RUN JOB`",
        )
    return torch.device(target)
