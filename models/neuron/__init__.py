"""One neuron: a weighted sum of its inputs plus a bias. Torch-free.

There is no `init_parameter` here: the weights may be given in the job, and `build` puts them in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..shape import ModelShape, linear_flops, linear_params, require_positive

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Config:
    """`inputs` numbers in, one out. `weights` (one per input) and `bias` are the first values; absent: random."""

    inputs: int = 6
    weights: tuple[float, ...] | None = None
    bias: float | None = None

    def __post_init__(self) -> None:
        require_positive(inputs=self.inputs)
        if self.weights is not None and len(self.weights) != self.inputs:
            raise ValueError(f"{len(self.weights)} weights for {self.inputs} inputs; give one weight per input")


def shape(config: Config) -> ModelShape:
    """Return the model in numbers."""
    return ModelShape(
        num_params=linear_params(config.inputs, 1),
        flops_per_sample=linear_flops(config.inputs, 1),
        inputs=(config.inputs,),
        outputs=(1,),
        loss="mse",
    )


def build(config: Config) -> nn.Module:
    """Return the network: [B, inputs] -> [B, 1]."""
    from .model import build_neuron

    return build_neuron(config)
