"""A compressed model from its plug-in and its tensors. Called by the format `safetensors`.

What pruning, factorising, merging and tying did to it is read off names and shapes. Needs the model's code and torch,
nothing of the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from orchestrator import plugins
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.spec.base import Use

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def rebuild(model: Use, tensors: Mapping[str, Tensor], shared: Mapping[str, str]) -> nn.Module:
    """Return the model with these weights, in eval mode. `shared`: other names of tensors -> the name they are under.

    Raises ExportError when a tensor has no place in the model, or a place no tensor.
    """
    built: nn.Module = plugins.build("models", model.use, model.options)
    every = {**tensors, **{name: tensors[one] for name, one in shared.items()}}
    _fit(built, "", every)
    _tie(built, every, shared)
    there = set(built.state_dict())
    if there != set(every):
        wrong = sorted(there ^ set(every))
        raise ExportError(f"the weights do not fit the model {model.use}: {', '.join(wrong[:3])}")
    return built.requires_grad_(False).eval()


def _fit(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Give a module and all below it the structure and the values that the tensors have, in place."""
    for name, child in list(module._modules.items()):
        path = f"{prefix}{name}"
        if child is None or not child.state_dict():
            continue
        if (
            isinstance(child, nn.Linear | nn.Conv2d)
            and f"{path}.weight" not in tensors
            and f"{path}.0.weight" in tensors
        ):
            child = module._modules[name] = _pair(child)
        if any(other.startswith(f"{path}.") for other in tensors):
            _fit(child, f"{path}.", tensors)
        elif isinstance(child, _NORMS):
            module._modules[name] = nn.Identity()  # merged into the convolution before it
        else:
            del module._modules[name]  # a block that was taken out
    _fill(module, prefix, tensors)


def _pair(layer: nn.Linear | nn.Conv2d) -> nn.Sequential:
    """Return two thin layers in place of one, as `lowrank` leaves them; their widths are those of the tensors."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Sequential(nn.Linear(layer.in_features, 1, bias=False), nn.Linear(1, layer.out_features, bias=bias))
    first = nn.Conv2d(
        layer.in_channels,
        1,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        bias=False,
    )
    return nn.Sequential(first, nn.Conv2d(1, layer.out_channels, 1, bias=bias))


def _fill(module: nn.Module, prefix: str, tensors: Mapping[str, Tensor]) -> None:
    """Give a module its own tensors, and the widths that it keeps beside them."""
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is None and f"{prefix}bias" in tensors:
        module.bias = nn.Parameter(tensors[f"{prefix}bias"])  # that of a norm merged into it
    for name, parameter in module._parameters.items():
        if parameter is not None and f"{prefix}{name}" in tensors:
            module._parameters[name] = nn.Parameter(tensors[f"{prefix}{name}"], requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and f"{prefix}{name}" in tensors:
            module._buffers[name] = tensors[f"{prefix}{name}"]
    _resize(module)


def _resize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        if 1 < module.groups == module.in_channels:
            module.groups = len(module.weight)  # a channel each
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = len(module.weight)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)


def _tie(model: nn.Module, tensors: Mapping[str, Tensor], shared: Mapping[str, str]) -> None:
    """Make one parameter of those that were one."""
    for name, one in shared.items():
        parent, _, last = one.rpartition(".")
        whole = model.get_submodule(parent)._parameters.get(last)
        place, _, own = name.rpartition(".")
        holder = model.get_submodule(place)
        if whole is not None and own in holder._parameters:
            holder._parameters[own] = whole


def shared_names(model: nn.Module) -> dict[str, str]:
    """Return for every further name of a tensor the first that it has."""
    first: dict[tuple[int, int, torch.Size], str] = {}
    found: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.shape)
        if tensor.numel() and first.setdefault(key, name) != name:
            found[name] = first[key]
    return found
