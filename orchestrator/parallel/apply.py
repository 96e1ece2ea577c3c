"""The fixed order in which a layout is applied to a model.

Pipeline split -> tensor -> expert -> context -> compile -> activation checkpointing -> FSDP2 -> materialise -> DDP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from orchestrator.parallel.compiling import apply_compile
from orchestrator.parallel.containers import Split
from orchestrator.parallel.context import apply_context
from orchestrator.parallel.expert import apply_experts
from orchestrator.parallel.grads import GradientReducer
from orchestrator.parallel.pipeline import Pipeline, with_layers
from orchestrator.parallel.recompute import apply_recompute
from orchestrator.parallel.sharding import AUTOMATIC, Sharding, apply_sharding, put_weights_away
from orchestrator.parallel.shared import SharedOverStages, separate_stages
from orchestrator.parallel.tensor import apply_tensor
from orchestrator.plan.layout import Layout
from orchestrator.plan.stages import Stages

# torch 2.13 renamed the argument; earlier ones know only the old name. Buffers are functions of the global batch here.
_RENAMED = "forward_sync_buffers" in signature(DistributedDataParallel.__init__).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}


class ParallelModel:
    """A model under a layout: `module` owns the parameters (plain names), calling it is a forward pass of training."""

    def __init__(
        self,
        module: nn.Module,
        forward: nn.Module,
        reducer: GradientReducer | None = None,
        pipeline: Pipeline | None = None,
        copies: Mapping[str, str] | None = None,
    ) -> None:
        self.module = module
        self.pipeline = pipeline
        self.copies = dict(copies or {})
        """Parameters that are copies of another stage's: name -> that one's name."""
        self._forward = forward
        self._reducer = reducer

    def first_name(self, name: str) -> str:
        """Return the name under which a parameter is known in the whole model."""
        return self.copies.get(name, name)

    def owned_parameters(self) -> list[nn.Parameter]:
        """Return this rank's parameters that are nobody else's copies: over a pipeline, each once."""
        return [p for name, p in self.module.named_parameters() if name not in self.copies]

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self._forward(inputs)
        return outputs

    def evaluate(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """Forward pass without gradients; None where a pipeline's last stage is elsewhere."""
        if self.pipeline is not None:
            return self.pipeline.evaluate(inputs)
        outputs: torch.Tensor = self.module(inputs)
        put_weights_away(self.module)
        return outputs

    def reduce_gradients(self) -> None:
        """Reduce what no wrapper has reduced during the last backward pass of a step."""
        if self._reducer is not None:
            self._reducer.reduce()

    @contextmanager
    def gradient_sync(self, enabled: bool) -> Iterator[None]:
        """Leave out the reduction of gradients for all but the last pass of a step."""
        if not enabled and isinstance(self._forward, DistributedDataParallel):
            with self._forward.no_sync():
                yield
        elif not enabled and isinstance(self.module, FSDPModule):
            self.module.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                self.module.set_requires_gradient_sync(True)
        else:
            yield


