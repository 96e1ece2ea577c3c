"""The device that a target stands for, and whether this machine's GPU has what a scheme takes. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from orchestrator.errors import NotAbleError

CAPABILITY: Mapping[str, tuple[int, int]] = {"float8": (8, 9), "2:4": (8, 0)}
"""Compute capability from which NVIDIA GPUs multiply so: Ada and Hopper, Ampere."""
_NONE = "write target: cpu where the scheme has it, or compress on a machine with one: `orchestrator compress RUN`"


def device_of(target: str) -> torch.device:
    """Return where files of a target are run. Raises NotAbleError where this machine has no such device."""
    if target == "cuda" and not torch.cuda.is_available():
        raise NotAbleError("target: cuda is an NVIDIA GPU, and torch sees none here", hint=_NONE)
    return torch.device(target)


def require_gpu(scheme: str) -> None:
    """Raise NotAbleError where this machine's GPU does not multiply as a scheme takes it."""
    device = device_of("cuda")
    have, need = torch.cuda.get_device_capability(device), CAPABILITY[scheme]
    if have < need:
        shown = [".".join(map(str, each)) for each in (have, need)]
        raise NotAbleError(f"this GPU has compute capability {shown[0]}; {scheme} begins at {shown[1]}", hint=_NONE)
    if scheme == "float8":
        from orchestrator.compress.float8 import require_able

        require_able(device)
    else:
        require_sparse_kernel(device)


def require_sparse_kernel(device: torch.device) -> None:
    """Raise NotAbleError with torch's reason where it does not skip two of every four weights on a device."""
    from orchestrator.compress.runtimes.two_of_four import COLUMNS, KEPT, ROWS, kernel_of

    kernel = kernel_of(device)
    if kernel is None:
        raise NotAbleError(f"torch has nothing that skips two of every four weights on {device.type}", hint=_NONE)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.0], dtype=KEPT, device=device).repeat(ROWS, COLUMNS // 4)
    rows = torch.ones(8, COLUMNS, dtype=KEPT, device=device)
    try:
        found = torch.nn.functional.linear(rows, kernel(weight))
    except (AttributeError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        raise NotAbleError(f"this torch does not skip two of every four weights here: {why}", hint=_NONE) from error
    if not bool((found == 3 * COLUMNS // 4).all()):
        raise NotAbleError("this torch multiplies two of every four weights wrongly here", hint="pip install -U torch")
