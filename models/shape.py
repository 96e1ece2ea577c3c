"""`ModelShape`: what a model says of itself in plain numbers, read while planning, before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A model in numbers.

    `inputs` and `outputs` are shapes of one sample, without the batch dim. `flops_per_sample` counts the products of
    one forward pass (convolutions and matrix products; a multiply and its add are two), as torch's own FlopCounterMode
    does. `loss` names the loss that fits the outputs; `input_dtype` is torch's name of the inputs' type.
    """

    num_params: int
    flops_per_sample: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    loss: str
    input_dtype: str = "float32"


def linear_params(inputs: int, outputs: int) -> int:
    """Return the number of weights and biases of a linear layer."""
    return inputs * outputs + outputs


def linear_flops(inputs: int, outputs: int) -> int:
    """Return the operations of a linear layer on one sample."""
    return 2 * inputs * outputs


def require_positive(**sizes: int) -> None:
    """Raise ValueError naming the first size that is smaller than 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")


def require_dropout(dropout: float) -> None:
    """Raise ValueError unless 0 <= dropout < 1."""
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout must be at least 0 and below 1, not {dropout}")
