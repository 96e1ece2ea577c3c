"""The tensors of a run by parameter name: what a checkpoint holds, and how optimiser state finds its way back.

Names are those of the plain model, so a checkpoint saved under one layout loads under any other.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orchestrator.train.engine import Engine

State = dict[str, Any]


def model_state(engine: Engine) -> dict[str, Tensor]:
    """Return parameters and persistent buffers by name (sharded ones as they are)."""
    return dict(engine.model.module.state_dict())


def optimizer_state(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """Return the optimiser's state by parameter name; numbers become 0-dim tensors.

    Before the first step there is none yet: it is made by a step of rate 0 on zero gradients, which changes no weight.
    """
    if not engine.optimizer.state:
        _make_state(engine)
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in engine.model.module.named_parameters():
        values = engine.optimizer.state.get(parameter, {})
        found[engine.model.first_name(name)] = {
            key: _as_tensor(value) for key, value in values.items() if value is not None
        }
    return found


def put_optimizer_state(engine: Engine, state: dict[str, dict[str, Tensor]]) -> None:
    """Give the optimiser the state that `optimizer_state` returned (loaded in place); numbers become numbers again."""
    for name, parameter in engine.model.module.named_parameters():
        mine = engine.optimizer.state.get(parameter, {})
        for key, value in state.get(engine.model.first_name(name), {}).items():
            current = mine.get(key)
            if isinstance(current, Tensor):
                if current is not value:
                    current.copy_(value)
            elif current is not None:
                mine[key] = type(current)(value.item())


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value)


def _make_state(engine: Engine) -> None:
    optimizer = engine.optimizer
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = engine.parameters()
    kept = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient
