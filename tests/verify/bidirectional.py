"""A transformer whose tokens see all others: attention over split sequences that is not causal."""

from __future__ import annotations

from torch import nn

from orchestrator.models.attention import Attend
from orchestrator.models.transformer import (
    Config,
    attention_layers,
    init_parameter,
    layer_costs,
    layer_names,
    shape,
    shard_units,
    tensor_limits,
    tensor_plan,
)
from orchestrator.models.transformer import build as build_causal

__all__ = [
    "Config",
    "attention_layers",
    "build",
    "init_parameter",
    "layer_costs",
    "layer_names",
    "shape",
    "shard_units",
    "tensor_limits",
    "tensor_plan",
]


def build(config: Config) -> nn.Module:
    """Return the network."""
    module = build_causal(config)
    for part in module.modules():
        if isinstance(part, Attend):
            part.causal = False
    return module
