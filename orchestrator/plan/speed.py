"""Do the keys that trade memory for speed go with the layout and with one another? Each that does not is a Problem."""

from __future__ import annotations

from orchestrator import plugins
from orchestrator.errors import Problem
from orchestrator.plan.layout import Layout
from orchestrator.spec.job import JobSpec


def speed_problems(job: JobSpec, layout: Layout) -> list[Problem]:
    """Return every combination that cannot work, or would not do what it says."""
    return [*_reshard_problems(job, layout), *_shard_precision_problems(job, layout), *_compile_problems(job, layout)]


def _compile_problems(job: JobSpec, layout: Layout) -> list[Problem]:
    found: list[Problem] = []
    if not job.train.compile:
        return found
    if job.train.activation_checkpoint == "selective":
        message = "selective keeps the outcome of single matrix products, which train.compile fuses with what is around"
        hint = "set it to full or every_n, or leave train.compile out"
        found.append(Problem("train.activation_checkpoint", message, hint, "compile-selective"))
    if layout.pipeline > 1 and not _declares_blocks(job):
        message = f"model {job.model.use} does not declare its blocks (shard_units), which a stage compiles one by one"
        found.append(Problem("train.compile", message, "leave it out, or declare them (docs/models.md)", "no-blocks"))
    return found


def _declares_blocks(job: JobSpec) -> bool:
    if plugins.light_config("models", job.model.use) is None:
        return False
    return hasattr(plugins.load("models", job.model.use), "shard_units")


def _reshard_problems(job: JobSpec, layout: Layout) -> list[Problem]:
    if job.parallel.reshard_after_forward is not True or layout.pipeline == 1:
        return []
    return [
        Problem(
            "parallel.reshard_after_forward",
            "a pipeline's stages keep gathered weights until their last backward pass: gathering them for each "
            "microbatch anew costs time, and schedules that compute weight gradients apart would lose them",
            "leave it out or set it to false; or set parallel.pipeline=1",
            "reshard-pipeline",
        )
    ]


def _shard_precision_problems(job: JobSpec, layout: Layout) -> list[Problem]:
    key, found = "parallel.shard_precision", []
    if job.parallel.shard_precision == "full":
        return []
    if layout.shard == 1:
        message = "is the precision of weights gathered from shards, and parallel.shard is 1"
        found.append(
            Problem(key, message, "leave it out; for bf16 on whole weights: train.precision=bf16", "shard-precision")
        )
    if job.train.precision == "fp64":
        message = "bf16 would round away what train.precision=fp64 is there to prove"
        found.append(Problem(key, message, "leave it out, or set train.precision to fp32 or bf16", "shard-precision"))
    if layout.expert > 1:
        message = "experts that are spread over ranks stay in their own precision, and their inputs would be bf16"
        hint = "leave it out and set train.precision=bf16, or set parallel.expert=1"
        found.append(Problem(key, message, hint, "shard-precision"))
    return found
