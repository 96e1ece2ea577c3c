"""Parameters that several layers share (tied embeddings, a block used at several depths), kept one object throughout.

Moving a module off the meta device, or splitting it, makes new parameters layer by layer; `tie` joins them again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def shared_groups(module: nn.Module) -> list[list[str]]:
    """Return the names of every parameter that has more than one, first name first."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def tie(module: nn.Module, groups: list[list[str]]) -> None:
    """Make every name of a group the parameter of its first name."""
    for first, *others in groups:
        parameter = module.get_parameter(first)
        for name in others:
            _set(module, name, parameter)


def units_without_shared(module: nn.Module, units: list[str]) -> list[str]:
    """Return the units none of whose parameters is shared with a layer outside: those stay with the whole model."""
    groups = shared_groups(module)

    def owns_alone(unit: str) -> bool:
        inside = f"{unit}."
        return all(len({name.startswith(inside) for name in group}) == 1 for group in groups)

    return [unit for unit in units if owns_alone(unit)]


def separate_stages(module: nn.Module, stages: Sequence[Sequence[str]]) -> dict[str, str]:
    """Give every pipeline stage its own copy of parameters that it shares with an earlier stage, in place.

    `stages` lists the top-level layers of each. Returns copy's name -> first name; copies are kept equal by equal
    initial values, summed gradients and equal updates.
    """
    stage_of = {layer: at for at, layers in enumerate(stages) for layer in layers}
    copies: dict[str, str] = {}
    groups = shared_groups(module)
    _separate_modules(module.get_submodule("layers"), stage_of)
    for first, *others in groups:
        home, parameter = stage_of[first.split(".")[1]], module.get_parameter(first)
        made = {home: parameter}
        for name in others:
            stage = stage_of[name.split(".")[1]]
            if stage not in made:
                made[stage] = nn.Parameter(torch.empty_like(parameter))
            if stage != home:
                copies[name] = first
            _set(module, name, made[stage])
    return copies


def _separate_modules(layers: nn.Module, stage_of: Mapping[str, int]) -> None:
    """Give a layer that is, or has in it, the same object as one of an earlier stage an object of its own."""
    home: dict[int, int] = {}
    for name, layer in list(layers._modules.items()):
        if layer is None:
            continue
        if any(home.get(id(part), stage_of[name]) != stage_of[name] for part in layer.modules()):
            layer = copy.deepcopy(layer)
            layers._modules[name] = layer
        home.update({id(part): stage_of[name] for part in layer.modules()})


def _set(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, attribute = name.rpartition(".")
    module.get_submodule(path).register_parameter(attribute, parameter)


class SharedOverStages:
    """Sums the gradients of parameters whose users lie on several pipeline stages; every copy gets the sum."""

    def __init__(self, copies: Mapping[str, str], rank_of: Mapping[str, int], group: dist.ProcessGroup) -> None:
        """`copies`: copy's name -> first name; `rank_of`: parameter name -> pipeline coordinate that holds it."""
        self._group = group
        self._rank = dist.get_rank(group)
        self._names: dict[str, list[str]] = {first: [first] for first in copies.values()}
        for name, first in copies.items():
            self._names[first].append(name)
        self._rank_of = rank_of

    def reduce(self, named: Mapping[str, Tensor]) -> None:
        """Sum in place; the copies of one parameter talk to its first holder only, in one fixed order."""
        for names in self._names.values():
            holders = list(dict.fromkeys(self._rank_of[name] for name in names))
            mine = [named[name] for name in names if name in named]
            gradients = [local_gradient(p.grad) for p in mine if p.grad is not None]
            if self._rank not in holders or not gradients:
                continue
            total = torch.stack(gradients).sum(0) if len(gradients) > 1 else gradients[0].clone()
            self._exchange(total, holders)
            for gradient in gradients:
                gradient.copy_(total)

    def _exchange(self, total: Tensor, holders: list[int]) -> None:
        first, *others = holders
        if self._rank != first:
            dist.send(total, group=self._group, group_dst=first)
            dist.recv(total, group=self._group, group_src=first)
            return
        for other in others:
            part = torch.empty_like(total)
            dist.recv(part, group=self._group, group_src=other)
            total += part
        for other in others:
            dist.send(total, group=self._group, group_dst=other)


def local_gradient(gradient: Tensor) -> Tensor:
    """Return this rank's piece of a gradient, sharing its memory."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
