"""The neuron's one layer in torch."""

from __future__ import annotations

import torch
from torch import nn

from ..layered import Layered
from . import Config


def build_neuron(config: Config) -> Layered:
    """Return the layer `sum`, holding the weights and the bias of the config where it gives them."""
    layer = nn.Linear(config.inputs, 1)
    with torch.no_grad():
        if config.weights is not None:
            layer.weight.copy_(torch.tensor([config.weights], device=layer.weight.device))
        if config.bias is not None:
            layer.bias.fill_(config.bias)
    return Layered({"sum": layer})
