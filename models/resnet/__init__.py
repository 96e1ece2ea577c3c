"""A residual network of basic blocks (He et al. 2015): a block adds what it finds to what it was given. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Literal

from ..declare import Slice, Split
from ..init import init_parameter
from ..shape import ModelShape, linear_flops, linear_params, require_positive
from .parts import cuts, elastic, widest

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "BlockSize",
    "Config",
    "block_sizes",
    "build",
    "coupled",
    "cuts",
    "elastic",
    "image_input",
    "init_parameter",
    "layer_costs",
    "layer_names",
    "norm_groups",
    "prunable",
    "shape",
    "shard_units",
    "tensor_limits",
    "tensor_plan",
    "widest",
]

image_input = True
"""Inputs are images, so the channels-last memory layout pays off."""
_MAX_GROUPS = 8


@dataclass(frozen=True)
class Config:
    """Square images of `in_channels` x `image_size` x `image_size`; `depths` blocks per stage, of `channels` each.

    Every stage but the first halves the size. `norm: batch` takes mean and spread over the samples of a microbatch on
    one rank, `sync_batch` over those of a microbatch on all ranks: either ties a sample's result to the others; `group`
    does not. The stem is one 3 x 3 convolution, made for small images.
    """

    in_channels: int = 1
    image_size: int = 8
    channels: tuple[int, ...] = (16, 32)
    depths: tuple[int, ...] = (1, 1)
    classes: int = 10
    norm: Literal["batch", "sync_batch", "group"] = "batch"

    def __post_init__(self) -> None:
        require_positive(in_channels=self.in_channels, image_size=self.image_size, classes=self.classes)
        require_positive(**{f"channels.{at}": width for at, width in enumerate(self.channels)})
        require_positive(**{f"depths.{at}": depth for at, depth in enumerate(self.depths)})
        if not self.channels or len(self.channels) != len(self.depths):
            raise ValueError(f"{len(self.channels)} channels and {len(self.depths)} depths; give one of each per stage")
        if self.image_size % 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"image_size {self.image_size} cannot be halved {len(self.channels) - 1} times (once per later stage)"
            )


@dataclass(frozen=True)
class BlockSize:
    """One block: channels in and out, stride, and the side of its output in pixels."""

    inputs: int
    outputs: int
    stride: int
    side: int

    @property
    def has_shortcut(self) -> bool:
        """Say whether the input must be brought to the output's size by a convolution of its own."""
        return self.stride > 1 or self.inputs != self.outputs


def block_sizes(config: Config) -> list[BlockSize]:
    """Return all blocks in order."""
    found: list[BlockSize] = []
    inputs, side = config.channels[0], config.image_size
    for stage, (outputs, depth) in enumerate(zip(config.channels, config.depths, strict=True)):
        for number in range(depth):
            stride = 2 if stage > 0 and number == 0 else 1
            side //= stride
            found.append(BlockSize(inputs, outputs, stride, side))
            inputs = outputs
    return found


def norm_groups(channels: int) -> int:
    """Return the number of groups of a group norm, each of several channels: one alone would lose its mean."""
    return gcd(_MAX_GROUPS, channels // 2) if channels % 2 == 0 else gcd(_MAX_GROUPS, channels)


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
    return ["stem", *(f"block{at}" for at in range(1, len(block_sizes(config)) + 1)), "pool", "head"]


def layer_costs(config: Config) -> list[tuple[int, int]]:
    """Return (operations on one sample, weights) of every layer."""
    costs = [_conv_cost(config.in_channels, config.channels[0], 3, config.image_size)]
    for size in block_sizes(config):
        parts = [_conv_cost(inputs, size.outputs, 3, size.side) for inputs in (size.inputs, size.outputs)]
        if size.has_shortcut:
            parts.append(_conv_cost(size.inputs, size.outputs, 1, size.side))
        costs.append((sum(flops for flops, _ in parts), sum(params for _, params in parts)))
    pair = (config.channels[-1], config.classes)
    return [*costs, (0, 0), (linear_flops(*pair), linear_params(*pair))]


def _conv_cost(inputs: int, outputs: int, kernel: int, side: int) -> tuple[int, int]:
    """Return (operations, weights) of a convolution without bias and the norm after it."""
    weights = kernel * kernel * inputs * outputs
    return 2 * weights * side * side, weights + 2 * outputs


def tensor_plan(config: Config, sequence_parallel: bool) -> dict[str, Split]:
    """Return how tensor parallelism splits each block: first convolution by outputs, second by inputs."""
    plan: dict[str, Split] = {}
    for at in range(1, len(block_sizes(config)) + 1):
        plan[f"layers.block{at}.conv1"] = Split("column", output="split")
        plan[f"layers.block{at}.norm1"] = Split("channels", "split", "split")
        plan[f"layers.block{at}.conv2"] = Split("row", "split")
    return plan


def tensor_limits(config: Config) -> dict[str, int]:
    """Return the numbers that the tensor degree must divide: channels, or whole groups of them."""
    if config.norm == "group":
        return {f"groups of channels.{at}": norm_groups(width) for at, width in enumerate(config.channels)}
    return {f"channels.{at}": width for at, width in enumerate(config.channels)}


def prunable(config: Config) -> dict[str, dict[str, int]]:
    """Return what can be made narrower: the channels inside each block, and those its stage has in common."""
    widths = {"stem": config.channels[0]}
    widths |= {f"block{at}": size.outputs for at, size in enumerate(block_sizes(config), start=1)}
    blocks = coupled(config)["depth"]
    return {"channels": widths} | ({"depth": {"blocks": len(blocks)}} if blocks else {})


def coupled(config: Config) -> dict[str, dict[str, tuple[Slice, ...]]]:
    """Return the blocks that can be left out: those whose input and output have one size."""
    sizes = enumerate(block_sizes(config), start=1)
    return {"depth": {f"layers.block{at}": () for at, size in sizes if not size.has_shortcut}}


def build(config: Config) -> nn.Module:
    """Return the network: images [B, in_channels, image_size, image_size] -> logits [B, classes]."""
    from .model import build_resnet

    return build_resnet(config)


def shard_units(module: nn.Module) -> list[str]:
    """Return the layers that are sharded one by one."""
    from ..layered import layers_with_parameters

    return layers_with_parameters(module)
