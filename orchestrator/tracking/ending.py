"""How a run whose driver is gone ended: read from `run.json`, for `orchestrator runs sync`."""

from __future__ import annotations

import time
from datetime import datetime

from orchestrator.errors import OrchestratorError
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import driver_is_dead, read_record

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED", "killed": "KILLED"}


def ending_of_dead_run(run: RunDir) -> tuple[str, int] | None:
    """Return (MLflow status, end time in ms) of a run that is over; None while its driver lives, or may."""
    try:
        record = read_record(run)
    except OrchestratorError:
        return None  # no readable record: nothing is known, so nothing is said
    status = _STATUS.get(record.state)
    if status is None and driver_is_dead(record):
        status = "KILLED"
    return (status, _time_ms(run, record.ended)) if status else None


def _time_ms(run: RunDir, ended: str) -> int:
    """Return the recorded end, else the last time anything was written to the spool."""
    if ended:
        return int(datetime.fromisoformat(ended).timestamp() * 1000)
    written = [path.stat().st_mtime for path in run.spool.glob("*.jsonl")]
    return int((max(written) if written else time.time()) * 1000)
