"""`SweepTracking`: what a sweep itself tells MLflow, as the parent run of its trials; through the spool."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from orchestrator.cluster import facts
from orchestrator.log import redact_value
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record, write_private
from orchestrator.runs.spool import SpoolWriter
from orchestrator.spec.job import JobSpec
from orchestrator.spec.resolve import masked_text, resolved_text
from orchestrator.sweep.point import short_value
from orchestrator.sweep.space import Param, Space
from orchestrator.tracking.handle import start_sender
from orchestrator.tracking.request import TrackingState, write_request

_STATUS = {"finished": "FINISHED", "stopped": "KILLED", "killed": "KILLED", "failed": "FAILED"}


class SweepTracking:
    """The tracking of one sweep on its driver. Starts the sender that also ships the trials."""

    def __init__(self, run: RunDir, job: JobSpec, *, resume: bool) -> None:
        """Start the sender; returns at once."""
        track = job.track
        request = write_request(
            run,
            uri=track.uri,
            experiment=track.experiment,
            run_name=run.run_id,
            offline=track.offline,
            resume=resume,
            description=track.description,
            mlflow_run_id=read_record(run).mlflow.get("run_id", ""),
        )
        self._job, self._run = job, run
        self._spool = SpoolWriter(run.spool / "driver.jsonl")
        self._sender = start_sender(run, request)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._ready: Future[TrackingState] = self._pool.submit(self._sender.wait_ready)
        self._ended: tuple[int, TrackingState] | None = None

    def wait_ready(self) -> TrackingState:
        """Wait until the store is known to work. Raises TrackingError when a first start cannot reach it."""
        return self._ready.result()

    def describe(self, space: Space, command: str) -> None:
        """Record what is searched, how, and with which code."""
        write_private(self._run.resolved_yaml, resolved_text(self._job))
        self._spool.record("params", values=sweep_params(self._job, space))
        tags = facts.common_tags(self._job, self._run.run_id, command) | {"orchestrator.kind": "sweep"}
        self._spool.record("tags", values=tags)
        self._spool.record("text", text=masked_text(self._job), artifact_file="config/resolved.yaml")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of the sweep, at the number of trials that have ended."""
        self._spool.metrics(step, values)

    def keep(self, path: Path, place: str) -> None:
        """Hand a file or folder to the store."""
        self._spool.record("artifact", path=str(path), artifact_path=place)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags of the sweep."""
        self._spool.record("tags", values=dict(values))

    def end(self, state: str, note: str) -> tuple[int, TrackingState]:
        """Record note and final status, wait until all is shipped; return how many records remain, and the state."""
        if self._ended is None:
            self._spool.record("note", text=note)
            self._spool.record("status", status=_STATUS[state])
            self._spool.close()
            self._ended = self._sender.finish(timeout_s=20.0), self._sender.state()
        return self._ended

    def shut(self, grace_s: float = 3.0) -> None:
        """Leave nothing running; calling it again does nothing."""
        self._sender.stop(grace_s)
        self._spool.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def sweep_params(job: JobSpec, space: Space) -> dict[str, str]:
    """Return the sweep as flat text parameters: the space by path, and how it is searched."""
    sweep = job.sweep
    if sweep is None:
        return {}
    found: dict[str, Any] = {f"space.{param.path}": _words(param) for param in space.params}
    for param in space.params:
        if param.when is not None:
            found[f"space.{param.path}"] += f", when {param.when.text}"
    found |= {f"objective.{name}": way for name, way in sweep.objectives.items()}
    found |= {"search": sweep.search.use, "scheduler": sweep.scheduler.use, "seed": sweep.seed}
    found |= {f"search.{key}": value for key, value in sweep.search.options.items()}
    found |= {f"scheduler.{key}": value for key, value in sweep.scheduler.options.items()}
    for key in ("trials", "time_s", "worker_s", "repeats"):
        if getattr(sweep, key) is not None:
            found[key] = getattr(sweep, key)
    if sweep.cost is not None:
        found |= {f"cost.{key}": value for key, value in sweep.cost if value is not None}
    return {key: redact_value(key, value)[:500] for key, value in found.items()}


def _words(param: Param) -> str:
    """Return a parameter's choices or its range."""
    return ", ".join(map(short_value, param.values)) if param.values is not None else param.describe()
