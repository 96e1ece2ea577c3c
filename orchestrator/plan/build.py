"""`build_plan`: a job, what is there, and what model and data say of themselves -> `Plan`, or every reason why not.

Pure and cheap: the driver calls it before anything starts, every worker calls it again with the data at hand.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

from orchestrator import plugins
from orchestrator.errors import PlanError, Problem
from orchestrator.plan.available import Available
from orchestrator.plan.axes import axis_problems, context_attention, plan_stages, unused_keys
from orchestrator.plan.compress import compress_problems
from orchestrator.plan.cut import init_problems
from orchestrator.plan.float8 import float8_problems
from orchestrator.plan.layout import Layout
from orchestrator.plan.match import match_problems
from orchestrator.plan.plan import BatchPlan, Memory, Plan, Resources
from orchestrator.plan.shapes import DataShape, ModelShape
from orchestrator.plan.speed import speed_problems
from orchestrator.spec.job import ClusterSection, JobSpec

_LOSS_OF_KIND = {"class": "cross_entropy", "binary": "bce", "value": "mse"}
_BYTES = {"fp32": 4, "bf16": 4, "fp64": 8}
_DEFAULT_EVAL_BATCH = 256
UNKNOWN_DATA = DataShape({}, (), (), "unknown")


def build_plan(
    job: JobSpec, available: Available, data_shape: DataShape | None = None, *, here: Available | None = None
) -> Plan:
    """Return the plan. Raises PlanError with all problems at once; each says what would fit.

    `data_shape` is given by a worker that has loaded the data; without it the data plug-in is asked, and a plug-in that
    says nothing of itself leaves sample counts open (0) with a note. `here` is the machine where the command runs: it
    compresses what was trained, wherever that was. None: what it lacks is not asked.
    """
    notes: list[str] = []
    problems: list[Problem] = []
    model = _model_shape(job, notes)
    data = data_shape or _data_shape(job, notes, problems)
    layout = _layout(job, available, notes)
    resources = _resources(job, available, layout, problems)
    batch = _batch(job, data, layout, problems)
    problems += match_problems(job, model, data, layout)
    problems += init_problems(job)
    problems += axis_problems(job, layout)
    problems += speed_problems(job, layout)
    problems += float8_problems(job, layout, resources, available)
    stages = plan_stages(job, layout, problems)
    problems += compress_problems(job, data, layout, notes, here)
    notes += unused_keys(job, layout)
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise PlanError(f"the job does not fit: {count}, nothing was started", problems=problems)
    return Plan(
        layout=layout,
        batch=batch,
        resources=resources,
        uses_ray=layout.world_size > 1 or job.cluster.address is not None,
        loss=loss_name(job, model, data),
        data=data,
        num_params=model.num_params if model else None,
        flops_per_sample=model.flops_per_sample if model else None,
        memory=_memory(job, model, layout),
        stages=stages,
        context_attention=context_attention(job, layout),
        notes=tuple(notes),
    )


def loss_name(job: JobSpec, model: ModelShape | None, data: DataShape) -> str:
    """Return the loss: the job's, else the model's, else the one that fits the kind of target."""
    if job.train.loss is not None:
        return job.train.loss.use
    if model is not None:
        return model.loss
    return _LOSS_OF_KIND.get(data.target_kind, "mse")


def resolved_job(job: JobSpec, plan: Plan) -> JobSpec:
    """Return the job with every `auto` of layout and resources replaced by what the plan chose, as workers read it."""
    need, parallel = plan.resources, dict[str, object](replicate=plan.layout.replicate)
    if plan.context_attention is not None:
        parallel["context_attention"] = plan.context_attention
    return job.model_copy(
        update={
            "parallel": job.parallel.model_copy(update=parallel),
            "cluster": job.cluster.model_copy(
                update={"gpus_per_worker": need.gpus_per_worker, "backend": need.backend}
            ),
        }
    )


def _model_shape(job: JobSpec, notes: list[str]) -> ModelShape | None:
    config = plugins.light_config("models", job.model.use)
    if config is None:
        notes.append(f"model {job.model.use} says nothing of itself: its options are checked in the worker")
        return None
    plugin = plugins.load("models", job.model.use)
    shape: ModelShape = plugin.shape(plugins.build_config(config, job.model.options))
    return shape


def _data_shape(job: JobSpec, notes: list[str], problems: list[Problem]) -> DataShape:
    config = plugins.light_config("data", job.data.use)
    if config is None:
        notes.append(f"data {job.data.use} says nothing of itself: samples are counted in the worker")
        return UNKNOWN_DATA
    plugin: Any = plugins.load("data", job.data.use)
    try:
        shape: DataShape = plugin.shape(plugins.build_config(config, job.data.options))
    except PlanError as error:
        problems += error.problems or (Problem("data", error.message, error.hint, "data"),)
        return UNKNOWN_DATA
    except (OSError, ValueError) as error:
        problems.append(Problem("data", str(error), "see docs/jobs.md#built-in-data", "data"))
        return UNKNOWN_DATA
    return shape


def _layout(job: JobSpec, available: Available, notes: list[str]) -> Layout:
    wanted = job.parallel
    others = Layout(
        pipeline=wanted.pipeline, shard=wanted.shard, context=wanted.context, tensor=wanted.tensor, expert=wanted.expert
    )
    if wanted.replicate != "auto":
        return replace(others, replicate=wanted.replicate)
    gpus = 0 if job.cluster.gpus_per_worker == 0 or job.cluster.backend == "gloo" else available.num_gpus
    found = replace(others, replicate=max(1, gpus // others.world_size))
    if gpus > found.world_size:
        each = others.world_size
        notes.append(f"{gpus - found.world_size} of {gpus} GPUs stay idle: the axes take {each} at a time")
    return found


def _resources(job: JobSpec, available: Available, layout: Layout, problems: list[Problem]) -> Resources:
    need = worker_resources(job.cluster, available, layout)
    if job.cluster.address is None and available.known:
        problems += _local_problems(job, available, layout, need.gpus_per_worker)
    return need


def worker_resources(cluster: ClusterSection, available: Available, layout: Layout) -> Resources:
    """Return what the workers of a layout are given by a job's cluster section; `auto`: by what is available."""
    wants_gpu = cluster.gpus_per_worker not in (0, "auto") or cluster.backend == "nccl"
    auto_gpu = cluster.gpus_per_worker == "auto" and available.num_gpus > 0 and cluster.backend != "gloo"
    gpus = 1.0 if cluster.gpus_per_worker == "auto" else float(cluster.gpus_per_worker)
    gpus = gpus if wants_gpu or auto_gpu else 0.0
    return Resources(
        num_workers=layout.world_size,
        cpus_per_worker=cluster.cpus_per_worker,
        gpus_per_worker=gpus,
        backend=cluster.backend if cluster.backend != "auto" else ("nccl" if gpus else "gloo"),
        device="cuda" if gpus else "cpu",
    )


