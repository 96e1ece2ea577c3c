"""`run_job`: the whole life of a run on the driver, from an empty folder to the true final status."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.cluster import ending
from orchestrator.cluster.attempt import Attempt, Order
from orchestrator.cluster.attempts import Executor
from orchestrator.cluster.events import Event
from orchestrator.cluster.fit import RayAttempt
from orchestrator.cluster.interrupt import Interrupts
from orchestrator.cluster.local import LocalAttempt
from orchestrator.cluster.progress import SpoolTail
from orchestrator.cluster.result import RunResult
from orchestrator.cluster.seats import SeatPlan
from orchestrator.cluster.session import RaySession
from orchestrator.cluster.tracked import Tracked, as_record
from orchestrator.errors import JobFileError, OrchestratorError, Problem
from orchestrator.plan.build import resolved_job
from orchestrator.plan.plan import Plan
from orchestrator.runs import control
from orchestrator.runs.catalog import create_run, find_run
from orchestrator.runs.heartbeat import kill_rank, read_heartbeats
from orchestrator.runs.lease import acquire
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import now_iso, process_started, update_record, write_json
from orchestrator.spec.digest import differing_keys
from orchestrator.spec.job import JobSpec
from orchestrator.tracking.request import TrackingState


def run_job(
    spec: JobSpec,
    plan: Plan,
    *,
    resume: str | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    command: str = "",
) -> RunResult:
    """Train the job and return how it ended; `resume` is a run id or "latest".

    Raises TrackingError when a first start cannot reach its store, TrainError or ClusterError when training failed for
    good, KeyboardInterrupt at a second Ctrl-C. Whatever happens: the record and the tracking store are told, and no
    process is left.
    """
    storage = Path(spec.cluster.storage).resolve()
    run = find_run(storage, resume, name=spec.name, kind="run") if resume else create_run(storage, spec.name, command)
    if resume:
        _require_same_job(run, spec)
    with ExitStack() as stack:
        lease = acquire(run)
        driver = _Driver(run, resolved_job(spec, plan), plan, resume is not None, on_event, command)
        stack.enter_context(Interrupts(run, on_event))
        try:
            driver.open()
            executor = Executor(
                run, lease, driver.launch, driver.tick, on_event, spec.cluster.max_failures, spec.train.seed
            )
            stack.callback(lambda: executor.lease.release())
            executor.execute(resume=resume is not None)
            return driver.close_well()
        except BaseException as error:
            driver.close_badly(error)
            raise
        finally:
            driver.shut()


def _require_same_job(run: RunDir, spec: JobSpec) -> None:
    """Refuse to resume a run with another job, before anything of the run is touched. Raises JobFileError."""
    try:
        before = JobSpec.model_validate_json(run.job.read_bytes())
    except OSError:
        return  # it never got as far as writing its job: there is nothing to contradict
    problems = [
        Problem(key, f"was {was!r} when the run began, is {now!r} now", f"set {key} back, or start a new run", "resume")
        for key, was, now in differing_keys(before, spec)
    ]
    if problems:
        raise JobFileError(
            f"{run.run_id} cannot be resumed with another job: its result would be neither's; nothing was changed",
            hint="resume with the job it began with (config/resolved.yaml in MLflow), or leave --resume out",
            problems=problems,
        )


@dataclass
class _Driver:
    """The pieces of one driver and their order."""

    run: RunDir
    spec: JobSpec
    plan: Plan
    resume: bool
    on_event: Callable[[Event], None]
    command: str
    session: RaySession | None = None
    tracked: Tracked | None = None
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.tail = SpoolTail(self.run, self.on_event)
        self.seats = SeatPlan(self.run, self.plan, self.on_event, self._keep_map)
        self._tracking_ready = False

    def open(self) -> None:
        """Write what workers read, then start cluster and tracking side by side."""
        self._claim()
        if self.plan.uses_ray:
            from orchestrator.plan.available import Available

            cores = max(1, int(Available.local().num_cpus))
            self.session = RaySession(self.spec.cluster.address, num_cpus=cores, log_file=self.run.logs / "ray.log")
            self.session.start()
        self.tail.skip()
        self.tracked = Tracked(self.run, self.spec, self.plan, self.command, resume=self.resume)
        self.tracked.describe()

    def _claim(self) -> None:
        pid = os.getpid()
        for beat in read_heartbeats(self.run):  # of a driver that was killed
            kill_rank(beat)
        if self.resume:
            self.run.result.unlink(missing_ok=True)
        control.clear_stop(self.run)
        control.forbid_start(self.run)
        update_record(
            self.run,
            state="starting",
            verdict="",
            ended="",
            pid=pid,
            pid_started=process_started(pid),
            host=socket.gethostname(),
        )
        write_json(self.run.job, self.spec.model_dump(mode="json"))
        data = {"run_id": self.run.run_id, "path": str(self.run.path), "resumed": self.resume}
        self.on_event(Event("created", self.run.run_id, data))

    def launch(self, order: Order) -> Attempt:
        """Make the attempt that fits the plan."""
        self.seats.begin(order.attempt)
        if self.session is None:
            return LocalAttempt(order)
        return RayAttempt(order, self.session, self.plan.resources, self.spec.cluster, self.plan.layout)

    def tick(self) -> None:
        """Look after progress and tracking; the first step may come once tracking is ready and the rank map is told.

        Raises TrackingError when a first start cannot reach its store.
        """
        self.seats.poll()
        self.tail.poll()
        state = self.tracked.became_ready() if self.tracked is not None else None
        if state is not None:
            if state.run_id:
                update_record(self.run, mlflow=as_record(state))
            self.on_event(Event("tracking", state.url or state.uri, {"state": state.state, **as_record(state)}))
            self._tracking_ready = True
        if self._tracking_ready and self.seats.told:
            self._tracking_ready = False
            control.allow_start(self.run)

    def _keep_map(self, folder: Path) -> None:
        if self.tracked is not None:
            self.tracked.keep_map(folder)

    def close_well(self) -> RunResult:
        """Finish: export, evaluate and compress unless stopped, then tell the record and the tracking store."""
        self.tail.poll()
        fitted = ending.read_json(self.run.result)
        stopped = not fitted or fitted["status"] == "stopped"
        finish = {} if stopped else ending.finish_stage(self.run, self.on_event, self._leave_cluster)
        compressed = ending.compress_stage(self.run, self.spec, self.on_event) if finish.get("status") == "ok" else {}
        end = ending.judge(self.spec, self.plan, fitted, finish, compressed, stopped=stopped)
        unsent, state = self._tell_tracking(end.state, end.verdict, end.metrics)
        return ending.close_record(self.run, end, state, unsent=unsent, seconds=time.monotonic() - self.began)

    def close_badly(self, error: BaseException) -> None:
        """Tell the record and the tracking store that the run did not end well."""
        state = "killed" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
        message = error.message if isinstance(error, OrchestratorError) else repr(error)
        update_record(self.run, state=state, verdict=f"{state}: {message}", ended=now_iso())
        if state == "killed":
            if self.session is not None:
                self.session.kill()
            if self.tracked is not None:
                self.tracked.shut(grace_s=1.0)
            return
        self._tell_tracking(state, f"{state}: {message}", self.tail.latest)

    def _tell_tracking(self, state: str, verdict: str, metrics: dict[str, float]) -> tuple[int, TrackingState]:
        if self.tracked is None:
            return 0, TrackingState("starting")
        return self.tracked.end(state, verdict, metrics)

    def _leave_cluster(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

    def shut(self) -> None:
        """Leave nothing running."""
        self._leave_cluster()
        if self.tracked is not None:
            self.tracked.shut()
