"""`run_sweep`: the whole life of a sweep on the driver, from an empty folder (or a killed sweep) to its verdict."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.cluster.events import Event
from orchestrator.cluster.interrupt import Interrupts
from orchestrator.cluster.pool import Pool
from orchestrator.cluster.session import RaySession
from orchestrator.cluster.tracked import as_record
from orchestrator.errors import JobFileError, OrchestratorError
from orchestrator.plan.available import Available
from orchestrator.plan.plan import Resources
from orchestrator.runs import control
from orchestrator.runs.catalog import create_run, find_run
from orchestrator.runs.heartbeat import kill_rank, read_heartbeats
from orchestrator.runs.lease import Lease, acquire
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import now_iso, process_started, read_record, update_record, write_json
from orchestrator.spec.job import JobSpec
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.check import build_space
from orchestrator.sweep.drive import SweepLoop
from orchestrator.sweep.export import export_trials
from orchestrator.sweep.feasible import Limits
from orchestrator.sweep.generations import build_source
from orchestrator.sweep.layouts import layout_rows
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.report import Report, best_values, model_version
from orchestrator.sweep.result import SweepResult
from orchestrator.sweep.resume import require_same_job, require_same_trials
from orchestrator.sweep.schedule import sample_needs, schedule_line, warm_start
from orchestrator.sweep.schedulers import build_scheduler, replay
from orchestrator.sweep.settle import settle
from orchestrator.sweep.shared import kept_in
from orchestrator.sweep.summary import Summary, verdict
from orchestrator.sweep.told import SweepTracking
from orchestrator.tracking.links import sweep_links
from orchestrator.tracking.request import TrackingState

_RENEW_S = 15.0


def run_sweep(
    job: JobSpec,
    data: Mapping[str, Any],
    *,
    resume: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    command: str = "",
) -> SweepResult:
    """Search the job's space and return what was found; `data` is the job's merged plain data (`LoadedJob.data`).

    `resume` is a sweep's id or "latest": ended trials stand, interrupted ones go on, and the sweep section may differ
    (more trials, wider ranges, another searcher). Raises JobFileError for a job that cannot resume it, TrackingError
    when a first start cannot reach its store, ClusterError, KeyboardInterrupt at a second Ctrl-C. Whatever happens, no
    process is left and the record and the tracking store are told.
    """
    if job.sweep is None:
        raise JobFileError(
            "the job has no sweep", hint="add a `sweep:` section (docs/sweeps.md), or `orchestrator run`"
        )
    storage = Path(job.cluster.storage).resolve()
    run = _folder(storage, resume, job, command)
    if resume:
        require_same_job(run, job)
    with ExitStack() as stack:
        lease = acquire(run)
        stack.callback(lease.release)
        ledger = Ledger(run.sweep / "ledger.jsonl")
        stack.callback(ledger.close)
        require_same_trials(run, data, ledger)
        driver = _Driver(run, job, job.sweep, data, resume is not None, on_event, command, lease, ledger)
        stack.enter_context(Interrupts(run, on_event))
        try:
            driver.open()
            driver.search()
            return driver.close_well()
        except BaseException as error:
            driver.close_badly(error)
            raise
        finally:
            driver.shut()


def _folder(storage: Path, resume: str | None, job: JobSpec, command: str) -> RunDir:
    if resume:
        return find_run(storage, resume, name=job.name, kind="sweep")
    return create_run(storage, job.name, command, kind="sweep")


@dataclass
class _Driver:
    """The pieces of one sweep's driver and their order."""

    run: RunDir
    job: JobSpec
    sweep: SweepSection
    data: Mapping[str, Any]
    resume: bool
    on_event: Callable[[Event], None]
    command: str
    lease: Lease
    ledger: Ledger
    session: RaySession | None = None
    pool: Pool | None = None
    loop: SweepLoop | None = None
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._renewed = self._spent_at = time.monotonic()
        self._told = -1
        self._elapsed_s = 0.0
        self.report = Report(self.run, self.job, self.ledger, self.command)

    def open(self) -> None:
        """Claim the folder, start cluster and tracking side by side."""
        self._claim()
        cores = max(1, int(Available.local().num_cpus))
        self.session = RaySession(self.job.cluster.address, num_cpus=cores, log_file=self.run.logs / "ray.log")
        self.session.start()
        space = build_space(self.job)
        tracking = self.report.tracking = SweepTracking(self.run, self.job, resume=self.resume)
        tracking.describe(space, self.command)
        self.pool = Pool(self.session, self.job.cluster.wait_s + self.job.cluster.start_timeout_s)
        limits = self._limits(self.pool)
        needs = sample_needs(self.data, space, limits)
        if needs:
            self.pool.warm(*warm_start(needs, self.sweep, self.pool))
        source = build_source(self.data, self.job, space, self.ledger, limits)
        scheduler, judged_by = build_scheduler(self.sweep, source.objectives)
        replay(scheduler, judged_by, self.ledger.history)
        self.loop = SweepLoop(
            self.run, self.job, self.sweep, self.ledger, source, self.pool, scheduler, judged_by, self.on_event,
            self.tick, self.ledger.spent_s,
        )  # fmt: skip
        self.on_event(Event("schedule", schedule_line(self.sweep, needs, source.size, self.pool)))
        state = tracking.wait_ready()
        if state.run_id:
            update_record(self.run, mlflow=as_record(state))
        self.on_event(Event("tracking", state.url or state.uri, {"state": state.state, **as_record(state)}))

    def _claim(self) -> None:
        pid = os.getpid()
        for path in self.run.trials.iterdir() if self.run.trials.is_dir() else ():  # of a driver that was killed
            for beat in read_heartbeats(RunDir(path)):
                kill_rank(beat)
        for folder in (self.run.trials, self.run.sweep, self.run.artifacts):
            folder.mkdir(exist_ok=True)
        control.clear_stop(self.run)
        update_record(
            self.run, state="running", verdict="", ended="", pid=pid, pid_started=process_started(pid),
            host=socket.gethostname(), attempt=read_record(self.run).attempt + 1,
        )  # fmt: skip
        write_json(self.run.job, self.job.model_dump(mode="json"))
        found = {"run_id": self.run.run_id, "path": str(self.run.path), "resumed": self.resume}
        self.on_event(Event("created", self.run.run_id, found))

    def _limits(self, pool: Pool) -> Limits:
        address, cluster = self.job.cluster.address, self.job.cluster
        here = Available.local() if address is None else Available.unknown()
        gpus = 0.0 if cluster.gpus_per_worker == "auto" else cluster.gpus_per_worker
        one = Resources(1, cluster.cpus_per_worker, gpus, "gloo", "cpu")
        most = None if address is None else max(1, sum(node.holds(one) for node in pool.nodes))
        return Limits(here, most)

    def search(self) -> None:
        """Run trials until nothing is left to do."""
        if self.loop is not None:
            self.loop.execute()
            self._elapsed_s = self.loop.elapsed_s

    def tick(self) -> None:
        """Keep the lease and the account of time; tell MLflow how far the search is."""
        now = time.monotonic()
        if now - self._renewed > _RENEW_S:
            self.lease.renew()
            self._spend()
            self._renewed = now
        ended = sum(trial.is_over for trial in self.ledger.trials.values())
        if ended != self._told:  # the front is compared pair by pair: not ten times a second
            self._told = ended
            self.report.progress(ended, self._summary())

    def _spend(self) -> None:
        now = time.monotonic()
        self.ledger.spend(now - self._spent_at)
        self._spent_at = now

    def _summary(self, exported: Mapping[int, Mapping[str, float]] | None = None) -> Summary:
        loop = self.loop
        elapsed_s = self._elapsed_s or (loop.elapsed_s if loop is not None else time.monotonic() - self.began)
        return self.report.summary(elapsed_s, loop.ended if loop is not None else "", exported)

    def close_well(self) -> SweepResult:
        """Export the winners, draw, tell the record and the tracking store."""
        stopped = control.stop_requested(self.run)
        summary = self._summary()
        self._leave_cluster()
        notes: tuple[str, ...] = ()
        if summary.front and not stopped and self.sweep.export != "none":
            self.on_event(Event("finishing", f"exporting the {self.sweep.export}, verifying, evaluating"))
            exported, notes = export_trials(self.run, self.job, self.sweep, summary, self.ledger)
            summary = self._summary(exported)
        summary = replace(summary, layouts=layout_rows(self.data, build_space(self.job), summary.trials.values()))
        state = "stopped" if stopped else "finished" if summary.front else "failed"
        if not stopped and self.sweep.keep != "all":
            shutil.rmtree(kept_in(self.run), ignore_errors=True)
        said = verdict(state, summary)
        tracked = self._tell(state, said, summary)
        record = update_record(
            self.run, state=state, verdict=said, ended=now_iso(), metrics=best_values(summary),
            mlflow=as_record(tracked[1]) if tracked[1].run_id else read_record(self.run).mlflow,
        )  # fmt: skip
        if tracked[0]:
            notes = (
                *notes,
                f"{tracked[0]} records wait for the tracking server: `orchestrator runs sync {self.run.run_id}`",
            )
        first = summary.objectives[0]
        links = sweep_links(tracked[1], self.run.run_id, first.name, largest_first=first.direction == "max")
        return SweepResult(
            self.run,
            state,
            said,
            summary,
            {**record.mlflow, **links},
            model_version(self.run, summary),
            tracked[0],
            notes,
        )

    def _tell(self, state: str, said: str, summary: Summary) -> tuple[int, TrackingState]:
        self._spend()
        return self.report.end(state, said, summary)

    def close_badly(self, error: BaseException) -> None:
        """Tell the record and the tracking store that the sweep did not end well."""
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        state = "killed" if killed else "failed"
        said = f"{state}: {error.message if isinstance(error, OrchestratorError) else repr(error)}"
        if self.pool is not None and not killed:
            self.pool.close()
        if killed and self.session is not None:
            self.session.kill()
        if self.loop is not None:
            self.loop.close_open("the sweep was interrupted")
        else:  # trials of a driver that was killed are not left open because this one could not start
            settle(self.run, self.ledger, "the sweep was interrupted")
        update_record(self.run, state=state, verdict=said, ended=now_iso())
        self._tell(state, said, self._summary())

    def _leave_cluster(self) -> None:
        if self.pool is not None:
            self.pool.close()
            self.pool = None
        if self.session is not None:
            self.session.close()
            self.session = None

    def shut(self) -> None:
        """Leave nothing running."""
        self._leave_cluster()
        if self.report.tracking is not None:
            self.report.tracking.shut()
