"""`Engine`: everything one rank needs to take a step, built from a job in one fixed order. The model: `train.build`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from orchestrator import plugins
from orchestrator.data.dataset import Dataset
from orchestrator.errors import JobFileError, PlanError
from orchestrator.log import masked_keys
from orchestrator.parallel.apply import ParallelModel
from orchestrator.parallel.context import own_piece
from orchestrator.parallel.mesh import build_mesh, data_group
from orchestrator.parallel.process import Rank
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec
from orchestrator.train.balance import ExpertBalance
from orchestrator.train.build import (
    DTYPES,
    build_chunked_head,
    build_parallel_model,
    choose_memory_format,
    construct_model,
    read_tensor_plan,
    splits_outputs,
)
from orchestrator.train.chunked import ChunkedHead
from orchestrator.train.loss import Loss, build_loss, over_split_classes
from orchestrator.train.metrics import Metric, build_metrics
from orchestrator.train.optim import build_optimizer
from orchestrator.train.schedule import Schedule, build_schedule
from orchestrator.train.synchronise import synchronise_norms

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Engine:
    """One rank's share of a training run. Parameters have plain names; tensors live on `rank.device`."""

    job: JobSpec
    plan: Plan
    rank: Rank
    data: Dataset
    model: ParallelModel
    optimizer: Optimizer
    base_rates: tuple[float, ...]
    schedule: Schedule
    loss: Loss
    metrics: dict[str, Metric]
    memory_format: torch.memory_format
    balance: ExpertBalance
    chunked: ChunkedHead | None = None
    """The last layer, where it takes the loss in pieces and this rank has it."""
    logits_group: dist.ProcessGroup | None = None
    """Ranks over which the classes of the outputs are split; None: every rank has them whole."""
    context_group: dist.ProcessGroup | None = None
    """Ranks that share every sequence; None: each has its own whole."""

    @property
    def counts(self) -> bool:
        """Whether this rank's sums count: it has the outputs, and is the first of those that have the same."""
        first = self.plan.layout.coordinates(self.rank.rank)["tensor"] == 0
        return first and (self.model.pipeline is None or self.model.pipeline.has_last)

    @property
    def data_rank(self) -> int:
        """Which slice of every batch this rank takes."""
        return self.plan.layout.data_rank(self.rank.rank)

    def parameters(self) -> list[nn.Parameter]:
        """Return this rank's parameters (or shards of them), in order."""
        return list(self.model.module.parameters())

    def to_device(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Bring a batch to this rank's device in the job's precision and memory layout."""
        dtype = DTYPES[self.job.train.precision]
        if inputs.is_floating_point():
            inputs = inputs.to(self.rank.device, dtype, non_blocking=True)
            if inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=self.memory_format)
        else:
            inputs = inputs.to(self.rank.device, non_blocking=True)
        if self.context_group is not None:
            inputs, targets = own_piece(inputs, self.context_group), own_piece(targets, self.context_group)
        targets = targets.to(self.rank.device, dtype if targets.is_floating_point() else None, non_blocking=True)
        return inputs, targets

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast region of the job's precision (nothing for fp32 and fp64)."""
        if self.job.train.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.rank.device.type, torch.bfloat16)


def load_dataset(job: JobSpec) -> Dataset:
    """Load the job's data. A plug-in without `Config` is called with its options and returns a `Dataset`."""
    if masked := masked_keys(job.data.options):
        raise JobFileError(
            f"data: {masked[0]} is masked: exported and compressed models are written without secrets",
            hint="name the run instead of the folder: a run keeps its own job",
        )
    plugin = plugins.load("data", job.data.use)
    if hasattr(plugin, "Config") and hasattr(plugin, "load"):
        found = plugin.load(plugins.build_config(plugin.Config, job.data.options))
    else:
        found = plugins.build("data", job.data.use, job.data.options)
    if not isinstance(found, Dataset):
        raise PlanError(
            f"data {job.data.use} gave a {type(found).__name__}, not an orchestrator.data.dataset.Dataset",
            hint="see docs/plugins.md#data",
        )
    return found


def _layout_for(layout: Layout, num_processes: int) -> str:
    others = layout.world_size // layout.replicate
    if num_processes % others == 0:
        return f"set parallel.replicate={num_processes // others}"
    return f"a multiple of {others}: the other axes take {others} each, which does not divide {num_processes}"


def build_engine(
    job: JobSpec,
    rank: Rank,
    load: Callable[[JobSpec], Dataset] = load_dataset,
    construct: Callable[[JobSpec], nn.Module] = construct_model,
) -> Engine:
    """Load the data, plan with the numbers at hand, build the model and apply the layout. Collective.

    `load` gives the data set: a process that trains many jobs keeps those it has. `construct` gives the module.

    Raises PlanError when the job does not fit the number of processes there are.
    """
    data = load(job)
    plan = build_plan(job, Available.unknown(), data.shape)
    if plan.layout.world_size != rank.world_size:
        raise PlanError(
            f"the layout is {plan.layout.describe()}, but {rank.world_size} processes were started",
            hint=f"start {plan.layout.world_size} processes, or {_layout_for(plan.layout, rank.world_size)}",
        )
    memory_format = choose_memory_format(job, data, plan, rank.device, construct)
    mesh = build_mesh(plan.layout, rank.device.type)
    tensor_plan = read_tensor_plan(job, plan)
    model = build_parallel_model(job, plan, rank, memory_format, mesh, tensor_plan, construct)
    synchronise_norms(model.module, data_group(mesh, plan.layout))
    loss, logits_group = build_loss(job, plan), None
    if mesh is not None and splits_outputs(job, tensor_plan):
        logits_group = mesh.get_group("tensor")
        loss = over_split_classes(loss, logits_group)
    named = ((model.first_name(name), parameter) for name, parameter in model.module.named_parameters())
    optimizer = build_optimizer(job.optim, named, check_matches=model.pipeline is None)
    return Engine(
        job=job,
        plan=plan,
        rank=rank,
        data=data,
        model=model,
        optimizer=optimizer,
        base_rates=tuple(float(group["lr"]) for group in optimizer.param_groups),
        schedule=build_schedule(job.optim.schedule),
        loss=loss,
        metrics=build_metrics(job, plan),
        memory_format=memory_format,
        balance=ExpertBalance(
            model.module,
            data_group(mesh, plan.layout),
            _num_passes(plan),
            model.pipeline.group if model.pipeline is not None else None,
        ),
        chunked=build_chunked_head(job, model, loss, tensor_plan),
        logits_group=logits_group,
        context_group=mesh.get_group("context") if mesh is not None and plan.layout.context > 1 else None,
    )


def _num_passes(plan: Plan) -> int:
    """Passes whose mean over tokens each adds its share of an auxiliary loss; pieces of a sequence are such, too."""
    passes = plan.stages.microbatches if plan.stages is not None else plan.batch.accumulate
    return passes * plan.layout.context
