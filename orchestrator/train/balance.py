"""Keeps a mixture of experts balanced: moves the routers' bias after each step, and says where tokens went.

Works on any submodule with `update_bias(load)`, `load` (counts over the passes since its reset) and `loss_scale`.
Counts are summed over the global batch, so every layout moves the bias alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

DRAWN_STEPS = 100


@dataclass(frozen=True)
class ExpertFigures:
    """Where the tokens of a step went, by layer.

    `metrics`: `moe/<layer>/drop_rate`; `router_entropy` in nats; `max_load`: the fullest expert over the fair share.
    `loads`: every expert's tokens over the fair share.
    """

    metrics: Mapping[str, float]
    loads: Mapping[str, list[float]]


class ExpertBalance:
    """All routers of this rank's layers. `group` holds the ranks that see other samples of the same batch."""

    def __init__(
        self,
        module: nn.Module,
        group: dist.ProcessGroup | None,
        num_passes: int,
        pipeline_group: dist.ProcessGroup | None = None,
    ) -> None:
        """`num_passes`: forward passes per step; each adds its share of the auxiliary losses. Collective."""
        self._layers: dict[str, Any] = {
            name: child for name, child in module.named_modules() if hasattr(child, "update_bias")
        }
        self._group = group
        self._newest: dict[str, Tensor] = {}
        self._pipeline_group = pipeline_group
        self._anywhere = self._layers_anywhere()
        for layer in self._layers.values():
            layer.loss_scale = 1.0 / num_passes

    def _layers_anywhere(self) -> bool:
        """Say whether any stage of the pipeline has routers: all of them must know it alike."""
        if self._pipeline_group is None:
            return bool(self._layers)
        counts = [0] * dist.get_world_size(self._pipeline_group)
        dist.all_gather_object(counts, len(self._layers), group=self._pipeline_group)
        return sum(counts) > 0

    def before_step(self) -> None:
        """Start counting anew."""
        for layer in self._layers.values():
            layer.load.reset_buffers()

    def after_step(self) -> None:
        """Move every bias by the load of the whole batch. Collective over `group`."""
        if not self._layers:
            return
        # Entropies are sums over tokens, so all of it adds up over ranks; float64 counts exactly.
        rows = [
            torch.cat([load.counts.double(), torch.stack([load.dropped, load.tokens, load.entropy.double()]).double()])
            for load in (layer.load for layer in self._layers.values())
        ]
        sums = torch.stack(rows)
        if self._group is not None:
            dist.all_reduce(sums, group=self._group)
        self._newest = dict(zip(self._layers, sums, strict=True))
        for name, layer in self._layers.items():
            layer.update_bias(self._newest[name][:-3])

    def figures(self) -> ExpertFigures:
        """Return the newest step over the global batch, for all layers of the model. Collective over the pipeline."""
        mine = {_short(name): sums.tolist() for name, sums in self._newest.items()}
        if not self._anywhere:
            return ExpertFigures({}, {})
        everyone: list[dict[str, list[float]]] = [mine]
        if self._pipeline_group is not None:
            everyone = [{} for _ in range(dist.get_world_size(self._pipeline_group))]
            dist.all_gather_object(everyone, mine, group=self._pipeline_group)
        metrics: dict[str, float] = {}
        loads: dict[str, list[float]] = {}
        for name, sums in (item for each in everyone for item in each.items()):
            counts_E, (dropped, tokens, entropy) = sums[:-3], sums[-3:]
            places = max(1.0, sum(counts_E))
            loads[name] = [count * len(counts_E) / places for count in counts_E]
            metrics[f"moe/{name}/drop_rate"] = dropped / places
            metrics[f"moe/{name}/router_entropy"] = entropy / max(1.0, tokens)
            metrics[f"moe/{name}/max_load"] = max(loads[name])
        return ExpertFigures(metrics, loads)


def is_drawn(step: int, every_steps: int, total_steps: int) -> bool:
    """Say whether the loads of a logged step belong into the picture: the first, the last, and some hundred between.

    A function of the step alone, so that a resumed run draws the same ones.
    """
    apart = max(1, total_steps // DRAWN_STEPS)
    return step in (every_steps, total_steps) or step // apart != (step - every_steps) // apart


def _short(name: str) -> str:
    return name.removeprefix("layers.").removesuffix(".feed_forward")
