"""Linear layers inside blocks that multiply in 8-bit floating point, by torchao. Called by the engine before a layout.

Scales are one per tensor and dynamic (Micikevicius et al. 2022): weights stay in their own precision, with their names.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from orchestrator.errors import PlanError
from orchestrator.plan.capability import too_old
from orchestrator.plan.float8 import INSTALL

_MULTIPLE = 16  # the hardware's products take operands whose sizes are multiples of this


def float8_layers(module: nn.Module, blocks: Iterable[str], without: Iterable[str]) -> list[str]:
    """Return the names of the linear layers inside the blocks whose sizes divide by 16.

    A block that is itself a linear layer (a head), and what is in or under `without`, stays as it is.
    """
    inside, outside = (tuple(f"{name}." for name in names) for names in (blocks, without))
    return [
        name
        for name, child in module.named_modules()
        if type(child) is nn.Linear
        and name.startswith(inside)
        and not f"{name}.".startswith(outside)
        and child.in_features % _MULTIPLE == 0
        and child.out_features % _MULTIPLE == 0
    ]


def apply_float8(
    module: nn.Module, blocks: Iterable[str], without: Iterable[str], device: torch.device, *, emulated: bool
) -> list[str]:
    """Replace those layers in place (parameters are kept); return their names. Works on the meta device.

    `emulated`: round as float8 does and multiply in the precision at hand, on any device. Raises PlanError when the
    device does not multiply in float8, when torchao is missing, and when no layer qualifies.
    """
    if not emulated:
        _require_hardware(device)
    chosen = float8_layers(module, blocks, without)
    if not chosen:
        raise PlanError(
            "train.float8 finds no linear layer inside the model's blocks whose sizes divide by 16",
            hint="set train.float8=none, or widen the model",
        )
    try:
        torchao: Any = import_module("torchao.float8")
    except ImportError as error:
        raise PlanError(f"train.float8 needs torchao: {error}", hint=INSTALL) from error
    torchao.convert_to_float8_training(
        module,
        module_filter_fn=lambda child, name: name in chosen,
        # Padded, because the weights' gradients multiply over rows, whose number need not divide by 16.
        config=torchao.Float8LinearConfig(emulate=emulated, pad_inner_dim=not emulated),
    )
    return chosen


def _require_hardware(device: torch.device) -> None:
    if device.type != "cuda":
        raise PlanError(
            f"train.float8=native on {device.type}, which does not multiply in float8",
            hint="set train.float8 to emulated or none",
        )
    why = too_old("float8", torch.cuda.get_device_capability(device))
    if why:
        raise PlanError(f"train.float8=native: {why}", hint="set train.float8 to emulated or none")
