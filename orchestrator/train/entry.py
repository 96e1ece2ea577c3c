"""`run_rank`: one rank of one attempt, from the run's folder to its `FitResult`.

Called under Ray, under torchrun and by a process alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import torch
from torch import nn

from orchestrator.checkpoint.fork import Fork
from orchestrator.checkpoint.store import CheckpointStore
from orchestrator.data.dataset import Dataset
from orchestrator.log import setup_file_logging
from orchestrator.parallel.process import Rank, join
from orchestrator.runs.control import StopPoller, wait_until_allowed
from orchestrator.runs.heartbeat import HeartbeatWriter, Limits
from orchestrator.runs.lease import is_current
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record, write_json
from orchestrator.runs.spool import SpoolWriter
from orchestrator.runs.system import SystemSampler
from orchestrator.spec.job import JobSpec
from orchestrator.train.build import construct_model
from orchestrator.train.engine import Engine, build_engine, load_dataset
from orchestrator.train.lineage import record_dataset
from orchestrator.train.loop import fit
from orchestrator.train.ports import FitResult, NullRecorder, Ports, StepReport
from orchestrator.train.profile import record_trace
from orchestrator.train.saver import CheckpointSaver
from orchestrator.train.step import Stepper


def _nothing(engine: Engine, result: FitResult, beat: Callable[[int, str], None]) -> None:
    """Do nothing after training."""


@dataclass(frozen=True)
class Recipe:
    """What of a run is not as usual: how its module is made, what a step is, what is done once training has ended.

    `finish` is given the engine with its last weights, the result, and the heartbeat to keep up meanwhile.
    """

    construct: Callable[[JobSpec], nn.Module] = construct_model
    stepper: Callable[[Engine], Stepper] = Stepper
    finish: Callable[[Engine, FitResult, Callable[[int, str], None]], None] = _nothing


USUAL = Recipe()


def run_rank(
    run: RunDir,
    *,
    rank: int,
    world_size: int,
    local_rank: int,
    attempt: int,
    token: int,
    resume: bool,
    until: int | None = None,
    fork: Fork | None = None,
    report: Callable[[StepReport], None] = lambda report: None,
    wait_for_go: bool = False,
    judge: Callable[[int, Mapping[str, float]], bool] | None = None,
    load: Callable[[JobSpec], Dataset] = load_dataset,
    recipe: Recipe = USUAL,
) -> FitResult:
    """Train this rank's share and return the result; rank 0 also writes `result.json`.

    Joins the process group that a launcher has made, or makes it from the environment. With `wait_for_go` the first
    step waits until the driver allows it. `judge` is told every evaluation and may end the run, `load` gives the data
    set (docs of `train.ports` and `train.engine`). `until` ends the training before the plan's last step, `fork` is the
    other training's checkpoint that a resumed one may begin from. Raises what training raises.
    """
    job = JobSpec.model_validate_json(run.job.read_bytes())
    setup_file_logging(run.logs / f"rank-{rank}.log", rank=rank)
    with ExitStack() as stack:
        limits = Limits(start_s=job.cluster.start_timeout_s, step_s=job.cluster.step_timeout_s)
        heartbeat = HeartbeatWriter(run, rank, attempt=attempt, limits=limits)
        stack.callback(heartbeat.close)
        spool = SpoolWriter(run.spool / f"rank0-a{attempt}.jsonl") if rank == 0 else None
        recorder = spool or NullRecorder()
        stack.callback(recorder.close)
        me = _join(job, rank, world_size, local_rank)
        engine = build_engine(job, me, load, recipe.construct)
        if spool is not None:
            record_dataset(spool, run, engine.data)
        store = _open_store(run, job, me, attempt, token)
        saver = CheckpointSaver(run.checkpoints, job, store, mlflow_run_id=_mlflow_run_id(run), fork=fork)
        if wait_for_go:
            wait_until_allowed(run, job.cluster.start_timeout_s)
        beat = _Beat(heartbeat)
        if rank == 0 and job.track.system_s is not None:
            stack.callback(SystemSampler(recorder, job.track.system_s, lambda: beat.at_step).close)
        ports = Ports(
            run=run,
            attempt=attempt,
            token=token,
            resume=resume,
            until=until,
            recorder=recorder,
            report=report,
            should_stop=StopPoller(run),
            judge=judge,
            beat=beat,
        )
        result = fit(engine, ports, saver, recipe.stepper)
        recipe.finish(engine, result, beat)
        if spool is not None:
            record_trace(spool, run)
            write_json(run.result, asdict(result))
        return result


class _Beat:
    """The heartbeat, remembering the step for the sampler of system metrics."""

    def __init__(self, writer: HeartbeatWriter) -> None:
        self._writer = writer
        self.at_step = 0

    def __call__(self, step: int, section: str) -> None:
        self.at_step = step
        self._writer.beat(step, section)


def prepare_process(job: JobSpec) -> None:
    """Set what the job says of every process that trains: its threads, and whether kernels are deterministic."""
    torch.set_num_threads(max(1, int(job.cluster.cpus_per_worker)))
    if job.train.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _join(job: JobSpec, rank: int, world_size: int, local_rank: int) -> Rank:
    prepare_process(job)
    device = "cuda" if job.cluster.gpus_per_worker else "cpu"
    timeout_s = job.cluster.start_timeout_s
    return join(rank, world_size, local_rank, backend=job.cluster.backend, device=device, timeout_s=timeout_s)


def _open_store(run: RunDir, job: JobSpec, me: Rank, attempt: int, token: int) -> CheckpointStore:
    return CheckpointStore(
        run.checkpoints,
        rank=me.rank,
        world_size=me.world_size,
        attempt=attempt,
        token=token,
        check_token=lambda: is_current(run, token),
        keep=job.checkpoint.keep,
        background=job.checkpoint.background,
    )


def read_result(run: RunDir) -> FitResult:
    """Return what the engine wrote when training ended by itself. Raises FileNotFoundError when it has not."""
    return FitResult(**json.loads(run.result.read_text(encoding="utf-8")))


def _mlflow_run_id(run: RunDir) -> str:
    """Return the run's MLflow id as the driver recorded it; "" while it has none (offline, or not yet made)."""
    try:
        mlflow = read_record(run).mlflow
    except FileNotFoundError:
        return ""
    return str((mlflow or {}).get("run_id") or "")
