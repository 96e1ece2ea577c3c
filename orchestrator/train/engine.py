"""`Engine`: everything one rank needs to take a step, built from a job in one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from orchestrator import plugins
from orchestrator.data.dataset import Dataset
from orchestrator.errors import PlanError
from orchestrator.parallel.apply import ParallelModel, apply_layout
from orchestrator.parallel.containers import Split
from orchestrator.parallel.context import own_piece
from orchestrator.parallel.float8 import apply_float8
from orchestrator.parallel.initialise import build_module, fill
from orchestrator.parallel.mesh import build_expert_mesh, build_mesh, data_group
from orchestrator.parallel.process import Rank
from orchestrator.parallel.sharding import Sharding
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Plan
from orchestrator.plan.stages import SPLIT_BACKWARD
from orchestrator.spec.job import JobSpec
from orchestrator.train.balance import ExpertBalance
from orchestrator.train.chunked import ChunkedHead
from orchestrator.train.initial import given_weights, put_weights
from orchestrator.train.loss import Loss, build_loss, over_split_classes
from orchestrator.train.metrics import Metric, build_metrics
from orchestrator.train.optim import build_optimizer
from orchestrator.train.schedule import Schedule, build_schedule
from orchestrator.train.synchronise import synchronise_norms

if TYPE_CHECKING:
    from torch.optim import Optimizer

_DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}


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
        dtype = _DTYPES[self.job.train.precision]
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


def construct_model(job: JobSpec) -> nn.Module:
    """Return the module that the job's plug-in builds, on whatever device torch builds on now."""
    module = plugins.build("models", job.model.use, job.model.options)
    if not isinstance(module, nn.Module):
        raise PlanError(
            f"model {job.model.use} gave a {type(module).__name__}, not a torch.nn.Module",
            hint="see docs/plugins.md#model",
        )
    return module


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
    memory_format = _memory_format(job, data, plan)
    mesh = build_mesh(plan.layout, rank.device.type)
    tensor_plan = _tensor_plan(job, plan)
    model = _build_model(job, plan, rank, memory_format, mesh, tensor_plan, construct)
    synchronise_norms(model.module, data_group(mesh, plan.layout))
    loss, logits_group = build_loss(job, plan), None
    if mesh is not None and _splits_outputs(job, tensor_plan):
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
        chunked=_chunked_head(job, model, loss, tensor_plan),
        logits_group=logits_group,
        context_group=mesh.get_group("context") if mesh is not None and plan.layout.context > 1 else None,
    )


def _num_passes(plan: Plan) -> int:
    """Passes whose mean over tokens each adds its share of an auxiliary loss; pieces of a sequence are such, too."""
    passes = plan.stages.microbatches if plan.stages is not None else plan.batch.accumulate
    return passes * plan.layout.context


def build_plain_model(job: JobSpec, *, on_meta: bool = False) -> nn.Module:
    """Build the job's model for one process on the CPU (or without memory), weights not meaningful."""
    return build_module(lambda: construct_model(job), job.train.seed, on_meta=on_meta)


def _tensor_plan(job: JobSpec, plan: Plan) -> Mapping[str, Split]:
    if plan.layout.tensor == 1:
        return {}
    plugin: Any = plugins.load("models", job.model.use)
    config = plugins.build_config(plugin.Config, job.model.options)
    found: Mapping[str, Split] = plugin.tensor_plan(config, job.parallel.sequence)
    return found


def _expert_layers(job: JobSpec, plan: Plan) -> list[str]:
    if plan.layout.expert == 1:
        return []
    plugin: Any = plugins.load("models", job.model.use)
    found: list[str] = plugin.expert_layers(plugins.build_config(plugin.Config, job.model.options))
    return found


def _attention_layers(job: JobSpec, plan: Plan) -> list[str]:
    if plan.layout.context == 1:
        return []
    plugin: Any = plugins.load("models", job.model.use)
    found: list[str] = plugin.attention_layers(plugins.build_config(plugin.Config, job.model.options))
    return found


