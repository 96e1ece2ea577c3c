"""Can the job's linear layers multiply in 8-bit floating point? Each reason why not is a Problem. No torch."""

from __future__ import annotations

from importlib.util import find_spec

from orchestrator import plugins
from orchestrator.errors import Problem
from orchestrator.plan.available import Available
from orchestrator.plan.capability import too_old
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Resources
from orchestrator.spec.job import JobSpec

INSTALL = "pip install 'orchestrator[float8]'"
_KEY = "train.float8"


def float8_problems(job: JobSpec, layout: Layout, resources: Resources, available: Available) -> list[Problem]:
    """Return what keeps the job from `train.float8`; what only the worker can see is refused there."""
    if job.train.float8 == "none":
        return []
    found = [*_device_problems(job, resources, available)] if job.train.float8 == "native" else []
    if job.train.precision != "bf16":
        message = f"8-bit products are made from bf16 numbers, and train.precision is {job.train.precision}"
        found.append(Problem("train.precision", message, "set train.precision=bf16", "float8-precision"))
    if layout.tensor > 1:
        message = "tensor ranks multiply pieces of a layer's weights themselves, around the layer that would use 8 bits"
        found.append(Problem(_KEY, message, "set it to none, or parallel.tensor=1", "float8-tensor"))
    config = plugins.light_config("models", job.model.use)
    if config is None or not hasattr(plugins.load("models", job.model.use), "shard_units"):
        message = (
            f"model {job.model.use} does not declare its blocks (shard_units), in which linear layers are replaced"
        )
        found.append(Problem(_KEY, message, "set it to none, or declare them (docs/models.md)", "no-blocks"))
    if job.cluster.address is None and find_spec("torchao") is None:
        found.append(Problem(_KEY, "needs torchao, which is not installed", INSTALL, "no-torchao"))
    return found


def _device_problems(job: JobSpec, resources: Resources, available: Available) -> list[Problem]:
    hint = "set it to emulated (the rounding without the speed) or none"
    settled = available.known or job.cluster.gpus_per_worker == 0 or job.cluster.backend == "gloo"
    if resources.device == "cpu":
        message = "the job runs on CPUs, which do not multiply in float8"
        return [Problem(_KEY, message, hint, "float8-device")] if settled else []
    capability = available.compute_capability()
    if job.cluster.address is not None or capability is None:
        return []
    why = too_old("float8", capability)
    return [Problem(_KEY, why, hint, "float8-device")] if why else []
