"""Which layouts there are for a job: its own, or every one that fits. Pure arithmetic, by `build_plan`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from orchestrator.errors import PlanError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.layout import AXES, Layout
from orchestrator.spec.job import CompressSection, JobSpec


@dataclass(frozen=True)
class Candidate:
    """A layout of a job that fits: the job under it, its plan's figures, and its name for people."""

    job: JobSpec
    layout: Layout
    pieces: int
    """Forward passes per step, those of all data ranks added up: accumulated runs, or a pipeline's microbatches."""
    label: str

    @property
    def passes(self) -> int:
        """Forward passes per step, those that data ranks make at the same time counted as one."""
        return self.pieces // self.layout.num_data_ranks

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.layout.world_size


def own_layout(job: JobSpec) -> Candidate:
    """Return the job's own layout. Raises PlanError when it does not fit, or is one process: nothing to compare."""
    found = candidate_of(job)
    if found.world_size == 1:
        raise PlanError(
            "the layout is one process: there is nothing to compare it with",
            hint="set an axis (parallel.replicate=2), or try every layout: --layouts all --ranks 4",
        )
    return found


def fitting(job: JobSpec, max_ranks: int) -> Iterator[Candidate]:
    """Yield every layout of 2 to `max_ranks` ranks that the plan accepts for this job, each once."""
    for layout in factorisations(max_ranks):
        for way in ways(layout):
            try:
                yield candidate_of(with_layout(job, layout, attention=way))
            except PlanError:
                continue


def factorisations(max_ranks: int) -> Iterator[Layout]:
    """Yield every way to write 2 to `max_ranks` ranks as a product of the axes, experts over none or some of them."""

    def extend(chosen: tuple[int, ...], used: int) -> Iterator[tuple[int, ...]]:
        if len(chosen) == len(AXES):
            yield chosen
            return
        for degree in range(1, max_ranks // used + 1):
            yield from extend((*chosen, degree), used * degree)

    for degrees in extend((), 1):
        layout = Layout(**dict(zip(AXES, degrees, strict=True)))
        if layout.world_size == 1:
            continue
        for expert in range(1, layout.num_data_ranks + 1):
            if layout.num_data_ranks % expert == 0:
                yield replace(layout, expert=expert)


def ways(layout: Layout) -> tuple[str | None, ...]:
    """Return every value of `parallel.context_attention` that makes a difference under this layout; None: none does."""
    return ("heads", "ring") if layout.context > 1 else (None,)


def with_layout(job: JobSpec, layout: Layout, schedule: str | None = None, attention: str | None = None) -> JobSpec:
    """Return the job under a layout; stages given by name hold for the job's own number of stages only."""
    changes: dict[str, object] = dict(zip(AXES, layout.degrees, strict=True))
    changes["expert"] = layout.expert
    if schedule is not None:
        changes["schedule"] = schedule
    if attention is not None:
        changes["context_attention"] = attention
    if layout.shard == 1:
        changes["shard_precision"] = "full"
    if layout.pipeline > 1 and job.parallel.reshard_after_forward is True:
        changes["reshard_after_forward"] = "auto"
    if layout.pipeline != job.parallel.pipeline:
        changes |= {"cuts": (), "microbatches": None}
    return job.model_copy(update={"parallel": job.parallel.model_copy(update=changes)})


def on_one_process(job: JobSpec, pieces: int) -> JobSpec:
    """Return the job's one-process reference: no axes, the same batch in `pieces` passes, the loss in one piece."""
    parallel = type(job.parallel)(replicate=1)
    train = job.train.model_copy(update={"accumulate": pieces, "loss_chunks": 1})
    return job.model_copy(update={"parallel": parallel, "train": train})


def on_cpus(job: JobSpec) -> JobSpec:
    """Return the job for this machine's processes: gloo, no GPU, no fused kernels; nothing is compressed after it."""
    cluster = job.cluster.model_copy(update={"gpus_per_worker": 0.0, "backend": "gloo", "address": None})
    float8 = "emulated" if job.train.float8 == "native" else job.train.float8
    train = job.train.model_copy(update={"compile": False, "float8": float8})
    return job.model_copy(update={"cluster": cluster, "train": train, "compress": CompressSection()})


def in_precision(job: JobSpec, precision: str) -> JobSpec:
    """Return the job in another precision; float64 is whole, so that the layout is judged and not its rounding."""
    parallel = job.parallel.model_copy(update={"shard_precision": "full"}) if precision == "fp64" else job.parallel
    changes = {"precision": precision} | ({"float8": "none"} if precision != "bf16" else {})
    train = job.train.model_copy(update=changes)
    return job.model_copy(update={"train": train, "parallel": parallel})


def candidate_of(job: JobSpec) -> Candidate:
    """Plan a job. Raises PlanError when it does not fit."""
    plan = build_plan(job, Available.unknown())
    runs = plan.stages.microbatches if plan.stages else plan.batch.accumulate
    label = plan.layout.describe()
    if plan.stages:
        label += f", {plan.stages.schedule}"
    if plan.layout.tensor > 1 and not job.parallel.sequence:
        label += ", whole sequences"
    if plan.context_attention == "ring":
        label += ", ring attention"
    # `auto` is settled here, so that every process reads the same numbers.
    settled = with_layout(job, plan.layout, attention=plan.context_attention)
    return Candidate(settled, plan.layout, runs * plan.layout.num_data_ranks, label)
