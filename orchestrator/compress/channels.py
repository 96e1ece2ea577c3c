"""Channel pruning through torch-pruning's dependency graph, wrapped: the library is imported here only.

It finds which slices of which tensors must go together (Fang et al. 2023); what is added here is a check that the
narrower model still runs, that its output kept its shape, and that something went.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from orchestrator.compress.recover import recover
from orchestrator.errors import ExportError, NotAbleError
from orchestrator.export.weights import plain_copy

if TYPE_CHECKING:
    from orchestrator.compress.base import Context
    from orchestrator.compress.prune import Config


def prune_channels(model: nn.Module, config: Config, context: Context) -> nn.Module:
    """Return a narrower copy of the model. Raises ExportError when nothing can be taken out."""
    twin = plain_copy(model)
    inputs, targets = context.calibration()
    wanted = twin(inputs[:2]).shape
    pruner = _pruner(twin, config, inputs[:2], context.job.train.seed)
    for number in range(config.rounds):
        if config.importance == "taylor":
            _gradients(twin, context, inputs, targets)
        pruner.step()
        _mend_norms(twin)
        twin.zero_grad(set_to_none=True)
        if number < config.rounds - 1:
            recover(twin, context, epochs=config.recover_epochs)
    twin = plain_copy(twin)
    with torch.no_grad():
        shape = twin(inputs[:2]).shape
    if shape != wanted:
        raise ExportError(f"pruning changed the output from {tuple(wanted)} to {tuple(shape)}")
    return twin


def _pruner(model: nn.Module, config: Config, inputs: Tensor, seed: int) -> Any:
    pruning = _library()
    for parameter in model.parameters():
        parameter.requires_grad_(True)  # the graph of dependencies is read off autograd's
    torch.manual_seed(seed)
    kinds = {
        "magnitude": lambda: pruning.importance.GroupMagnitudeImportance(p=2),
        "taylor": lambda: pruning.importance.GroupTaylorImportance(),
        "random": lambda: pruning.importance.RandomImportance(),
    }
    return pruning.pruner.BasePruner(
        model,
        inputs,
        importance=kinds[config.importance](),
        pruning_ratio=config.ratio,
        iterative_steps=config.rounds,
        ignored_layers=_ignored(model, config.keep),
        round_to=config.multiple_of,
    )


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise NotAbleError(
            "prune needs the package torch-pruning, which is not installed", hint='pip install "orchestrator[compress]"'
        ) from error
    logging.getLogger("torch_pruning").setLevel(logging.ERROR)
    return torch_pruning


def _ignored(model: nn.Module, keep: tuple[str, ...]) -> list[nn.Module]:
    """Return the last layer with weights (its outputs are the answer) and those the user keeps."""
    weighted = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    named = [part for name, part in weighted if any(word in name for word in keep)]
    return [*named, *([weighted[-1][1]] if weighted else [])]


def _gradients(model: nn.Module, context: Context, inputs: Tensor, targets: Tensor) -> None:
    """Fill gradients of the loss over the calibration samples, which Taylor importance multiplies with weights."""
    from orchestrator.train.loss import build_loss

    loss = build_loss(context.job, context.plan)
    model.zero_grad(set_to_none=True)
    (loss.sum(model(inputs), targets) / len(inputs)).backward()  # type: ignore[no-untyped-call]


def _mend_norms(model: nn.Module) -> None:
    """A group norm of ours counts its groups by their width, which pruning inside each group has changed."""
    for part in model.modules():
        if isinstance(part, nn.GroupNorm) and hasattr(part, "group_width"):
            setattr(part, "group_width", part.weight.numel() // part.num_groups)  # noqa: B010
