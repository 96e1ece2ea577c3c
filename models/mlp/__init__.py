"""A multi-layer perceptron: linear layers with a bend between them, which is what lets it learn XOR. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from ..declare import Slice, Split, column_row_pairs
from ..init import init_parameter
from ..shape import ModelShape, linear_flops, linear_params, require_dropout, require_positive

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Config",
    "build",
    "coupled",
    "init_parameter",
    "layer_costs",
    "layer_names",
    "prunable",
    "shape",
    "shard_units",
    "tensor_limits",
    "tensor_plan",
]


@dataclass(frozen=True)
class Config:
    """`inputs` features, hidden layers of these widths, `outputs` numbers."""

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = (64,)
    activation: Literal["relu", "sigmoid", "tanh"] = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_positive(inputs=self.inputs, outputs=self.outputs)
        require_positive(**{f"hidden.{at}": width for at, width in enumerate(self.hidden)})
        require_dropout(self.dropout)


def shape(config: Config) -> ModelShape:
    """Return the model in numbers. One output is read as a value (mse), several as classes (cross_entropy)."""
    costs = layer_costs(config)
    return ModelShape(
        num_params=sum(params for _, params in costs),
        flops_per_sample=sum(flops for flops, _ in costs),
        inputs=(config.inputs,),
        outputs=(config.outputs,),
        loss="mse" if config.outputs == 1 else "cross_entropy",
    )


def layer_names(config: Config) -> list[str]:
    """Return the names of the layers in order."""
    return [*(f"hidden{number}" for number in range(1, len(config.hidden) + 1)), "head"]


def layer_costs(config: Config) -> list[tuple[int, int]]:
    """Return (operations on one sample, weights) of every layer."""
    pairs = pairwise((config.inputs, *config.hidden, config.outputs))
    return [(linear_flops(*pair), linear_params(*pair)) for pair in pairs]


def tensor_plan(config: Config, sequence_parallel: bool) -> dict[str, Split]:
    """Return how tensor parallelism splits the linear layers: by outputs, by inputs, by outputs, by inputs."""
    return column_row_pairs([*(f"layers.{name}.linear" for name in layer_names(config)[:-1]), "layers.head"])


def tensor_limits(config: Config) -> dict[str, int]:
    """Return the numbers that the tensor degree must divide: every other width."""
    return {f"hidden.{at}": config.hidden[at] for at in range(0, len(config.hidden), 2)}


def prunable(config: Config) -> dict[str, dict[str, int]]:
    """Return what can be made narrower: the hidden layers."""
    return {"mlp": {f"layers.hidden{at}": width for at, width in enumerate(config.hidden, start=1)}}


def coupled(config: Config) -> dict[str, dict[str, tuple[Slice, ...]]]:
    """Return which slices of which tensors go together when one is taken out."""
    names = [f"layers.{name}.linear" for name in layer_names(config)[:-1]] + ["layers.head"]
    found = {}
    for before, after in pairwise(names):
        slices = (Slice(f"{before}.weight", 0), Slice(f"{before}.bias", 0), Slice(f"{after}.weight", 1))
        found[before.removesuffix(".linear")] = slices
    return {"mlp": found}


def build(config: Config) -> nn.Module:
    """Return the network: [B, inputs] -> [B, outputs]."""
    from .model import build_mlp

    return build_mlp(config)


def shard_units(module: nn.Module) -> list[str]:
    """Return the layers that are sharded one by one."""
    from ..layered import layers_with_parameters

    return layers_with_parameters(module)
