"""A training handed to ranks elsewhere: what it takes and what came of it, as files of a folder laid out like a run's.

`cluster.launch` hands over and takes back; `run_rank` is what every rank does in between.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from orchestrator.compress.crew import Crew
from orchestrator.compress.ranks import context_for, pack, unpack, whole_state
from orchestrator.errors import ExportError
from orchestrator.log import setup_file_logging
from orchestrator.parallel.process import join
from orchestrator.plan.layout import Layout
from orchestrator.runs.control import wait_until_allowed
from orchestrator.runs.heartbeat import HeartbeatWriter, Limits
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json
from orchestrator.spec.job import JobSpec
from orchestrator.train.entry import prepare_process

if TYPE_CHECKING:
    from orchestrator.compress.base import Context
    from orchestrator.compress.recover import Course, Recovered
    from orchestrator.plan.plan import Resources

ENTRY = "orchestrator.compress.handover:run_rank"


def hand_over(run: RunDir, model: nn.Module, context: Context, course: Course, layout: Layout, need: Resources) -> str:
    """Write what the ranks of `layout` need; return its seal, without which no rank opens it."""
    write_json(run.job, context.job.model_dump(mode="json"))
    facts = {"layout": asdict(layout), "dtype": context.dtype, "backend": need.backend, "device": need.device}
    write_json(_facts(run), facts)
    packed = pack(model, course)
    _packed(run).write_bytes(packed)
    return hashlib.sha256(packed).hexdigest()


def take_back(run: RunDir, attempt: int, model: nn.Module) -> Recovered:
    """Load what the ranks of an attempt made of `model` into it, in place; the large files of the training go."""
    from orchestrator.compress.recover import Recovered

    model.load_state_dict(torch.load(_weights(run, attempt), map_location="cpu", weights_only=True))
    done = Recovered(**json.loads(run.result.read_bytes())[str(attempt)])
    for path in (_packed(run), *run.path.glob("weights-a*.pt")):
        path.unlink(missing_ok=True)
    return done


def run_rank(
    run: RunDir,
    *,
    rank: int,
    world_size: int,
    local_rank: int,
    attempt: int,
    token: int,
    resume: bool,
    report: Callable[[Any], None],
    wait_for_go: bool,
    seal: str,
) -> Recovered:
    """Train as one rank; the first one leaves the whole model's weights. Collective.

    An attempt after a failed one (`resume`) begins anew: the same samples, hence the same result. Raises ExportError
    when what was handed over is not what `seal` is of.
    """
    from orchestrator.compress.recover import train

    job, facts = JobSpec.model_validate_json(run.job.read_bytes()), json.loads(_facts(run).read_bytes())
    setup_file_logging(run.logs / f"rank-{rank}.log", rank=rank)
    prepare_process(job)
    limits = Limits(start_s=job.cluster.start_timeout_s, step_s=job.cluster.step_timeout_s)
    with ExitStack() as stack:
        heartbeat = HeartbeatWriter(run, rank, attempt=attempt, limits=limits)
        stack.callback(heartbeat.close)
        me = join(
            rank,
            world_size,
            local_rank,
            backend=facts["backend"],
            device=facts["device"],
            timeout_s=job.cluster.start_timeout_s,
        )
        model, course = _opened(run, seal)
        context = context_for(job, facts["dtype"], model)
        if wait_for_go:
            wait_until_allowed(run, job.cluster.start_timeout_s)
        crew = Crew(Layout(**facts["layout"]), rank, me.device)
        module, done = train(model, context, course, crew, _Beats(heartbeat))
        state = whole_state(module)
        if rank == 0:
            torch.save(state, _weights(run, attempt))
            write_json(run.result, {str(attempt): asdict(done)})
        return done


class _Beats:
    """Heartbeats of a training: before its first step and after its last one a sign of life is no step."""

    def __init__(self, writer: HeartbeatWriter) -> None:
        self._writer, self._steps = writer, 0

    def __call__(self, in_steps: bool) -> None:
        self._steps += in_steps
        self._writer.beat(self._steps, "step" if in_steps else "start")


def _opened(run: RunDir, seal: str) -> tuple[nn.Module, Course]:
    """Return what was handed over, if its bytes are those that were: they are unpickled."""
    packed = _packed(run).read_bytes()
    if hashlib.sha256(packed).hexdigest() != seal:
        raise ExportError(
            f"{_packed(run)} is not what was handed to this rank: somebody has changed it",
            hint="compress again; nobody else may write to the folder of a run",
        )
    return unpack(packed)


def _facts(run: RunDir) -> Path:
    return run.path / "training.json"


def _packed(run: RunDir) -> Path:
    return run.path / "training.pt"


def _weights(run: RunDir, attempt: int) -> Path:
    return run.path / f"weights-a{attempt}.pt"
