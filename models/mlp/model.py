"""The MLP's layers in torch."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from ..layered import Layered
from . import Config

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def build_mlp(config: Config) -> Layered:
    """Return hidden1, hidden2, ..., head; each hidden layer is linear, activation and (if asked for) dropout."""
    layers: dict[str, nn.Module] = {}
    width = config.inputs
    for number, hidden in enumerate(config.hidden, start=1):
        parts: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(width, hidden))
        parts["activation"] = _ACTIVATIONS[config.activation]()
        if config.dropout:
            parts["dropout"] = nn.Dropout(config.dropout)
        layers[f"hidden{number}"] = nn.Sequential(parts)
        width = hidden
    layers["head"] = nn.Linear(width, config.outputs)
    return Layered(layers)
