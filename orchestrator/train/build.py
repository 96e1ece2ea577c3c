"""The model of a job as its plug-in describes it: built, filled with the seed's weights, cut by the layout."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from orchestrator import plugins
from orchestrator.data.dataset import Dataset
from orchestrator.errors import PlanError
from orchestrator.parallel.apply import ParallelModel, apply_layout
from orchestrator.parallel.containers import Split
from orchestrator.parallel.float8 import apply_float8
from orchestrator.parallel.initialise import build_module, fill
from orchestrator.parallel.mesh import build_expert_mesh
from orchestrator.parallel.process import Rank
from orchestrator.parallel.sharding import Sharding
from orchestrator.plan.plan import Plan
from orchestrator.plan.stages import SPLIT_BACKWARD
from orchestrator.spec.job import JobSpec
from orchestrator.train.chunked import ChunkedHead
from orchestrator.train.initial import given_weights, put_weights
from orchestrator.train.loss import Loss

DTYPES = {"fp32": torch.float32, "bf16": torch.float32, "fp64": torch.float64}
"""The type of parameters and inputs by precision; bf16 is autocast over fp32."""


def construct_model(job: JobSpec) -> nn.Module:
    """Return the module that the job's plug-in builds, on whatever device torch builds on now."""
    module = plugins.build("models", job.model.use, job.model.options)
    if not isinstance(module, nn.Module):
        raise PlanError(
            f"model {job.model.use} gave a {type(module).__name__}, not a torch.nn.Module",
            hint="see docs/plugins.md#model",
        )
    return module


def build_plain_model(job: JobSpec, *, on_meta: bool = False) -> nn.Module:
    """Build the job's model for one process on the CPU (or without memory), weights not meaningful."""
    return build_module(lambda: construct_model(job), job.train.seed, on_meta=on_meta)


def read_tensor_plan(job: JobSpec, plan: Plan) -> Mapping[str, Split]:
    """Return how the model's layers are cut over the tensor axis; {} without one."""
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


def splits_outputs(job: JobSpec, tensor_plan: Mapping[str, Split]) -> bool:
    """Say whether the model's last layer leaves its outputs split over the tensor axis."""
    plugin: Any = plugins.load("models", job.model.use)
    if not tensor_plan or not hasattr(plugin, "layer_names"):
        return False
    names = plugin.layer_names(plugins.build_config(plugin.Config, job.model.options))
    head = tensor_plan.get(f"layers.{names[-1]}")
    return head is not None and head.kind == "column" and head.output == "split"


def build_chunked_head(
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


def build_parallel_model(
    job: JobSpec,
    plan: Plan,
    rank: Rank,
    memory_format: torch.memory_format,
    mesh: DeviceMesh | None,
    tensor_plan: Mapping[str, Split],
    construct: Callable[[JobSpec], nn.Module],
) -> ParallelModel:
    """Return the model under the layout, its weights those of the seed whatever the layout. Collective."""
    plugin: Any = plugins.load("models", job.model.use)
    init_parameter = getattr(plugin, "init_parameter", None)
    dtype = DTYPES[job.train.precision]
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


def overruns_channels_last(model: nn.Module, fewest: float = 16) -> bool:
    """Tell whether training the model with channels last on a CPU would write over memory that is not its own.

    So do oneDNN's weight gradients of strided 1x1 convolutions with fewer input channels than a vector of the CPU
    has numbers, at most 16 (uxlfoundation/oneDNN issue 6035, in torch 2.13): wrong gradients, or a dead process.
    `fewest`: input channels from which on a layer of the whole model is safe; more where layers train in parts.
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < fewest
        for layer in model.modules()
    )


def choose_memory_format(
    job: JobSpec,
    data: Dataset,
    plan: Plan,
    device: torch.device,
    construct: Callable[[JobSpec], nn.Module] = construct_model,
) -> torch.memory_format:
    """Return in which order images lie in memory: channels last where the model gains from it.

    Raises PlanError when the job asks for channels last and the model cannot be trained with them on this device.
    """
    if plan.stages is not None and plan.stages.schedule in SPLIT_BACKWARD:
        # Those ask for weight gradients alone; torch 2.13's group norm dies of that when channels come last (CPU).
        return torch.contiguous_format
    wanted = job.train.memory_format
    if wanted == "auto":
        # A model may say that it turns its input into something else at once, and so gains nothing.
        takes_images = getattr(plugins.load("models", job.model.use), "image_input", True)
        images = takes_images and len(data.shape.inputs) == 3
        wanted = "channels_last" if images else "contiguous"
    if wanted == "channels_last" and device.type == "cpu":
        model = build_module(lambda: construct(job), job.train.seed, on_meta=True)
        in_parts = construct is not construct_model  # a supernet's parts may be of any width
        if overruns_channels_last(model, math.inf if in_parts else 16 * plan.layout.tensor):
            if job.train.memory_format == "channels_last":
                raise PlanError(
                    "train.memory_format=channels_last can give wrong gradients on a CPU for this model: it has "
                    "strided 1x1 convolutions of few channels (a fault of oneDNN)",
                    hint="set train.memory_format=auto",
                )
            return torch.contiguous_format
    return torch.channels_last if wanted == "channels_last" else torch.contiguous_format
