"""Batch norms merged into the convolutions before them: the same answers from fewer numbers. Imports torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from orchestrator.errors import ExportError

_CLOSE = 1e-4


def fold_norms(model: nn.Module, inputs_B: Tensor) -> int:
    """Merge, in place, every batch norm that is the only reader of a convolution's output; return how many.

    Which follows which is seen by running the model on `inputs_B`. Raises ExportError when answers would change.
    """
    with torch.no_grad():
        wanted = model(inputs_B)
        pairs = _pairs(model, inputs_B)
        for conv, norm in pairs:
            _merge(conv, norm)
        gone = {id(norm) for _, norm in pairs}
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if id(child) in gone:
                    setattr(parent, name, nn.Identity())
        error = float((model(inputs_B) - wanted).norm() / wanted.norm().clamp(min=1e-30))
    if not error <= _CLOSE:
        raise ExportError(
            f"folding batch norms changed the answers by {error:.2g}: a convolution's output is used elsewhere too",
            hint="set fold_norms=false",
        )
    return len(pairs)


def _pairs(model: nn.Module, inputs_B: Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after(layer: nn.Module, given: Any, output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            made[id(output)] = (layer, output)  # the tensor is held, so that its id stays its own
        elif isinstance(layer, nn.BatchNorm2d) and id(given[0]) in made and layer.running_var is not None:
            found.append((made[id(given[0])][0], layer))

    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    handles = [layer.register_forward_hook(after) for layer in layers]
    try:
        model(inputs_B)
    finally:
        for handle in handles:
            handle.remove()
    once = {id(norm) for _, norm in found if sum(norm is other for _, other in found) == 1}
    return [(conv, norm) for conv, norm in found if id(norm) in once]


def _merge(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, spread = norm.running_mean, norm.running_var
    if mean is None or spread is None:
        raise ExportError("a batch norm without running statistics cannot be merged", hint="set fold_norms=false")
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, spread, norm.eps, norm.weight, norm.bias
    )
    conv.requires_grad_(False)