def _splits_outputs(job: JobSpec, tensor_plan: Mapping[str, Split]) -> bool:
    """Say whether the model's last layer leaves its outputs split over the tensor axis."""
    plugin: Any = plugins.load("models", job.model.use)
    if not tensor_plan or not hasattr(plugin, "layer_names"):
        return False
    names = plugin.layer_names(plugins.build_config(plugin.Config, job.model.options))
    head = tensor_plan.get(f"layers.{names[-1]}")
    return head is not None and head.kind == "column" and head.output == "split"


def _chunked_head(
    job: JobSpec, model: ParallelModel, loss: Loss, tensor_plan: Mapping[str, Split]
) -> ChunkedHead | None:
    """Let the last layer take the loss in pieces; None when the job does not ask, or the layer is on another stage."""
    if job.train.loss_chunks == 1 or (model.pipeline is not None and not model.pipeline.has_last):
        return None
    plugin: Any = plugins.load("models", job.model.use)
    name = f"layers.{plugin.layer_names(plugins.build_config(plugin.Config, job.model.options))[-1]}"
    how = tensor_plan.get(name)
    pieces = job.parallel.tensor if how is not None and how.input == "sequence" else 1
    return ChunkedHead(model.module.get_submodule(name), loss, job.train.loss_chunks, pieces)


def _build_model(
    job: JobSpec,
    plan: Plan,
    rank: Rank,
    memory_format: torch.memory_format,
    mesh: DeviceMesh | None,
    tensor_plan: Mapping[str, Split],
    construct: Callable[[JobSpec], nn.Module],
) -> ParallelModel:
    plugin: Any = plugins.load("models", job.model.use)
    init_parameter = getattr(plugin, "init_parameter", None)
    dtype = _DTYPES[job.train.precision]
    seed = job.train.seed
    module = build_module(lambda: construct(job), seed, on_meta=init_parameter is not None).to(dtype)
    given = given_weights(job, module)

    def materialise(target: nn.Module, copies: Mapping[str, str]) -> None:
        if init_parameter is not None:
            fill(target, init_parameter, seed, rank.device, copies)
        else:
            target.to(rank.device)
        if given is not None:
            put_weights(target, given, copies)

    units = plugin.shard_units(module) if hasattr(plugin, "shard_units") else ()
    if job.train.float8 != "none":
        apply_float8(module, units, _never_float8(job), rank.device, emulated=job.train.float8 == "emulated")
    return apply_layout(
        module,
        plan.layout,
        mesh,
        rank.device,
        materialise=materialise,
        stages=plan.stages,
        tensor_plan=tensor_plan,
        expert_layers=_expert_layers(job, plan),
        expert_mesh=build_expert_mesh(plan.layout, rank.device.type),
        attention_layers=_attention_layers(job, plan),
        context_attention=plan.context_attention,
        shard_units=units,
        sharding=Sharding(job.parallel.reshard_after_forward, job.parallel.shard_precision),
        recompute=job.train.activation_checkpoint,
        recompute_every=job.train.activation_checkpoint_every,
        compile_model=job.train.compile,
        memory_format=memory_format,
    )


def _never_float8(job: JobSpec) -> list[str]:
    """Return the last layer, and mixtures of experts, whose router would choose others by a rounding."""
    plugin: Any = plugins.load("models", job.model.use)
    config = plugins.build_config(plugin.Config, job.model.options)
    heads = [f"layers.{plugin.layer_names(config)[-1]}"] if hasattr(plugin, "layer_names") else []
    return heads + (list(plugin.expert_layers(config)) if hasattr(plugin, "expert_layers") else [])


def _memory_format(job: JobSpec, data: Dataset, plan: Plan) -> torch.memory_format:
    if plan.stages is not None and plan.stages.schedule in SPLIT_BACKWARD:
        # Those ask for weight gradients alone; torch 2.13's group norm dies of that when channels come last (CPU).
        return torch.contiguous_format
    wanted = job.train.memory_format
    if wanted == "auto":
        # A model may say that it turns its input into something else at once, and so gains nothing.
        takes_images = getattr(plugins.load("models", job.model.use), "image_input", True)
        images = takes_images and len(data.shape.inputs) == 3
        wanted = "channels_last" if images else "contiguous"
    return torch.channels_last if wanted == "channels_last" else torch.contiguous_format