def _local_problems(job: JobSpec, available: Available, layout: Layout, gpus: float) -> list[Problem]:
    found: list[Problem] = []
    world, cpus = layout.world_size, job.cluster.cpus_per_worker
    if gpus and gpus * world > available.num_gpus:
        found.append(
            Problem(
                "cluster.gpus_per_worker",
                f"{layout.describe()} need {gpus * world:g} GPUs, this machine has {available.num_gpus}",
                "set cluster.gpus_per_worker=0 to train on CPUs, or cluster.address=... to use a cluster",
                "too-few-gpus",
            )
        )
    if world > 1 and cpus * world > available.num_cpus:
        fits = max(1, int(available.num_cpus // cpus))
        share = available.num_cpus / world
        found.append(
            Problem(
                "parallel",
                f"{layout.describe()} x {cpus:g} CPU need {cpus * world:g} CPUs, "
                f"this machine has {available.num_cpus:g}",
                f"fits: {fits} rank{'s' if fits > 1 else ''}; or share cores with cluster.cpus_per_worker={share:g}; "
                "or cluster.address=... to use a cluster",
                "too-few-cpus",
            )
        )
    return found


def _batch(job: JobSpec, data: DataShape, layout: Layout, problems: list[Problem]) -> BatchPlan:
    train, ranks = job.train, layout.num_data_ranks
    pieces = ranks * train.accumulate
    if train.batch_size % pieces:
        below, above = train.batch_size // pieces * pieces, ceil(train.batch_size / pieces) * pieces
        fits = " or ".join(str(size) for size in (below, above) if size)
        problems.append(
            Problem(
                "train.batch_size",
                f"{train.batch_size} does not divide by {ranks} data ranks x accumulate {train.accumulate} = {pieces}",
                f"set train.batch_size={fits}",
                "indivisible",
            )
        )
    eval_batch = train.eval_batch_size or ceil(max(train.batch_size, _DEFAULT_EVAL_BATCH) / ranks) * ranks
    if eval_batch % ranks:
        up = ceil(eval_batch / ranks) * ranks
        problems.append(
            Problem(
                "train.eval_batch_size",
                f"{eval_batch} does not divide by {ranks} data ranks",
                f"set train.eval_batch_size={up}",
                "indivisible",
            )
        )
    samples = data.num_samples.get("train", 0)
    steps = train.steps or ceil((train.epochs or 0) * samples / train.batch_size)
    return BatchPlan(
        global_batch=train.batch_size,
        num_data_ranks=ranks,
        accumulate=train.accumulate,
        microbatch=max(1, train.batch_size // pieces),
        eval_batch=eval_batch,
        num_train_samples=samples,
        total_steps=steps,
        eval_every_steps=train.eval_every_steps,
        save_every_steps=job.checkpoint.every_steps,
    )


def _memory(job: JobSpec, model: ModelShape | None, layout: Layout) -> Memory | None:
    if model is None:
        return None
    kind = plugins.light_config("optimizers", job.optim.use)
    optimizer: Any = plugins.load("optimizers", job.optim.use) if kind else None
    slots = 2.0
    if kind and hasattr(optimizer, "state_slots"):
        slots = optimizer.state_slots(plugins.build_config(kind, job.optim.options))
    pieces = layout.shard * layout.tensor * layout.pipeline
    weights = ceil(model.num_params * _BYTES[job.train.precision] / pieces)
    return Memory(weights, weights, ceil(weights * slots))
