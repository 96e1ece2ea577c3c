"""The CNN's layers in torch."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from ..layered import Layered
from ..norms import GroupNorm
from . import Config, features, norm_groups

_POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}


def build_cnn(config: Config) -> Layered:
    """Return block1, block2, ..., flatten, (hidden), head."""
    layers: dict[str, nn.Module] = {}
    for number, (inputs, outputs) in enumerate(pairwise((config.in_channels, *config.channels)), start=1):
        layers[f"block{number}"] = _block(config, inputs, outputs)
    layers["flatten"] = nn.Flatten()
    width = features(config)
    if config.hidden:
        layers["hidden"] = nn.Sequential(OrderedDict(linear=nn.Linear(width, config.hidden), activation=nn.ReLU()))
        width = config.hidden
    if config.dropout:
        layers["dropout"] = nn.Dropout(config.dropout)
    layers["head"] = nn.Linear(width, config.classes)
    return Layered(layers)


def _block(config: Config, inputs: int, outputs: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, config.kernel_size, padding=config.kernel_size // 2)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if config.norm == "group":
        parts["norm"] = GroupNorm(norm_groups(outputs), outputs)
    parts["activation"] = nn.ReLU()
    parts["pool"] = _POOLS[config.pool](2)
    return nn.Sequential(parts)
