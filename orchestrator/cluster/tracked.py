"""`Tracked`: what the driver itself tells the tracking store, through the spool, and the sender it starts for that."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from orchestrator.cluster import facts
from orchestrator.plan.plan import Plan
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record, write_private
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.tracking.handle import start_sender
from orchestrator.tracking.note import build_note
from orchestrator.tracking.request import TrackingRequest, TrackingState, write_request

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "killed": "KILLED", "failed": "FAILED"}


class Tracked:
    """The tracking of one run on its driver, from before the first step to the final status."""

    def __init__(self, run: RunDir, spec: JobSpec, plan: Plan, command: str, *, resume: bool) -> None:
        """Start the sender; returns at once."""
        self._run, self._spec, self._plan, self._command = run, spec, plan, command
        request = _request(run, spec, resume=resume)  # before the spool grows: it notes how long it is
        self._spool = SpoolWriter(run.spool / "driver.jsonl")
        self._sender = start_sender(run, request)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._ready: Future[TrackingState] | None = self._pool.submit(self._sender.wait_ready)
        self._ended: tuple[int, TrackingState] | None = None

    def describe(self) -> None:
        """Record what the run is."""
        from orchestrator.spec.resolve import masked_text, resolved_text

        write_private(self._run.resolved_yaml, resolved_text(self._spec))
        self._spool.record("params", values=facts.params(self._spec, self._plan))
        self._spool.record("tags", values=facts.tags(self._spec, self._plan, self._run.run_id, self._command))
        self._spool.record("text", text=masked_text(self._spec), artifact_file="config/resolved.yaml")

    def keep_map(self, folder: Path) -> None:
        """Hand the folder of the rank map to the store as `layout/`."""
        self._spool.record("artifact", path=str(folder), artifact_path="layout")

    def became_ready(self) -> TrackingState | None:
        """Return the state when training may begin, once; None before and after.

        Raises TrackingError when a first start cannot reach its store.
        """
        if self._ready is None or not self._ready.done():
            return None
        state, self._ready = self._ready.result(), None
        return state

    def end(self, state: str, verdict: str, metrics: Mapping[str, float]) -> tuple[int, TrackingState]:
        """Record note and final status and wait until the sender is done; return how many records remain, its state."""
        if self._ended is not None:
            return self._ended
        layout = self._plan.layout.describe()
        rows = [("state", state), ("layout", layout)]
        rows += [(name, f"{value:.6g}") for name, value in sorted(metrics.items())]
        note = build_note(verdict, rows, command=self._command, text=self._spec.track.description)
        self._spool.record("note", text=note)
        self._spool.record("status", status=_STATUS[state])
        self._spool.close()
        self._ended = self._sender.finish(), self._sender.state()
        return self._ended

    def shut(self, grace_s: float = 3.0) -> None:
        """Leave nothing running; what is not shipped stays in the spool. Calling it again does nothing."""
        self._sender.stop(grace_s)
        self._spool.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _request(run: RunDir, spec: JobSpec, *, resume: bool) -> TrackingRequest:
    track = spec.track
    return write_request(
        run,
        uri=track.uri,
        experiment=track.experiment,
        run_name=run.run_id,
        offline=track.offline,
        resume=resume,
        description=track.description,
        register_as=track.register_as,
        alias=track.alias,
        mlflow_run_id=read_record(run).mlflow.get("run_id", ""),
    )


def as_record(state: TrackingState) -> dict[str, str]:
    """Return where the run is in MLflow, as its record keeps it."""
    return {"uri": state.uri, "experiment_id": state.experiment_id, "run_id": state.run_id, "url": state.url}
