"""Norms over the batch that ask for the figures of all ranks are given a way to gather them. Called by the engine."""

from __future__ import annotations

from functools import partial

import torch.distributed as dist
from torch import nn

from orchestrator.parallel.collectives import gather_and_sum_back

ATTRIBUTE = "gather_over_ranks"


def synchronise_norms(module: nn.Module, data_group: dist.ProcessGroup | None) -> list[str]:
    """Let every submodule with `gather_over_ranks` pool its figures over the group; return their names.

    `data_group`: the ranks that take other samples through the same layers (and the same channels of them); None: there
    are none, and the norms stay as they are. Works with gloo and nccl alike. A copy of a pipeline's layers shares its
    submodules, so it is enough to call this once for all stages of a rank.
    """
    if data_group is None:
        return []
    names = [name for name, child in module.named_modules() if hasattr(child, ATTRIBUTE)]
    for name in names:
        # What a rank adds to the pooled figures changes the outputs of all, so gradients come back from all.
        setattr(module.get_submodule(name), ATTRIBUTE, partial(gather_and_sum_back, dim=0, group=data_group))
    return names
