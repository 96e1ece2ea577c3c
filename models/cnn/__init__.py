"""A small convolutional network: blocks of convolution, bend and pooling, then a linear head. Torch-free.

Also the arithmetic of what one output sees: `receptive_field` and `features` (explained in docs/models.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from typing import TYPE_CHECKING, Literal

from ..declare import Split, column_row_pairs
from ..init import init_parameter
from ..shape import ModelShape, linear_flops, linear_params, require_dropout, require_positive
from .parts import cuts, elastic, widest

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Config",
    "build",
    "cuts",
    "elastic",
    "features",
    "image_input",
    "init_parameter",
    "layer_costs",
    "layer_names",
    "norm_groups",
    "prunable",
    "receptive_field",
    "shape",
    "shard_units",
    "tensor_limits",
    "tensor_plan",
    "widest",
]

image_input = True
"""Inputs are images, so the channels-last memory layout pays off."""


@dataclass(frozen=True)
class Config:
    """Square images of `in_channels` x `image_size` x `image_size`; one block per entry of `channels`.

    Every block keeps the size in its convolution (odd kernel, zero padding) and halves it in its 2 x 2 pooling.
    `hidden` adds a linear layer of that width before the classifier (0: none). `norm: group` puts group norm after
    each convolution.
    """

    in_channels: int = 1
    image_size: int = 8
    channels: tuple[int, ...] = (16, 32)
    kernel_size: int = 3
    classes: int = 10
    norm: Literal["none", "group"] = "none"
    hidden: int = 0
    dropout: float = 0.0
    pool: Literal["max", "avg"] = "max"

    def __post_init__(self) -> None:
        require_positive(in_channels=self.in_channels, image_size=self.image_size, kernel_size=self.kernel_size)
        require_positive(classes=self.classes, **{f"channels.{at}": width for at, width in enumerate(self.channels)})
        require_dropout(self.dropout)
        if self.hidden < 0:
            raise ValueError(f"hidden must be 0 (none) or a width, not {self.hidden}")
        if not self.channels:
            raise ValueError("channels needs at least one block, for example [16, 32]")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that padding keeps the size, not {self.kernel_size}")
        if self.image_size % 2 ** len(self.channels):
            raise ValueError(
                f"image_size {self.image_size} cannot be halved {len(self.channels)} times (once per block); "
                f"use a multiple of {2 ** len(self.channels)} or fewer channels"
            )


def features(config: Config) -> int:
    """Return how many numbers the last block hands to the head: channels x height x width."""
    side = config.image_size >> len(config.channels)
    return config.channels[-1] * side * side


def receptive_field(config: Config, num_blocks: int | None = None, *, pooled: bool = True) -> int:
    """Return the side, in input pixels, of the square that one output of block `num_blocks` (default: the last) sees.

    `pooled=False` asks for the last block's convolution, before its pooling. Each layer widens the view by
    (kernel - 1) x step, step being how many input pixels lie between two neighbours of that layer's input; each pooling
    doubles the step. Near a border part of the square is padding.
    """
    blocks = len(config.channels) if num_blocks is None else num_blocks
    side, step = 1, 1
    for block in range(blocks):
        side += (config.kernel_size - 1) * step
        if pooled or block < blocks - 1:
            side += step
            step *= 2
    return side


def norm_groups(channels: int) -> int:
    """Return the number of groups of a group norm."""
    return gcd(8, channels)


def shape(config: Config) -> ModelShape:
    """Return the model in numbers; outputs are class scores (logits)."""
    costs = layer_costs(config)
    image = (config.in_channels, config.image_size, config.image_size)
    return ModelShape(
        num_params=sum(params for _, params in costs),
        flops_per_sample=sum(flops for flops, _ in costs),
        inputs=image,
        outputs=(config.classes,),
        loss="cross_entropy",
    )


def layer_names(config: Config) -> list[str]:
    """Return the names of the layers in order."""
    blocks = [f"block{number}" for number in range(1, len(config.channels) + 1)]
    optional = [*(["hidden"] if config.hidden else []), *(["dropout"] if config.dropout else [])]
    return [*blocks, "flatten", *optional, "head"]


def layer_costs(config: Config) -> list[tuple[int, int]]:
    """Return (operations on one sample, weights) of every layer."""
    costs: dict[str, tuple[int, int]] = {}
    side = config.image_size
    for number, (inputs, outputs) in enumerate(pairwise((config.in_channels, *config.channels)), start=1):
        weights = config.kernel_size**2 * inputs * outputs
        params = weights + outputs + (2 * outputs if config.norm == "group" else 0)
        costs[f"block{number}"] = (2 * weights * side * side, params)  # the same weights at every pixel
        side //= 2
    width = config.hidden or features(config)
    if config.hidden:
        costs["hidden"] = (linear_flops(features(config), width), linear_params(features(config), width))
    costs["head"] = (linear_flops(width, config.classes), linear_params(width, config.classes))
    return [costs.get(name, (0, 0)) for name in layer_names(config)]


def _weighted(config: Config) -> list[str]:
    blocks = [f"layers.block{number}.conv" for number in range(1, len(config.channels) + 1)]
    return [*blocks, *(["layers.hidden.linear"] if config.hidden else []), "layers.head"]


def tensor_plan(config: Config, sequence_parallel: bool) -> dict[str, Split]:
    """Return how tensor parallelism splits convolutions and linear layers: by outputs, by inputs, and so on.

    Flattening keeps a channel's pixels together, so a slice of the channels is a slice of the features.
    """
    plan = column_row_pairs(_weighted(config))
    if config.norm == "group":
        for number in range(1, len(config.channels) + 1, 2):
            plan[f"layers.block{number}.norm"] = Split("channels", "split", "split")
    return plan


def tensor_limits(config: Config) -> dict[str, int]:
    """Return the numbers that the tensor degree must divide: every other width, or the groups of its norm."""
    limits: dict[str, int] = {}
    for at in range(0, len(config.channels), 2):
        if config.norm == "group":
            limits[f"groups of channels.{at}"] = norm_groups(config.channels[at])
        else:
            limits[f"channels.{at}"] = config.channels[at]
    if config.hidden and len(config.channels) % 2 == 0:
        limits["hidden"] = config.hidden
    return limits


def prunable(config: Config) -> dict[str, dict[str, int]]:
    """Return what can be made narrower: output channels of every block, the hidden layer's width."""
    channels = {f"block{number}": width for number, width in enumerate(config.channels, start=1)}
    return {"channels": channels | ({"hidden": config.hidden} if config.hidden else {})}


def build(config: Config) -> nn.Module:
    """Return the network: images [B, in_channels, image_size, image_size] -> logits [B, classes]."""
    from .model import build_cnn

    return build_cnn(config)


def shard_units(module: nn.Module) -> list[str]:
    """Return the layers that are sharded one by one."""
    from ..layered import layers_with_parameters

    return layers_with_parameters(module)
