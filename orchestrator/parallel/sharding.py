"""The shard axis: FSDP2 over a module's units, when gathered weights are put away again, and in which precision.

Called by `apply` last of all that changes a module, so that whole weights are only ever gathered unit by unit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from orchestrator.parallel.shared import units_without_shared


@dataclass(frozen=True)
class Sharding:
    """How weights are sharded: the job's `parallel.reshard_after_forward` and `parallel.shard_precision`."""

    reshard: bool | Literal["auto"] = "auto"
    precision: Literal["full", "bf16"] = "full"

    def after_forward(self, *, staged: bool) -> bool | None:
        """Return torch's `reshard_after_forward`; None: units put their weights away, the outermost keeps its own.

        A pipeline's stage keeps its weights whole until its last backward: gathering them for each microbatch costs
        time, and schedules that compute weight gradients apart lose those of weights put away in between.
        """
        if staged:
            return False
        return None if self.reshard == "auto" else self.reshard

    def policy(self, *, outermost: bool) -> MixedPrecisionPolicy:
        """Return what is cast: gathered weights and inputs; gradients are summed in fp32, outputs leave as fp32."""
        if self.precision == "full":
            return MixedPrecisionPolicy()
        # The loss and what goes to the next stage are computed on the model's output: as exact as it can be had.
        output = torch.float32 if outermost else None
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=output)


AUTOMATIC = Sharding()


def apply_sharding(
    module: nn.Module,
    mesh: DeviceMesh,
    units: Iterable[str],
    experts: frozenset[str],
    sharding: Sharding,
    *,
    staged: bool,
) -> None:
    """Shard the named units that are present one by one, then what is left of the module, in place.

    `experts` are parameters that lie on their own ranks already; `staged`: the module is a pipeline's stage.
    """
    apart = {parameter for name, parameter in module.named_parameters() if name in experts}
    common: dict[str, Any] = {
        "mesh": mesh,
        "reshard_after_forward": sharding.after_forward(staged=staged),
        "ignored_params": apart,
    }
    present = {name for name, _ in module.named_modules()}
    if sharding.precision != "full":
        # A batch norm keeps its own precision (as in torch's older FSDP): its figures and weights must be of one kind.
        for norm in [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]:
            fully_shard(norm, **common)
    for name in units_without_shared(module, [unit for unit in units if unit in present]):
        fully_shard(module.get_submodule(name), mp_policy=sharding.policy(outermost=False), **common)
    fully_shard(module, mp_policy=sharding.policy(outermost=True), **common)


def put_weights_away(module: nn.Module) -> None:
    """Free gathered weights after a forward pass that no backward pass follows; nothing to do where none are."""
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()
