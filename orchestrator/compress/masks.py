"""Zeros in place of the least weights: unstructured, or 2 of every 4. The weights that stay may make up for it.

A mask makes no file smaller by itself; `pack` writes only what is left. `update: hessian` is the one-shot method of
SparseGPT (Frantar & Alistarh 2023): inputs are taken one by one, and what a zero does to a layer's outputs on the
calibration samples is spread over the inputs still to come.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orchestrator.compress.prune import recover_between
from orchestrator.compress.targets import Layer, input_moments, weighted_layers
from orchestrator.errors import ExportError
from orchestrator.export.weights import plain_copy

if TYPE_CHECKING:
    from orchestrator.compress.base import Context
    from orchestrator.compress.prune import Config

_DAMPING = 0.01
_BLOCK = 64


def prune_weights(
    model: nn.Module, config: Config, context: Context, held: Mapping[str, Tensor]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a copy with zeros and its masks by parameter name (True: kept). Raises ExportError.

    `held` are the masks of steps before: what they made zero stays zero and counts as part of the ratio.
    """
    twin = plain_copy(model)
    inputs, targets = context.calibration()
    layers, _ = masked_layers(twin, config)
    _require_enough(layers, config)
    torch.manual_seed(context.job.train.seed)
    masks = dict(held)
    for number in range(1, config.rounds + 1):
        if config.importance == "taylor":
            fill_gradients(twin, context, inputs, targets)
        share = config.ratio * (1 - (1 - number / config.rounds) ** 3)  # most go early, when they are missed least
        open_ = {name: _open(layer, masks.get(f"{name}.weight")) for name, layer in layers.items()}
        scores = {
            name: _scores(layer, config.importance).masked_fill(~open_[name], -torch.inf)
            for name, layer in layers.items()
        }
        chosen = _two_of_four(scores) if config.kind == "2:4" else _largest(scores, share)
        kept = {name: mask & open_[name] for name, mask in chosen.items()}
        if config.update == "hessian":
            kept = _updated(twin, layers, kept, open_, inputs, config.kind)
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.masked_fill_(~kept[name].view_as(layer.weight), 0.0)
        masks |= {f"{name}.weight": kept[name].view_as(layer.weight) for name, layer in layers.items()}
        twin.zero_grad(set_to_none=True)
        if number < config.rounds:
            recover_between(twin, config, context, masks)
    return plain_copy(twin), masks


def masked_layers(model: nn.Module, config: Config) -> tuple[dict[str, Layer], tuple[str, ...]]:
    """Return the layers that get a mask, and those that 2:4 cannot have: their inputs are no multiple of 4.

    Raises ExportError when none is left.
    """
    layers = weighted_layers(model, config.keep)
    if config.kind != "2:4":
        return layers, ()
    odd = tuple(name for name, layer in layers.items() if layer.weight[0].numel() % 4)
    if len(odd) == len(layers):
        raise ExportError("2:4 needs layers whose inputs are a multiple of 4, and there is none", hint="unstructured")
    return {name: layer for name, layer in layers.items() if name not in odd}, odd


def fill_gradients(model: nn.Module, context: Context, inputs: Tensor, targets: Tensor) -> None:
    """Fill gradients of the loss over the calibration samples, which Taylor importance multiplies with weights."""
    from orchestrator.train.loss import build_loss

    loss = build_loss(context.job, context.plan)
    model.requires_grad_(True)
    model.zero_grad(set_to_none=True)
    (loss.sum(model(inputs), targets) / len(inputs)).backward()  # type: ignore[no-untyped-call]


def _open(layer: Layer, mask: Tensor | None) -> Tensor:
    """Return which weights no mask holds at zero yet, [outputs, inputs per output]."""
    return torch.ones_like(layer.weight, dtype=torch.bool).flatten(1) if mask is None else mask.flatten(1)


