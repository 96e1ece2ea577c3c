"""Blocks that become one: neighbours in a row use the parameters of the first of them. Called by the step `share`.

What is shared is the module itself, so training moves it for all its places and a file holds it once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from orchestrator.compress.structure import declared
from orchestrator.errors import ExportError

if TYPE_CHECKING:
    from orchestrator.compress.base import Context


def tie_blocks(model: nn.Module, context: Context, every: int) -> dict[str, str]:
    """Tie every run of `every` neighbouring blocks, in place; return tied block -> the block it is now.

    Raises ExportError when the model has no two blocks of equal shapes in a run.
    """
    names = [name for name in declared(context, "depth") if _there(model, name)]
    tied: dict[str, str] = {}
    for at in range(0, len(names), every):
        first, *others = names[at : at + every]
        for name in others:
            if _shapes(model, name) != _shapes(model, first):
                raise ExportError(
                    f"{name} and {first} have weights of other shapes and cannot be one block",
                    hint="tie blocks before they are made narrower",
                )
            parent, _, own = name.rpartition(".")
            model.get_submodule(parent)._modules[own] = model.get_submodule(first)
            tied[name] = first
    if not tied:
        raise ExportError(f"of {len(names)} blocks none has a neighbour to be tied to", hint="lower `every`")
    return tied


def _there(model: nn.Module, name: str) -> bool:
    return any(path == name for path, _ in model.named_modules(remove_duplicate=False))


def _shapes(model: nn.Module, name: str) -> dict[str, tuple[int, ...]]:
    return {path: tuple(tensor.shape) for path, tensor in model.get_submodule(name).state_dict().items()}
