"""`Children`: trials of a sweep and stages of a trial, shipped by the sweep's own sender as child runs. Sender only.

Hundreds of trials share one process and one client. A trial whose final status is sent is looked at again only when its
spool grows: what is exported at the end comes after. One whose MLflow run was deleted keeps none of the others waiting.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError
from orchestrator.log import get_logger
from orchestrator.runs.paths import RunDir
from orchestrator.tracking import store
from orchestrator.tracking.cursor import Cursor, load_cursor, spool_files
from orchestrator.tracking.ending import ending_of_dead_run
from orchestrator.tracking.pump import Pump, send_request
from orchestrator.tracking.request import TrackingRequest, read_request, read_state, request_path, url_of, write_state
from orchestrator.tracking.ship import RunGoneError, Shipper

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
_log = get_logger("tracking")


class Children:
    """All trials below one sweep; or all stages below one trial."""

    def __init__(self, client: MlflowClient, parent: RunDir, experiment_id: str, parent_id: str, *, once: bool) -> None:
        self._client, self._parent = client, parent
        self._experiment_id, self._parent_id = experiment_id, parent_id
        self._once = once
        self._pumps: dict[str, Pump] = {}
        self._done_bytes: dict[str, int] = {}
        self._below: dict[str, Children] = {}
        self._asked: dict[str, int] = {}
        self._gone: dict[str, tuple[int, int]] = {}

    def round(self) -> int:
        """Ship one portion of every child, and of the children's own; return the number of records dealt with."""
        moved = 0
        for folder in (self._parent.trials, self._parent.stages):
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                if (path / "tracking.json").is_file():
                    run = RunDir(path)
                    moved += self._ship(run) + self._ship_below(run)
        return moved

    def _ship_below(self, run: RunDir) -> int:
        parent_id = read_state(run).run_id if run.stages.is_dir() else ""
        if not parent_id:
            return 0
        if run.run_id not in self._below:
            below = Children(self._client, run, self._experiment_id, parent_id, once=self._once)
            self._below[run.run_id] = below
        return self._below[run.run_id].round()

    def _ship(self, run: RunDir) -> int:
        name, size = run.run_id, _spool_bytes(run)
        if self._done_bytes.get(name) == size:
            return 0
        asked = request_path(run).stat().st_mtime_ns
        if self._gone.get(name) == (asked, size):
            return 0
        try:
            moved = self._ship_open(run, asked, size)
        except (store.DeletedRunError, RunGoneError) as error:
            self._note_gone(run, error)
            self._gone[name] = asked, size
            return 0
        self._gone.pop(name, None)
        return moved

    def _ship_open(self, run: RunDir, asked: int, size: int) -> int:
        name = run.run_id
        if self._asked.get(name) != asked:  # the winner is given the name of its model, maybe while it is shipped
            self._pumps.pop(name, None)
            self._asked[name] = asked
        pump = self._pumps.get(name) or self._open(run)
        if pump is None:
            self._done_bytes[name] = size
            return 0
        self._pumps[name] = pump
        moved = pump.round()
        if moved:
            return moved
        if pump.final is not None:
            pump.finish()
            del self._pumps[name]
            return 1
        if self._once and not pump.cursor.closed:
            self._end_dead(run, pump)
        if pump.cursor.closed:
            del self._pumps[name]
            self._done_bytes[name] = size
        return 0

    def _note_gone(self, run: RunDir, error: Exception) -> None:
        """Say once that a child has nowhere to go; it is tried again when there is more to tell, or by a new sender."""
        name = run.run_id
        self._pumps.pop(name, None)
        message = error.message if isinstance(error, OrchestratorError) else str(error)
        hint = f"`mlflow runs restore --run-id {read_state(run).run_id}`, then `orchestrator runs sync`"
        if isinstance(error, RunGoneError) and error.is_purged:
            hint = "`orchestrator runs sync` sends what is left to a new one"
        write_state(run, read_state(run), state="failed", error=message, hint=hint)
        if name not in self._gone:
            _log.warning("%s: %s, so nothing more of it is sent (the others are): %s", name, message, hint)

    def _end_dead(self, run: RunDir, pump: Pump) -> None:
        """Give a trial whose driver is gone its true status."""
        ending = ending_of_dead_run(run)
        if ending is not None:
            if pump.shipper.status() == "RUNNING":
                pump.shipper.finish(*ending)
            pump.note_closed(True)

    def _open(self, run: RunDir) -> Pump | None:
        request, cursor = read_request(run), load_cursor(run)
        if request is None:
            return None
        reopen = not self._once and (not cursor.closed or _begun_again(request, cursor))
        request = replace(request, tags={**request.tags, PARENT_TAG: self._parent_id})
        known = request.mlflow_run_id or read_state(run).run_id
        run_id = store.ensure_run(self._client, request, self._experiment_id, known, reopen=reopen)
        state = replace(read_state(run), uri=request.uri, experiment_id=self._experiment_id, run_id=run_id)
        write_state(run, state, state="ready", url=url_of(state), error="", hint="")
        pump = Pump(run, Shipper(self._client, run, request, self._experiment_id, run_id), request.after_bytes)
        if reopen:
            pump.note_closed(False)
        send_request(pump, request)
        return pump


def _begun_again(request: TrackingRequest, cursor: Cursor) -> bool:
    """Say whether the trial was resumed after its last status was sent."""
    return request.resume and cursor.offsets.get("driver", 0) <= request.after_bytes


def _spool_bytes(run: RunDir) -> int:
    return sum(path.stat().st_size for path in spool_files(run))
