"""Trains a compressed model on this machine: in this process, or on ranks that are started and brought back here.

Called by `recover` where no other `Launch` was handed in.
"""

from __future__ import annotations

import io
import pickle
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orchestrator.compress.crew import Crew
from orchestrator.compress.pulse import SILENT, Pulse, Watch
from orchestrator.errors import ExportError, TrainError
from orchestrator.parallel.process import CPU
from orchestrator.plan.layout import Layout
from orchestrator.spec.job import ClusterSection, JobSpec

if TYPE_CHECKING:
    from orchestrator.compress.base import Context
    from orchestrator.compress.recover import Course, Recovered

_TIMEOUT_S = (
    14 * 86400.0
)  # a training may take as long as it takes while its ranks give signs; poll(2) counts to 24 days


def train_here(model: nn.Module, context: Context, course: Course, layout: Layout) -> Recovered:
    """Train `model` in place: one rank in this process, several as processes beside it (on the processor).

    Raises TrainError when a rank fails.
    """
    if layout.world_size > 1:
        return _train_beside(model, context, course, layout)
    from orchestrator.compress.recover import train

    _, done = train(model, context, course, Crew(device=own_device(context.cluster)))
    model.cpu()
    return done


def own_device(cluster: ClusterSection) -> torch.device:
    """Return where a process alone trains: on this machine's GPU, if the job wanted any and there is one."""
    wanted = cluster.gpus_per_worker != 0 and cluster.backend != "gloo"
    return torch.device("cuda", 0) if wanted and torch.cuda.is_available() else CPU


def _train_beside(model: nn.Module, context: Context, course: Course, layout: Layout) -> Recovered:
    from orchestrator.compress.recover import Recovered
    from orchestrator.testing.ranks import RankError, run_ranks
    from orchestrator.verify.pool import last_line

    job, cluster = context.job.model_dump(mode="json"), context.job.cluster
    packed = pack(model, course)
    with TemporaryDirectory(prefix="pulse-") as folder:
        paths = [_pulse_path(folder, rank) for rank in range(layout.world_size)]
        watch = Watch(paths, time.time(), cluster.start_timeout_s, cluster.step_timeout_s)
        try:
            found = run_ranks(
                train_rank,
                layout.world_size,
                job,
                context.dtype,
                asdict(layout),
                packed,
                folder,
                timeout_s=_TIMEOUT_S,
                watch=watch,
            )
        except RankError as error:
            message = last_line(str(error))
            hint = "raise cluster.step_timeout_s if a step may take so long" if message.startswith(SILENT) else ""
            raise TrainError(f"training on {layout.describe()} failed: {message}", hint=hint) from error
    model.load_state_dict(found[0]["state"])
    return Recovered(found[0]["steps"], found[0]["loss"])


def train_rank(
    rank: int, world_size: int, job: dict[str, Any], dtype: str, layout: dict[str, int], packed: bytes, folder: str
) -> dict[str, Any]:
    """Train as one rank; the first one returns the whole model's tensors by name, all say how it went. Collective."""
    from orchestrator.compress.recover import train
    from orchestrator.runs.parent import die_with_parent
    from orchestrator.train.entry import prepare_process

    die_with_parent()
    spec = JobSpec.model_validate(job)
    prepare_process(spec)
    # The bytes come through the pipe from the process that made them, as every argument here: from nowhere else.
    model, course = unpack(packed)
    crew = Crew(Layout(**layout), rank)
    beat = Pulse(_pulse_path(folder, rank)).beat
    module, done = train(model, context_for(spec, dtype, model), course, crew, beat)
    state = whole_state(module)
    return {"state": state if rank == 0 else {}, "steps": done.steps, "loss": done.loss}


def _pulse_path(folder: str, rank: int) -> Path:
    return Path(folder) / f"rank-{rank}"


def pack(model: nn.Module, course: Course) -> bytes:
    """Return a model and what it shall be taught as bytes. Raises ExportError for a model that cannot be sent."""
    stream = io.BytesIO()
    try:
        torch.save((model, course), stream)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ExportError(
            f"this model cannot be sent to ranks: {error}",
            hint="set the step's replicate=1, or define the model's classes at the top of a module",
        ) from error
    return stream.getvalue()


def unpack(packed: bytes) -> tuple[nn.Module, Course]:
    """Return what was packed. Runs code that the bytes name: only for bytes known to be this program's own."""
    model, course = torch.load(io.BytesIO(packed), weights_only=False)
    return model, course


def context_for(job: JobSpec, dtype: str, model: nn.Module) -> Context:
    """Return what a rank looks at while it trains: the job's data and its plan for one process."""
    from orchestrator.compress.base import Context
    from orchestrator.plan.available import Available
    from orchestrator.plan.build import build_plan
    from orchestrator.train.engine import load_dataset

    data = load_dataset(job)
    return Context(job, build_plan(job, Available.local(), data.shape), data, model, Path(), dtype)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the whole model's tensors by name, on the CPU. Collective."""
    return {name: _whole(tensor).cpu() for name, tensor in module.state_dict().items()}


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
