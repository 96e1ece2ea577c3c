"""The Python API: what the commands do, for notebooks and scripts. Thin; each function imports what it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.cluster.events import Event
    from orchestrator.cluster.result import RunResult
    from orchestrator.export.score import Score
    from orchestrator.plan.plan import Plan
    from orchestrator.runs.catalog import RunInfo
    from orchestrator.spec.job import JobSpec
    from orchestrator.sweep.result import SweepResult

    Job = JobSpec | Mapping[str, Any] | str | Path


def load(job: Job, overrides: Sequence[str] = ()) -> JobSpec:
    """Return the job of a file, a mapping or a spec. Raises JobFileError with every problem."""
    from orchestrator.spec.job import JobSpec
    from orchestrator.spec.load import load_job, load_spec

    if isinstance(job, JobSpec):
        return job
    return load_spec(job) if isinstance(job, Mapping) else load_job(job, overrides).spec


def build_plan(job: Job, overrides: Sequence[str] = ()) -> Plan:
    """Return the plan of a job on this machine (or, with `cluster.address`, on one not asked yet). Raises PlanError."""
    from orchestrator.plan import build
    from orchestrator.plan.available import Available

    spec = load(job, overrides)
    here = Available.local()
    return build.build_plan(spec, here if spec.cluster.address is None else Available.unknown(), here=here)


def check(job: Job, overrides: Sequence[str] = ()) -> None:
    """Raise JobFileError or PlanError with every problem of a job; return when there is none."""
    build_plan(job, overrides)


def run(
    job: Job,
    overrides: Sequence[str] = (),
    *,
    resume: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    command: str = "",
) -> RunResult:
    """Train a job to its end and return how it ended. `resume`: a run id, or "latest" of the same job.

    Raises what `orchestrator.cluster.run.run_job` raises. A stop (Ctrl-C, `orchestrator stop`) is no error: the result
    says `stopped`.
    """
    from orchestrator.cluster.run import run_job

    spec = load(job, overrides)
    said = command or "orchestrator run " + " ".join([str(job) if isinstance(job, str | Path) else "JOB", *overrides])
    return run_job(spec, build_plan(spec), resume=resume, on_event=on_event, command=said)


def run_sweep(
    job: Job,
    overrides: Sequence[str] = (),
    *,
    resume: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    command: str = "",
) -> SweepResult:
    """Search the space under the job's `sweep:` and return what was found. `resume`: a sweep's id, or "latest".

    Raises JobFileError with every problem of the sweep, and what `orchestrator.sweep.run.run_sweep` raises.
    """
    from orchestrator.errors import JobFileError
    from orchestrator.spec.job import JobSpec
    from orchestrator.spec.load import load_job, load_spec
    from orchestrator.sweep import run
    from orchestrator.sweep.check import find_sweep_problems

    if isinstance(job, str | Path):
        loaded = load_job(job, overrides, also=find_sweep_problems)
        spec, data = loaded.spec, loaded.data
    else:
        data = job.model_dump(mode="json", exclude_unset=True) if isinstance(job, JobSpec) else dict(job)
        spec, problems = load_spec(data), find_sweep_problems(data)
        if problems:
            raise JobFileError("the sweep is not sound", hint=problems[0].hint, problems=problems)
    said = command or "orchestrator sweep " + " ".join([str(job) if isinstance(job, str | Path) else "JOB", *overrides])
    return run.run_sweep(spec, data, resume=resume, on_event=on_event, command=said)


def resume(job: Job, run_id: str = "latest", **more: Any) -> RunResult:
    """Continue a run of this job from its newest checkpoint, in the same MLflow run."""
    return run(job, resume=run_id, **more)


def evaluate(
    target: str | Path, *, storage: str | Path = "runs", split: str | None = None, format: str = "program"
) -> Score:
    """Evaluate a run (by id or folder), an export folder or a checkpoint folder; `format`: which of a run's exports.

    Raises ExportError for an altered file.
    """
    from orchestrator.export.target import evaluate_target, open_target

    return evaluate_target(open_target(str(target), Path(storage), format), split)


def list_runs(storage: str | Path = "runs") -> list[RunInfo]:
    """Return all runs in a storage folder, oldest first."""
    from orchestrator.runs import catalog

    return catalog.list_runs(Path(storage))


def open_run(run_id: str = "latest", *, storage: str | Path = "runs") -> RunInfo:
    """Return one run. Raises JobFileError when there is none."""
    from orchestrator.runs import catalog

    return catalog.describe_run(catalog.find_run(Path(storage), run_id))
