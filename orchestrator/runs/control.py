"""How one process asks a run to finish its step, save and leave: a file in the run's folder, polled by rank 0.

The same folder carries the permission to begin: ranks of a first start wait until tracking is known to work.
"""

from __future__ import annotations

import json
import os
import time

from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import now_iso, write_json


def request_stop(run: RunDir, reason: str) -> None:
    """Ask the run to finish its step, save and leave. Asking twice changes nothing."""
    if not run.stop_request.exists():
        write_json(run.stop_request, {"reason": reason, "pid": os.getpid(), "at": now_iso()})


def stop_requested(run: RunDir) -> bool:
    """Say whether somebody asked the run to stop."""
    return os.access(run.stop_request, os.F_OK)


def stop_reason(run: RunDir) -> str:
    """Return why the run was asked to stop, "" when it was not."""
    try:
        return str(json.loads(run.stop_request.read_text(encoding="utf-8")).get("reason", ""))
    except (OSError, ValueError):
        return ""


def clear_stop(run: RunDir) -> None:
    """Forget a request to stop (a run that is resumed starts without one)."""
    run.stop_request.unlink(missing_ok=True)


class StopPoller:
    """`should_stop` for the training loop: looks at the file system at most every `every_s` seconds."""

    def __init__(self, run: RunDir, every_s: float = 0.1) -> None:
        self._run = run
        self._every_s = every_s
        self._next = 0.0

    def __call__(self) -> bool:
        """Say whether the run was asked to stop."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._every_s
        return stop_requested(self._run)


def allow_start(run: RunDir) -> None:
    """Let the ranks begin with their first step."""
    run.go.touch()


def forbid_start(run: RunDir) -> None:
    """Make ranks that are started from now on wait for `allow_start`."""
    run.go.unlink(missing_ok=True)


def wait_until_allowed(run: RunDir, timeout_s: float) -> bool:
    """Wait until the driver lets the ranks begin; False when it did not within `timeout_s` or a stop was asked for."""
    deadline = time.monotonic() + timeout_s
    while not os.access(run.go, os.F_OK):
        if time.monotonic() > deadline or stop_requested(run):
            return False
        time.sleep(0.02)
    return True
