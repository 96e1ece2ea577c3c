"""A narrower net's tensors taken out of a wide one's. What is taken is a view, so gradients reach the whole tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orchestrator.plan.cut import Cut, source_name


def cut_weights(weights: Mapping[str, Tensor], cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
    """Return a part's parameters by name from those of the wide net. Raises KeyError when one is missing."""
    return {name: cut_tensor(weights[source_name(cut)], cut) for name, cut in cuts.items()}


def cut_tensor(tensor: Tensor, cut: Cut) -> Tensor:
    """Return the places that a cut keeps: a view where they lie in a row, else a copy (gradients pass both)."""
    for dim, places in enumerate(cut.places):
        if isinstance(places, range) and places.step == 1:
            if len(places) != tensor.shape[dim]:
                tensor = tensor.narrow(dim, places.start, len(places))
        else:
            tensor = tensor.index_select(dim, torch.tensor(places, device=tensor.device))
    return tensor
