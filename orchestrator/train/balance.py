"""Keeps a mixture of experts balanced: moves the routers' bias after each step, and says where tokens went.

Works on any submodule with `update_bias(load)`, `load` (counts over the passes since its reset) and `loss_scale`.
Counts are summed over the global batch, so every layout moves the bias alike.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class ExpertBalance:
    """All routers of this rank's layers. `group` holds the ranks that see other samples of the same batch."""

    def __init__(self, module: nn.Module, group: dist.ProcessGroup | None, num_passes: int) -> None:
        """`num_passes`: forward passes per step; each adds its share of the auxiliary losses."""
        self._layers: dict[str, Any] = {
            name: child for name, child in module.named_modules() if hasattr(child, "update_bias")
        }
        self._group = group
        self._newest: dict[str, Tensor] = {}
        for layer in self._layers.values():
            layer.loss_scale = 1.0 / num_passes

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

    def metrics(self) -> dict[str, float]:
        """Return the newest step over the global batch, for this rank's layers.

        `moe/<layer>/drop_rate`; `router_entropy` in nats; `max_load`: the fullest expert over the fair share.
        """
        found: dict[str, float] = {}
        for name, sums in self._newest.items():
            short = name.removeprefix("layers.").removesuffix(".feed_forward")
            counts_E, (dropped, tokens, entropy) = sums[:-3], sums[-3:].tolist()
            places = max(1.0, float(counts_E.sum()))
            found[f"moe/{short}/drop_rate"] = dropped / places
            found[f"moe/{short}/router_entropy"] = entropy / max(1.0, tokens)
            found[f"moe/{short}/max_load"] = float(counts_E.max()) * len(counts_E) / places
        return found