def apply_layout(
    module: nn.Module,
    layout: Layout,
    mesh: DeviceMesh | None,
    device: torch.device,
    *,
    materialise: Callable[[nn.Module, Mapping[str, str]], None],
    stages: Stages | None = None,
    tensor_plan: Mapping[str, Split] | None = None,
    expert_layers: Iterable[str] = (),
    expert_mesh: DeviceMesh | None = None,
    attention_layers: Iterable[str] = (),
    context_attention: str | None = None,
    shard_units: Iterable[str] = (),
    sharding: Sharding = AUTOMATIC,
    recompute: str = "none",
    recompute_every: int = 2,
    compile_model: bool = False,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> ParallelModel:
    """Apply a layout; gradients come out averaged over data ranks under every one of them.

    `materialise` gives the module memory and values on `device`; it runs after splitting, so that no rank ever holds
    more than its pieces plus one full parameter.
    """
    partial_names: frozenset[str] = frozenset()
    copies: dict[str, str] = {}
    parts, pipeline = [module], None
    units = list(shard_units)
    blocks = under_all_names(module, units)
    if mesh is not None and stages is not None:
        module, parts, pipeline, copies = _split(module, stages, mesh)
    if mesh is not None and layout.tensor > 1:
        partial_names = apply_tensor(module, mesh["tensor"], tensor_plan or {})
    experts: frozenset[str] = frozenset()
    if expert_mesh is not None:
        experts = apply_experts(module, expert_layers, expert_mesh["expert"])
    if mesh is not None and layout.context > 1:
        apply_context(module, attention_layers, mesh.get_group("context"), context_attention or "heads")
    if compile_model:
        apply_compile(module, blocks)
    apply_recompute(module, blocks, recompute, recompute_every)
    if mesh is not None and layout.shard > 1:
        for part in parts:
            data_mesh, staged = _data_mesh(mesh, layout), pipeline is not None
            apply_sharding(part, data_mesh, units, experts, sharding, staged=staged)
    materialise(module, copies)
    if layout.shard == 1 and layout.tensor == 1:
        module.to(memory_format=memory_format)  # type: ignore[call-overload]
    if mesh is None:
        return ParallelModel(module, module)
    if layout.tensor > 1 or layout.context > 1 or pipeline is not None or experts:
        shared = pipeline.sharing(copies) if pipeline is not None and copies else None
        spread = {name: expert_mesh.get_group("expert_replicate") for name in experts} if expert_mesh else {}
        reducer = _reducer(module, layout, mesh, partial_names, shared, spread)
        return ParallelModel(module, module, reducer, pipeline, copies)
    if layout.shard > 1:
        return ParallelModel(module, module)
    device_ids = [device] if device.type == "cuda" else None
    ddp = DistributedDataParallel(
        module,
        device_ids=device_ids,
        gradient_as_bucket_view=True,
        process_group=mesh.get_group("replicate"),
        **_NO_BUFFER_SYNC,
    )
    return ParallelModel(module, ddp)


def under_all_names(module: nn.Module, units: list[str]) -> list[str]:
    """Return the units in the model's order, a repeated block under each name: stages know it by others."""
    named = list(module.named_modules(remove_duplicate=False))
    wanted = {child for name, child in named if name in units}
    return [name for name, child in named if child in wanted]


def _reducer(
    module: nn.Module,
    layout: Layout,
    mesh: DeviceMesh,
    partial_names: frozenset[str],
    shared: SharedOverStages | None,
    experts: Mapping[str, dist.ProcessGroup],
) -> GradientReducer:
    """FSDP reduces over its own mesh; copies without it, and pieces of the sequence, are left to the reducer."""
    copies = mesh.get_group("replicate") if layout.shard == 1 and layout.replicate > 1 else None
    pieces = {name: mesh.get_group("tensor") for name in partial_names}
    named = dict(module.named_parameters())
    # Every rank of the context axis saw other tokens, so all gradients are summed over it.
    everywhere = mesh.get_group("context") if layout.context > 1 else None
    return GradientReducer(named, copies, pieces, shared, experts, layout.num_data_ranks, everywhere)


def _split(
    module: nn.Module, stages: Stages, mesh: DeviceMesh
) -> tuple[nn.Module, list[nn.Module], Pipeline, dict[str, str]]:
    """Return (this rank's layers as one module, its stages, the pipeline, copies of shared parameters)."""
    rank = mesh.get_local_rank("pipeline")
    copies = separate_stages(module, stages.layers)
    owned = [list(stages.layers[stage]) for stage in stages.owned_by(rank)]
    parts = [with_layers(module, names) for names in owned]
    mine = with_layers(module, [name for names in owned for name in names])
    return mine, parts, Pipeline(stages, rank, parts, mesh.get_group("pipeline")), copies


def _data_mesh(mesh: DeviceMesh, layout: Layout) -> DeviceMesh:
    return mesh["replicate", "shard"] if layout.replicate > 1 else mesh["shard"]
