"""Rosenblatt's perceptron: a weighted sum and a step. It draws one straight line, so XOR is beyond it. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..init import init_parameter
from ..shape import ModelShape, linear_flops, linear_params, require_positive

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Config", "build", "init_parameter", "shape"]


@dataclass(frozen=True)
class Config:
    """`inputs` features in, yes or no out."""

    inputs: int = 2

    def __post_init__(self) -> None:
        require_positive(inputs=self.inputs)


def shape(config: Config) -> ModelShape:
    """Return the model in numbers."""
    return ModelShape(
        num_params=linear_params(config.inputs, 1),
        flops_per_sample=linear_flops(config.inputs, 1),
        inputs=(config.inputs,),
        outputs=(1,),
        loss="bce",
    )


def build(config: Config) -> nn.Module:
    """Return the network: [B, inputs] -> logit [B, 1]; its `predict` gives the 0 or 1."""
    from .model import build_perceptron

    return build_perceptron(config)
