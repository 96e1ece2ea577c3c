"""A vision transformer (Dosovitskiy et al. 2020): patches of an image attend to one another. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..declare import Slice, Split
from ..shape import ModelShape, linear_flops, linear_params, require_dropout, require_positive
from ..sizes import attention_flops, attention_params, require_heads

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Config:
    """Square images in patches of `patch_size` x `patch_size`; `layers` blocks of width `dim`.

    `hidden` is the width of a block's feed-forward (0: 4 x `dim`). The mean over patches is classified.
    """

    in_channels: int = 1
    image_size: int = 8
    patch_size: int = 2
    dim: int = 64
    layers: int = 4
    heads: int = 4
    hidden: int = 0
    classes: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = ("in_channels", "image_size", "patch_size", "dim", "layers", "heads", "classes")
        require_positive(**{name: getattr(self, name) for name in sizes})
        require_dropout(self.dropout)
        require_heads(self.dim, self.heads, self.heads)
        if self.hidden < 0:
            raise ValueError(f"hidden must be 0 (4 x dim) or a width, not {self.hidden}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a whole number of patches of {self.patch_size}")

    @property
    def patches(self) -> int:
        """Number of patches, the length of the sequence."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def hidden_width(self) -> int:
        """Width of the feed-forward."""
        return self.hidden or 4 * self.dim


def shape(config: Config) -> ModelShape:
    """Return the model in numbers; outputs are class scores (logits)."""
    costs = layer_costs(config)
    return ModelShape(
        num_params=sum(params for _, params in costs),
        flops_per_sample=sum(flops for flops, _ in costs),
        inputs=(config.in_channels, config.image_size, config.image_size),
        outputs=(config.classes,),
        loss="cross_entropy",
    )


def layer_names(config: Config) -> list[str]:
    """Return the names of the layers in order."""
    return ["patches", *(f"block{number}" for number in range(1, config.layers + 1)), "norm", "pool", "head"]


def layer_costs(config: Config) -> list[tuple[int, int]]:
    """Return (operations on one sample, weights) of every layer."""
    dim, hidden, length = config.dim, config.hidden_width, config.patches
    pixels = config.in_channels * config.patch_size**2
    flops = attention_flops(length, dim, config.heads, config.heads) + 2 * length * linear_flops(dim, hidden)
    params = attention_params(dim, config.heads, config.heads) + 4 * dim  # four biases
    params += linear_params(dim, hidden) + linear_params(hidden, dim) + 4 * dim  # two norms
    patches = (length * linear_flops(pixels, dim), linear_params(pixels, dim) + length * dim)
    head = (linear_flops(dim, config.classes), linear_params(dim, config.classes))
    return [patches, *([(flops, params)] * config.layers), (0, 2 * dim), (0, 0), head]


def tensor_plan(config: Config, sequence_parallel: bool) -> dict[str, Split]:
    """Return how tensor parallelism splits each block. Sequences are short: they are never split."""
    plan: dict[str, Split] = {}
    for number in range(1, config.layers + 1):
        block = f"layers.block{number}"
        columns = [f"{block}.attention.{name}" for name in ("query", "key", "value")]
        plan |= {name: Split("column", output="split") for name in (*columns, f"{block}.feed_forward.up")}
        plan |= {f"{block}.{name}": Split("row", "split") for name in ("attention.output", "feed_forward.down")}
        plan[f"{block}.attention"] = Split("gather")
    return plan


def tensor_limits(config: Config) -> dict[str, int]:
    """Return the numbers that the tensor degree must divide."""
    return {"heads": config.heads, "hidden": config.hidden_width}


def prunable(config: Config) -> dict[str, dict[str, int]]:
    """Return what can be made smaller: feed-forward widths, heads, blocks."""
    names = [f"layers.block{number}" for number in range(1, config.layers + 1)]
    return {
        "mlp": {f"{name}.feed_forward": config.hidden_width for name in names},
        "heads": {f"{name}.attention": config.heads for name in names},
        "depth": {"blocks": config.layers},
    }


def coupled(config: Config) -> dict[str, dict[str, tuple[Slice, ...]]]:
    """Return which slices of which tensors go together when one is taken out."""
    found: dict[str, dict[str, tuple[Slice, ...]]] = {"mlp": {}, "heads": {}, "depth": {}}
    width = config.dim // config.heads
    for number in range(1, config.layers + 1):
        block = f"layers.block{number}"
        up, down = f"{block}.feed_forward.up", f"{block}.feed_forward.down"
        found["mlp"][f"{block}.feed_forward"] = (
            Slice(f"{up}.weight", 0),
            Slice(f"{up}.bias", 0),
            Slice(f"{down}.weight", 1),
        )
        names = [f"{block}.attention.{name}" for name in ("query", "key", "value")]
        heads = [Slice(f"{name}.{part}", 0, width) for name in names for part in ("weight", "bias")]
        found["heads"][f"{block}.attention"] = (*heads, Slice(f"{block}.attention.output.weight", 1, width))
        found["depth"][block] = ()
    return found


def build(config: Config) -> nn.Module:
    """Return the network: images [B, in_channels, image_size, image_size] -> logits [B, classes]."""
    from .model import build_vit

    return build_vit(config)


def init_parameter(name: str, tensor: Tensor, generator: Generator) -> None:
    """Fill a full CPU tensor in place: norms 1, biases 0, positions and head normal of 0.02, others by their fan-in."""
    from ..init import init_transformer_parameter

    init_transformer_parameter(name, tensor, generator)


def shard_units(module: nn.Module) -> list[str]:
    """Return the layers that are sharded, recomputed and compiled one by one."""
    from ..layered import layers_with_parameters

    return layers_with_parameters(module)
