"""`TrialRun`: one training of a trial in a folder laid out like a run's, so that the engine, the exporters and the
tracking sender work on it as on any run. Made, told about and closed by the driver.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from orchestrator.checkpoint.disk import MANIFEST
from orchestrator.checkpoint.manifest import parse_folder_name
from orchestrator.cluster.trial_worker import Share
from orchestrator.errors import NotAbleError
from orchestrator.plan.build import resolved_job
from orchestrator.runs import control
from orchestrator.runs.heartbeat import Watchdog, clear_heartbeats, read_heartbeats
from orchestrator.runs.lease import Lease, acquire
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import (
    RunRecord,
    now_iso,
    process_started,
    read_record,
    update_record,
    write_json,
    write_private,
    write_record,
)
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.spec.yaml_write import write
from orchestrator.sweep.feasible import Feasible
from orchestrator.sweep.lineage import lineage_comment, lineage_tags
from orchestrator.sweep.point import plain_copy, point_name, short_value
from orchestrator.sweep.trial import Trial
from orchestrator.tracking.request import TrackingRequest, write_request

STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "interrupted": "KILLED", "infeasible": "KILLED"}
"""In MLflow; a trial that was ended early on purpose has done its part, all others FAILED."""
_RECORDED = {"finished": "finished", "stopped": "stopped", "interrupted": "stopped", "infeasible": "stopped"}


def trial_folder(sweep: RunDir, trial: Trial, repeat: int) -> RunDir:
    """Return where a repeat of a trial lives."""
    return RunDir(sweep.trials / (trial.name if repeat == 0 else f"{trial.name}-r{repeat}"))


def trial_job(job: JobSpec, repeat: int) -> JobSpec:
    """Return the job of a repeat: the same with the next seed."""
    if repeat == 0:
        return job
    return job.model_copy(update={"train": job.train.model_copy(update={"seed": job.train.seed + repeat})})


@dataclass
class TrialRun:
    """A repeat of a trial that is about to be trained, is, or has just been."""

    trial: Trial
    repeat: int
    feasible: Feasible
    run: RunDir
    failures: int = 0
    lease: Lease | None = None
    spool: SpoolWriter | None = None
    watchdog: Watchdog = field(default_factory=Watchdog)
    began: float = 0.0
    durable_record: ClassVar[bool] = False
    """The ledger is what a resume goes by, so the record of a trial need not outlive a power cut."""

    @property
    def title(self) -> str:
        """What the job's file says it is."""
        return f"Trial {self.trial.name}: {point_name(self.trial.point)}"

    def open(self, sweep: RunDir) -> Share:
        """Make the folder (or take over what an earlier attempt left); return what the workers are asked.

        Which attempt it is says the ledger: `begin` has been noted there.
        """
        job = trial_job(self.feasible.job, self.repeat)
        attempt = self.trial.attempts[self.repeat]
        for folder in (self.run.logs, self.run.failures, self.run.heartbeats, self.run.spool):
            folder.mkdir(parents=True, exist_ok=True)
        record = self._last_record(job.name)
        self.lease = self.lease.advance() if self.lease is not None else acquire(self.run)
        self._write_record(replace(record, attempt=attempt))
        clear_heartbeats(self.run)
        control.clear_stop(self.run)
        self.run.result.unlink(missing_ok=True)
        self._write_job(job)
        if self.spool is None:
            self._track(sweep, job, resume=attempt > 1)
        self.began, self.watchdog = time.monotonic(), Watchdog()
        birth, fork = self.trial.birth, self.trial.fork
        # One that the scheduler has ended, before the driver was killed, goes to that evaluation and no step farther.
        until = self.trial.stopped_step or (self.last_step if birth is not None else None)
        resume = attempt > 1 or fork is not None
        return Share(str(self.run.path), attempt=attempt, token=self.lease.token, resume=resume, until=until, fork=fork)

    def is_cut(self, step: int) -> bool:
        """Say whether the scheduler ended the training that has ended at this step."""
        return bool(self.trial.stopped_at) and step >= self.trial.stopped_step

    @property
    def last_step(self) -> int:
        """The step at which this trial's training ends."""
        return self.trial.birth.until if self.trial.birth is not None else self.feasible.plan.batch.total_steps

    def _last_record(self, name: str) -> RunRecord:
        try:
            return read_record(self.run)
        except NotAbleError:  # there was none, or a power cut took it
            return RunRecord(run_id=self.run.run_id, name=name, created=now_iso(), kind="trial")

    def _write_record(self, record: RunRecord) -> None:
        pid = os.getpid()
        started, host = process_started(pid), socket.gethostname()
        now = replace(record, state="running", verdict="", ended="")
        write_json(
            self.run.record, asdict(replace(now, pid=pid, pid_started=started, host=host)), durable=self.durable_record
        )

    def _write_job(self, job: JobSpec) -> None:
        """Write the job as workers read it, and as a person would run it alone: without what the plan chose here."""
        alone = job.model_copy(update={"sweep": None})
        write_json(self.run.job, resolved_job(alone, self.feasible.plan).model_dump(mode="json"), durable=False)
        said = f"# {self.title}\n{lineage_comment(self.trial)}# orchestrator run {self.run.path}/job.yaml\n"
        write_private(self.run.path / "job.yaml", said + write(_without_defaults(alone)))

    def _track(self, sweep: RunDir, job: JobSpec, *, resume: bool) -> None:
        varies = varied(self.trial)
        write_trial_request(self.run, sweep, self.trial, job, self.repeat, resume=resume, params=varies)
        self.spool = SpoolWriter(self.run.spool / "driver.jsonl")

    def is_hung(self) -> bool:
        """Say whether a rank has been silent for longer than it may be."""
        return bool(self.watchdog.hung(read_heartbeats(self.run)))

    def evaluation_at(self, step: int) -> int:
        """Return the number of the evaluation at a step, counted over repeats: the same in whatever attempt."""
        batch = self.feasible.plan.batch
        whole = batch.count_due(batch.eval_every_steps, batch.total_steps)
        return self.repeat * whole + batch.count_due(batch.eval_every_steps, step)

    def leave(self) -> float | None:
        """Return the seconds of the attempt that is over now; None when none was under way."""
        began, self.began, self.trial.began = self.began, 0.0, 0.0
        return time.monotonic() - began if began else None

    def close(self, state: str, note: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Tell the record and the tracking store how it ended, and give the folder back."""
        spool, self.spool = self.spool, None
        if self.run.record.is_file() or spool is not None:  # else it never began
            end_folder(self.run, state, note, step=self.trial.step, metrics=metrics, tags=tags, spool=spool)
        if self.lease is not None:
            self.lease.release()
            self.lease = None


def end_folder(
    run: RunDir,
    state: str,
    note: str,
    *,
    step: int = 0,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    spool: SpoolWriter | None = None,
) -> None:
    """Tell a trial's record and the tracking store how it ended, whoever began it. `spool` is closed."""
    writer, metrics = spool or SpoolWriter(run.spool / "driver.jsonl"), dict(metrics or {})
    if metrics:
        writer.metrics(step, metrics)
    writer.record("tags", values=dict(tags or {}))
    writer.record("note", text=note)
    writer.record("status", status=STATUS.get(state, "FAILED"))
    writer.close()
    ending: dict[str, Any] = {"state": _RECORDED.get(state, "failed"), "verdict": note.splitlines()[0]}
    ending |= {"ended": now_iso()} | ({"metrics": metrics} if metrics else {})
    try:
        update_record(run, **ending)
    except NotAbleError:  # a power cut took it
        write_record(run, RunRecord(run_id=run.run_id, name=run.run_id, created=now_iso(), kind="trial", **ending))


def newest_step(run: RunDir) -> int:
    """Return the step of the trial's newest committed checkpoint, 0 when it has none."""
    found = [parse_folder_name(path.parent.name) for path in run.checkpoints.glob(f"*/{MANIFEST}")]
    return max((each[0] for each in found if each is not None), default=0)


def write_trial_request(
    run: RunDir,
    sweep: RunDir,
    trial: Trial,
    job: JobSpec,
    repeat: int,
    *,
    resume: bool,
    params: Mapping[str, Any],
) -> TrackingRequest:
    """Write what the sender is asked for this trial: a child run with a short name and what varies as parameters."""
    track = job.track
    again = f" r{repeat}" if repeat else ""
    tags = {
        "orchestrator.kind": "trial",
        "orchestrator.sweep": sweep.run_id,
        "orchestrator.run_id": f"{sweep.run_id}/{run.run_id}",
        "trial": trial.name,
        "trial.origin": trial.origin,
        "trial.hash": trial.digest,
    }
    tags |= lineage_tags(trial)
    return write_request(
        run,
        uri=track.uri or default_uri(sweep),
        experiment=track.experiment,
        run_name=f"{trial.name}{again} {point_name(trial.point)}",
        offline=track.offline,
        resume=resume,
        tags=tags | ({"trial.repeat": str(repeat)} if repeat else {}),
        params=params,
        started_ms=time.time_ns() // 1_000_000,
    )


def varied(trial: Trial) -> dict[str, str]:
    """Return what varies as flat text parameters; a section as its parts."""
    return {
        path: short_value(value) if not isinstance(value, float) else f"{value:.6g}"
        for path, value in trial.point.items()
    }


def default_uri(sweep: RunDir) -> str:
    """Return the store beside the sweep: without this a trial would have one of its own in the sweep's folder."""
    from orchestrator.runs.paths import default_tracking_uri

    return default_tracking_uri(sweep.storage)


def drop_checkpoints(run: RunDir) -> None:
    """Delete a trial's checkpoints and compressed files; its job, curves and values stay."""
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    shutil.rmtree(run.compressed, ignore_errors=True)


def _without_defaults(job: JobSpec) -> Any:
    return plain_copy(job.model_dump(mode="json", exclude_defaults=True))