def _scores(layer: Layer, importance: str) -> Tensor:
    """Return how much each weight matters, [outputs, inputs per output]."""
    weight = layer.weight.detach().flatten(1)
    if importance == "random":
        return torch.rand_like(weight)
    if importance == "taylor":
        gradient = layer.weight.grad
        return torch.zeros_like(weight) if gradient is None else (weight * gradient.flatten(1)).abs()
    return weight.abs()


def _largest(scores: dict[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """Return masks that keep the best of all layers together: a layer that matters more keeps more, none loses all."""
    flat = torch.cat([_first_kept(score.flatten()) for score in scores.values()])
    gone = flat.argsort()[: int(len(flat) * ratio)]
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[gone] = False
    parts = torch.split(kept, [score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


def _first_kept(score_N: Tensor) -> Tensor:
    """Return a layer's scores with the best above any other's: without it nothing would go through the layer."""
    score_N = score_N.clone()
    score_N[score_N.argmax()] = torch.inf
    return score_N


def _two_of_four(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return masks that keep the best two of every four inputs in a row."""
    found: dict[str, Tensor] = {}
    for name, score in scores.items():
        groups = score.view(-1, 4)
        kept = torch.zeros_like(groups, dtype=torch.bool)
        kept.scatter_(1, groups.topk(2, dim=1).indices, True)
        found[name] = kept.view_as(score)
    return found


def _updated(
    model: nn.Module,
    layers: dict[str, Layer],
    kept: dict[str, Tensor],
    open_: dict[str, Tensor],
    inputs: Tensor,
    kind: str,
) -> dict[str, Tensor]:
    """Change the layers' weights so that zeros are made up for; return the masks, chosen anew by the same shares."""
    moments = input_moments(model, layers, inputs)
    found: dict[str, Tensor] = {}
    for name, layer in layers.items():
        weight, mask = sparse_update(layer.weight.detach().flatten(1), moments[name], kept[name], kind, open_[name])
        layer.weight.data = weight.view_as(layer.weight)
        found[name] = mask
    return found


def sparse_update(
    weight_OI: Tensor, moment_II: Tensor, kept_OI: Tensor, kind: str, open_OI: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return weights and mask after SparseGPT over one layer, as many zeros as `kept_OI` has (per block of inputs).

    `moment_II` is the mean of x x^T over the layer's inputs; only `open_OI` (None: all) may be kept.
    """
    weight = weight_OI.double().clone()
    size = weight.shape[1]
    damped = moment_II + _DAMPING * moment_II.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    damped += 1e-10 * torch.eye(size, dtype=torch.float64)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    mask = kept_OI.clone()
    open_OI = torch.ones_like(mask) if open_OI is None else open_OI
    for begin in range(0, size, _BLOCK):
        end = min(begin + _BLOCK, size)
        saliency = (weight[:, begin:end] / factor.diagonal()[begin:end]).square()
        may = open_OI[:, begin:end]
        mask[:, begin:end] = _choose(saliency.masked_fill(~may, -torch.inf), kept_OI[:, begin:end], kind) & may
        for at in range(begin, end):
            error_O = (weight[:, at] * ~mask[:, at]) / factor[at, at]
            weight[:, at:] -= error_O[:, None] * factor[at, at:]
    return weight.masked_fill(~mask, 0.0).to(weight_OI.dtype), mask


def _choose(saliency: Tensor, kept: Tensor, kind: str) -> Tensor:
    if kind == "2:4":
        return _two_of_four({"": saliency})[""]
    flat = torch.zeros(kept.numel(), dtype=torch.bool)
    flat[saliency.flatten().topk(int(kept.sum())).indices] = True
    return flat.view_as(kept)


def _require_enough(layers: dict[str, Layer], config: Config) -> None:
    """Raise ExportError where fewer weights would be left than there are layers, each of which keeps its best one."""
    total = sum(layer.weight.numel() for layer in layers.values())
    left = total - int(total * config.ratio)
    if config.kind != "2:4" and left < len(layers):
        raise ExportError(
            f"the ratio leaves {left} weights for {len(layers)} layers", hint="lower it, or name layers in `keep`"
        )
