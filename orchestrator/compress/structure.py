"""Feed-forward width, attention heads and whole blocks, taken out as the model declares them. Imports torch.

A model says `coupled(config)`, which slices of which tensors belong together: {kind: {name: slices}} with the fields of
`orchestrator.models.declare.Slice`; for `depth`, {block: ()}. What is taken out is gone from every tensor at once, so
the narrower model equals the wide one with zeros in the last of its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from orchestrator import plugins
from orchestrator.compress.masks import fill_gradients
from orchestrator.compress.prune import kept_width, recover_between
from orchestrator.compress.targets import require_known
from orchestrator.errors import ExportError
from orchestrator.export.weights import plain_copy

if TYPE_CHECKING:
    from orchestrator.compress.base import Context
    from orchestrator.compress.prune import Config


class Slice(Protocol):
    """One dim of a parameter along which parts lie, `chunk` numbers each; `index`: in this place of the first dim."""

    @property
    def parameter(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def chunk(self) -> int: ...

    @property
    def index(self) -> int | None: ...


Groups = Mapping[str, Sequence[Slice]]
Parameters = Mapping[str, Tensor]


def prune_structure(model: nn.Module, config: Config, context: Context) -> nn.Module:
    """Return a copy without the least important parts. Raises ExportError when there is nothing of the kind left."""
    twin = plain_copy(model)
    every = declared(context, config.kind)
    require_known(twin, config.keep, every)
    groups = _present(twin, every, config)
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    widths = {
        name: len(_along(parameters[slices[0].parameter], slices[0])) // slices[0].chunk
        for name, slices in groups.items()
        if slices
    }
    inputs, targets = context.calibration()
    torch.manual_seed(context.job.train.seed)
    for number in range(1, config.rounds + 1):
        ratio = config.ratio * number / config.rounds
        if config.kind == "depth":
            _drop_blocks(twin, list(groups), ratio, config.importance, inputs)
        else:
            if config.importance == "taylor":
                fill_gradients(twin, context, inputs, targets)
            _narrow(twin, groups, widths, config, ratio)
        twin.zero_grad(set_to_none=True)
        if number < config.rounds:
            recover_between(twin, config, context)
    return plain_copy(twin)


def declared(context: Context, kind: str) -> Groups:
    """Return what the model says belongs together. Raises ExportError when it says nothing."""
    use = context.job.model
    plugin: Any = plugins.load("models", use.use)
    if not hasattr(plugin, "coupled"):
        raise ExportError(f"model {use.use} does not declare `coupled`, so its {kind} cannot be found")
    config = plugins.build_config(plugin.Config, use.options)
    groups: Groups = plugin.coupled(config).get(kind, {})
    return groups


def passed_over(model: nn.Module, context: Context, config: Config) -> list[str]:
    """Return the groups whose layers are there but were made other ones by a step before (`lowrank`): they stay."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    return [
        name
        for name, slices in declared(context, config.kind).items()
        if not any(word in name for word in config.keep)
        and any(part.parameter not in parameters and part.parameter.rpartition(".")[0] in modules for part in slices)
    ]


def _present(model: nn.Module, groups: Groups, config: Config) -> Groups:
    """Return the groups that the model still has and the user does not keep."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    found: dict[str, Sequence[Slice]] = {}
    for name, slices in groups.items():
        there = [part.parameter in parameters for part in slices] or [name in modules]
        if any(there) and not all(there):
            raise ExportError(f"a step before has changed {name}", hint=f"move this prune ({config.kind}) first")
        if all(there) and not any(word in name for word in config.keep):
            found[name] = slices
    if not found:
        raise ExportError(f"the model has no {config.kind} left to prune", hint="shorten the step's `keep`")
    return found


def _narrow(model: nn.Module, groups: Groups, widths: Mapping[str, int], config: Config, ratio: float) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    edits: dict[str, list[tuple[Slice, Tensor]]] = {}
    unit = config.multiple_of if config.kind == "mlp" else 1
    for name, slices in groups.items():
        scores = _scores(parameters, slices, config.importance)
        kept = scores.topk(min(len(scores), kept_width(widths[name], ratio, unit))).indices.sort().values
        for part in slices:
            rows = (kept[:, None] * part.chunk + torch.arange(part.chunk)).flatten()
            edits.setdefault(part.parameter, []).append((part, rows))
    for path, changes in edits.items():
        _replace(model, path, _cut(parameters[path].detach(), changes))


def _along(tensor: Tensor, part: Slice) -> Tensor:
    """Return the tensor with the dim of the parts first."""
    return tensor.movedim(part.dim, 0) if part.index is None else tensor[part.index].movedim(part.dim - 1, 0)


def _scores(parameters: Parameters, slices: Sequence[Slice], importance: str) -> Tensor:
    """Return one number a part: the squares of its weights, or how much the loss would feel its absence."""
    totals: list[Tensor] = []
    for part in slices:
        parameter = parameters[part.parameter]
        weight = _along(parameter.detach(), part)
        values = weight.square()
        if importance == "taylor":
            values = weight * (torch.zeros_like(weight) if parameter.grad is None else _along(parameter.grad, part))
        totals.append(values.reshape(-1, part.chunk * (values[0].numel())).sum(1))
    total = torch.stack(totals).sum(0).abs()
    return torch.rand_like(total) if importance == "random" else total


def _cut(weight: Tensor, changes: Sequence[tuple[Slice, Tensor]]) -> Tensor:
    stacked = dict(enumerate(weight.unbind(0))) if any(part.index is not None for part, _ in changes) else {}
    for part, rows in changes:
        if part.index is None:
            weight = weight.index_select(part.dim, rows)
        else:
            stacked[part.index] = stacked[part.index].index_select(part.dim - 1, rows)
    return torch.stack(list(stacked.values())) if stacked else weight


def _replace(model: nn.Module, path: str, weight: Tensor) -> None:
    owner_path, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    setattr(owner, name, nn.Parameter(weight, requires_grad=False))
    if isinstance(owner, nn.Linear) and name == "weight":
        owner.out_features, owner.in_features = weight.shape


def _drop_blocks(model: nn.Module, blocks: list[str], ratio: float, importance: str, inputs: Tensor) -> None:
    """Take out blocks one by one, the one first that turns what goes through it least (Men et al. 2024)."""
    left = [name for name in blocks if _has(model, name)]
    while len(left) > kept_width(len(blocks), ratio, 1):
        scores = torch.rand(len(left)).tolist() if importance == "random" else _influence(model, left, inputs)
        gone = left.pop(scores.index(min(scores)))
        parent, _, name = gone.rpartition(".")
        del model.get_submodule(parent)._modules[name]


def _has(model: nn.Module, name: str) -> bool:
    return any(path == name for path, _ in model.named_modules(remove_duplicate=False))


def _influence(model: nn.Module, blocks: Sequence[str], inputs: Tensor) -> list[float]:
    """Return 1 - the mean cosine between what goes into each block and what comes out, over the calibration samples."""
    found: dict[str, float] = {}

    def hook(name: str) -> Any:
        def look(_: nn.Module, given: Any, output: Tensor) -> None:
            before, after = given[0].flatten(1), output.flatten(1)
            found[name] = 1 - float(torch.cosine_similarity(before, after, dim=1).mean())

        return look

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in blocks]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [found[name] for name in blocks]
