"""The ranks that train a compressed model together, and what each of them has of it. Called by `recover`.

A compressed module is a plain one with shapes of its own, so the engine's layouts `replicate` and `shard` take it as it
is; the other axes cut a model by what it declares of its uncompressed self, and are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from orchestrator import plugins
from orchestrator.errors import PlanError
from orchestrator.parallel.apply import ParallelModel, apply_layout
from orchestrator.parallel.initialise import seed_noise, seed_of
from orchestrator.parallel.mesh import build_mesh, data_group
from orchestrator.parallel.process import CPU
from orchestrator.plan.layout import Layout
from orchestrator.train.build import overruns_channels_last
from orchestrator.train.synchronise import synchronise_norms

if TYPE_CHECKING:
    from orchestrator.compress.base import Context


@dataclass(frozen=True)
class Crew:
    """One rank among those of a layout of data ranks; by itself it is a process alone."""

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    device: torch.device = CPU

    @property
    def num_data_ranks(self) -> int:
        """Ranks that each take their own slice of every batch."""
        return self.layout.num_data_ranks

    @property
    def data_rank(self) -> int:
        """Which slice of every batch this rank takes."""
        return self.layout.data_rank(self.rank)

    def seed_noise(self, seed: int) -> None:
        """Seed what dropout draws from; every data rank draws its own, the first what a process alone draws."""
        seed_noise(seed if self.data_rank == 0 else seed_of(seed, "noise", self.data_rank), self.device)

    def apply(self, model: nn.Module, context: Context) -> ParallelModel:
        """Bring the model under the layout, in place, on this rank's device. Collective.

        Raises PlanError when it cannot be.
        """
        mesh = build_mesh(self.layout, self.device.type)
        if mesh is not None:
            _pool_norms(model)
            synchronise_norms(model, data_group(mesh, self.layout))
        plugin: Any = plugins.load("models", context.job.model.use)
        units = plugin.shard_units(model) if self.layout.shard > 1 and hasattr(plugin, "shard_units") else ()
        return apply_layout(
            model,
            self.layout,
            mesh,
            self.device,
            materialise=lambda module, copies: None,  # it has its weights already, the same on every rank
            shard_units=units,
            memory_format=_memory_format(model, context, self.device),
        )


def _pool_norms(model: nn.Module) -> None:
    """Let batch norms take the samples of all ranks, as a process alone does: else the layout would change the result.

    Raises PlanError for batch norms of other kinds than over images.
    """
    from orchestrator.models.norms import SyncBatchNorm2d

    for name, part in model.named_modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SyncBatchNorm2d  # the same parameters and buffers, another forward pass
        elif isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, SyncBatchNorm2d):
            raise PlanError(
                f"layer '{name}' ({type(part).__name__}) would take only its own rank's samples for the batch",
                hint="set the step's replicate=1, or use BatchNorm2d, a group norm or a layer norm",
            )


def _memory_format(model: nn.Module, context: Context, device: torch.device) -> torch.memory_format:
    images = len(context.data.shape.inputs) == 3 and any(isinstance(part, nn.Conv2d) for part in model.modules())
    if images and device.type == "cpu" and overruns_channels_last(model):
        return torch.contiguous_format
    return torch.channels_last if images else torch.contiguous_format
