"""Low-rank factors of linear layers and convolutions. Imports torch. Called by the step `lowrank`.

Of all matrices A of rank r the one with the least mean |W x - A x|^2 over the inputs x is W's truncated singular value
decomposition after multiplying with a square root S of the inputs' moment E[x x^T]: A = trunc(W S) S^-1 (the principle
of Yuan et al. 2023).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orchestrator.compress.targets import Layer, input_moments, weighted_layers
from orchestrator.errors import ExportError
from orchestrator.export.weights import plain_copy

if TYPE_CHECKING:
    from orchestrator.compress.base import Context
    from orchestrator.compress.lowrank import Config

_DAMPING = 1e-4


def factorise(model: nn.Module, config: Config, context: Context) -> tuple[nn.Module, dict[str, int], tuple[str, ...]]:
    """Return a copy of thin layers, the rank of each, and the layers that would not gain. Raises ExportError."""
    twin = plain_copy(model)
    every = weighted_layers(twin)
    layers = weighted_layers(twin, config.keep)
    layers.pop(list(every)[-1], None)
    ranks = {name: rank_of(layer.weight.flatten(1).shape, config.ratio) for name, layer in layers.items()}
    small = tuple(name for name, rank in ranks.items() if rank < 1 or _grouped(layers[name]))
    chosen = {name: layer for name, layer in layers.items() if name not in small}
    if not chosen:
        raise ExportError("no layer is large enough to gain by two factors", hint="lower the ratio, shorten `keep`")
    moments = input_moments(twin, chosen, context.calibration()[0]) if config.whiten else {}
    for name, layer in chosen.items():
        parent, _, last = name.rpartition(".")
        setattr(twin.get_submodule(parent), last, thin(layer, ranks[name], moments.get(name)))
    return plain_copy(twin), {name: ranks[name] for name in chosen}, small


def rank_of(shape: torch.Size, ratio: float) -> int:
    """Return the rank at which two factors have (1 - ratio) of the weights; 0 when there is none."""
    outputs, inputs = shape
    return int((1 - ratio) * outputs * inputs / (outputs + inputs))


def _grouped(layer: Layer) -> bool:
    return isinstance(layer, nn.Conv2d) and (layer.groups > 1 or layer.padding_mode != "zeros")


def factors(weight_OI: Tensor, rank: int, moment_II: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (left [O, rank], right [rank, I]) whose product is nearest to the weight, over inputs of this moment."""
    weight = weight_OI.double()
    if moment_II is None:
        root = inverse = torch.eye(weight.shape[1], dtype=torch.float64)
    else:
        values, vectors = torch.linalg.eigh(moment_II)
        values = values.clamp(min=_DAMPING * float(values.mean()) + 1e-12).sqrt()
        root, inverse = (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
    left, sizes, right = torch.linalg.svd(weight @ root, full_matrices=False)
    balance = sizes[:rank].sqrt()  # half of each size on either side, so that training finds both alike
    one, two = left[:, :rank] * balance, (balance[:, None] * right[:rank]) @ inverse
    return one.to(weight_OI.dtype), two.to(weight_OI.dtype)


def thin(layer: Layer, rank: int, moment_II: Tensor | None) -> nn.Sequential:
    """Return two layers in place of one: to `rank` numbers, and from them to the outputs."""
    left, right = factors(layer.weight.detach().flatten(1), rank, moment_II)
    first: Layer
    second: Layer
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False)
        second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    else:
        first = nn.Conv2d(
            layer.in_channels,
            rank,
            layer.kernel_size,  # type: ignore[arg-type]
            stride=layer.stride,  # type: ignore[arg-type]
            padding=layer.padding,  # type: ignore[arg-type]
            dilation=layer.dilation,  # type: ignore[arg-type]
            bias=False,
        )
        second = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    first.weight.data, second.weight.data = right.view_as(first.weight), left.view_as(second.weight)
    if layer.bias is not None and second.bias is not None:
        second.bias.data = layer.bias.detach().clone()
    return nn.Sequential(first, second)
