"""`init_parameter`: first values of one parameter from its name and shape alone, so no layout can change them."""

from __future__ import annotations

from math import prod, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def init_parameter(name: str, tensor: Tensor, generator: Generator) -> None:
    """Fill a full CPU tensor in place: biases 0, norm weights (one dim) 1, all others Kaiming normal.

    Kaiming: standard deviation sqrt(2 / fan_in), fan_in = weights that feed one output (He et al. 2015). The caller
    seeds `generator` by (seed, name), so the order in which parameters are made plays no part.
    """
    values = tensor.detach()  # same storage, no gradient record
    if name.rpartition(".")[2] == "bias":
        values.zero_()
    elif values.ndim < 2:
        values.fill_(1.0)
    else:
        values.normal_(0.0, sqrt(2.0 / prod(values.shape[1:])), generator=generator)


def init_transformer_parameter(name: str, tensor: Tensor, generator: Generator) -> None:
    """Fill a full CPU tensor in place: biases 0, norm weights 1, lookup tables and head normal with deviation 0.02.

    Linear weights, stacked ones too ([experts, out, in]), are normal with deviation 1 / sqrt(fan_in); half of that
    where a branch returns to the residual stream, so that the sum does not grow with the first few blocks.
    """
    values = tensor.detach()
    layer, _, kind = name.rpartition(".")
    part = layer.rpartition(".")[2]
    if kind == "bias":
        values.zero_()
    elif values.ndim < 2:
        values.fill_(1.0)
    elif part in ("embedding", "head") or kind == "position":
        values.normal_(0.0, 0.02, generator=generator)
    else:
        fan_in = values.shape[-1] if values.ndim == 3 else prod(values.shape[1:])
        returns = part in ("output", "down") or kind == "w2"
        values.normal_(0.0, (0.5 if returns else 1.0) / sqrt(fan_in), generator=generator)
