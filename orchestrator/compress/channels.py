"""Channel pruning over torch-pruning's dependency graph, which is imported here only.

The library finds which slices of which tensors must go together and scores them (Fang et al. 2023); which of them go is
decided here. Channels under a group norm go by whole groups, so that the groups that stay compute what they did, and
without a norm over channels nothing that stays changes either: the narrower model equals the masked one.
"""

from __future__ import annotations

from math import lcm
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from orchestrator.compress.masks import fill_gradients
from orchestrator.compress.prune import kept_width, recover_between
from orchestrator.compress.targets import require_known
from orchestrator.errors import ExportError, NotAbleError
from orchestrator.export.weights import plain_copy

if TYPE_CHECKING:
    from orchestrator.compress.base import Context
    from orchestrator.compress.prune import Config


def prune_channels(model: nn.Module, config: Config, context: Context) -> nn.Module:
    """Return a narrower copy of the model. Raises ExportError when its answers would change their shape."""
    twin = plain_copy(model)
    require_known(twin, config.keep)
    inputs, targets = context.calibration()
    wanted = twin(inputs[:2]).shape
    torch.manual_seed(context.job.train.seed)
    widths: dict[nn.Module, int] = {}
    for number in range(1, config.rounds + 1):
        twin.requires_grad_(True)  # the graph of dependencies is read off autograd's
        if config.importance == "taylor":
            fill_gradients(twin, context, inputs, targets)
        _one_round(twin, config, inputs[:2], config.ratio * number / config.rounds, widths)
        twin.zero_grad(set_to_none=True)
        if number < config.rounds:
            recover_between(twin, config, context)
    twin = plain_copy(twin)
    with torch.no_grad():
        shape = twin(inputs[:2]).shape
    if shape != wanted:
        raise ExportError(f"pruning changed the output from {tuple(wanted)} to {tuple(shape)}")
    return twin


def _one_round(model: nn.Module, config: Config, inputs: Tensor, ratio: float, widths: dict[nn.Module, int]) -> None:
    """Take out what is above the wished share of the widths that layers had at first (`widths`, filled here)."""
    library = _library()
    graph = library.DependencyGraph().build_dependency(model, example_inputs=inputs)
    score = _scores(library, config.importance)
    kinds = [nn.modules.conv._ConvNd, nn.Linear]
    groups = list(graph.get_all_groups(ignored_layers=_ignored(model, config.keep), root_module_types=kinds))
    doomed = [_doomed(group, score(group), config, ratio, widths) for group in groups]
    for group, channels in zip(groups, doomed, strict=True):
        if channels:
            root = group[0].dep
            graph.get_pruning_group(root.target.module, root.handler, channels).prune()
    for part in model.modules():
        width = getattr(part, "group_width", None)
        if isinstance(part, nn.GroupNorm) and isinstance(width, int):
            part.num_groups = part.weight.numel() // width


def _doomed(group: Any, scores_C: Tensor, config: Config, ratio: float, widths: dict[nn.Module, int]) -> list[int]:
    """Return the channels of a group that go: the units (whole groups of a norm, else single ones) of least score."""
    modules = [dep.target.module for dep, _ in group]
    norms = [part for part in modules if isinstance(part, nn.GroupNorm)]
    unit = lcm(*(part.weight.numel() // part.num_groups for part in norms)) if norms else 1
    first = widths.setdefault(modules[0], len(scores_C))
    kept = kept_width(first, ratio, lcm(unit, config.multiple_of))
    units = scores_C.view(-1, unit).mean(dim=1)
    going = units.argsort()[: max(0, len(scores_C) - kept) // unit]
    return sorted(int(at) * unit + offset for at in going for offset in range(unit))


def _scores(library: Any, name: str) -> Any:
    if name == "random":
        return library.importance.RandomImportance()
    if name == "taylor":
        return library.importance.GroupTaylorImportance()
    return library.importance.GroupMagnitudeImportance(p=2)


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise NotAbleError(
            "prune needs the package torch-pruning, which is not installed", hint='pip install "orchestrator[compress]"'
        ) from error
    return torch_pruning


def _ignored(model: nn.Module, keep: tuple[str, ...]) -> list[nn.Module]:
    """Return the last layer with weights (its outputs are the answer) and those the user keeps."""
    weighted = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    named = [part for name, part in weighted if any(word in name for word in keep)]
    return [*named, *([weighted[-1][1]] if weighted else [])]
