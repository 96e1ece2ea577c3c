"""Narrower nets as parts of a wide one's weights, as the model declares them (`cuts`). What a part uses is a view.

Called where a trial begins with weights of a supernet, and by the supernet's own training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator import plugins
from orchestrator.errors import PlanError
from orchestrator.spec.base import Use

if TYPE_CHECKING:
    from torch import Tensor

EXITS = "exits"


class Cut(Protocol):
    """A part of one parameter (`orchestrator.models.declare.Cut`)."""

    @property
    def parameter(self) -> str: ...

    @property
    def places(self) -> tuple[range | tuple[int, ...], ...]: ...

    @property
    def net(self) -> Any: ...


def cuts_of(whole: Use, part: Use) -> Mapping[str, Cut]:
    """Return for every parameter of `part` where it lies in `whole`. Raises PlanError with the reason when it does not.

    Both are `model` sections of one model that declares `cuts`.
    """
    plugin: Any = plugins.load("models", whole.use)
    if whole.use != part.use:
        raise PlanError(f"{part.use} is no part of {whole.use}", hint="only nets of one model share weights")
    if not hasattr(plugin, "cuts"):
        raise PlanError(f"model {whole.use} does not say which nets are parts of which (`cuts`)", hint="docs/models.md")
    configs = [plugins.build_config(plugin.Config, use.options) for use in (whole, part)]
    try:
        found: Mapping[str, Cut] = plugin.cuts(*configs)
    except ValueError as error:
        raise PlanError(f"{part.use} {part.options} is no part of {whole.options}: {error}") from error
    return found


def source_name(cut: Cut) -> str:
    """Return under which name a wide net with exits holds the parameter: its own, or that of the exit's net."""
    return cut.parameter if cut.net is None else f"{EXITS}.{exit_name(cut.net)}.{cut.parameter}"


def exit_name(net: Any) -> str:
    """Return 8 hex digits that name the net an exit belongs to (a frozen dataclass, whose text says all of it)."""
    return hashlib.sha256(repr(net).encode()).hexdigest()[:8]


def cut_weights(weights: Mapping[str, Tensor], cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
    """Return a part's parameters from those of the wide net. Raises KeyError when one is missing."""
    return {name: cut_tensor(weights[source_name(cut)], cut) for name, cut in cuts.items()}


def cut_tensor(tensor: Tensor, cut: Cut) -> Tensor:
    """Return the places that a cut keeps: a view where they lie in a row, so that gradients reach the whole tensor."""
    import torch

    for dim, places in enumerate(cut.places):
        if isinstance(places, range) and places.step == 1:
            if len(places) != tensor.shape[dim]:
                tensor = tensor.narrow(dim, places.start, len(places))
        else:
            tensor = tensor.index_select(dim, torch.tensor(places, device=tensor.device))
    return tensor
