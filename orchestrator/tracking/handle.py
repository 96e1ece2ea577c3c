"""What the driver holds of the sender: start it, wait for the run's link, finish it, replay later. No mlflow."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass

from orchestrator.environment import tracking_environment
from orchestrator.errors import TrackingError
from orchestrator.runs.paths import RunDir
from orchestrator.tracking.busy import progress_mark
from orchestrator.tracking.cursor import count_remaining, is_closed, load_cursor, remaining_of, tracked_below
from orchestrator.tracking.request import TrackingRequest, TrackingState, read_request, read_state

POLL_S = 0.05
HELD_S = 45.0
"""How long `sync` waits for another sender of the run: one whose driver is gone leaves sooner (`sender.ORPHAN_S`)."""


@dataclass(frozen=True)
class SyncCounts:
    """What `sync` did, trials included: records shipped now, still waiting, refused by MLflow (ever); and the state.

    `unsent` says of what could not be sent why, a line each; a final status that could not be set is no record.
    """

    shipped: int
    remaining: int
    rejected: int
    state: TrackingState
    unsent: tuple[str, ...] = ()


class SenderHandle:
    """A running sender process, in a session of its own so that Ctrl-C in the terminal does not reach it."""

    def __init__(self, run: RunDir, request: TrackingRequest, launch: str, process: subprocess.Popen[bytes]) -> None:
        self.run = run
        self.request = request
        self.process = process
        self._launch = launch

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def state(self) -> TrackingState:
        """Return what this start of the sender announced so far; does not wait."""
        state = read_state(self.run)
        return state if state.launch == self._launch else TrackingState("starting", uri=self.request.uri)

    def wait_ready(self, timeout_s: float = 60.0) -> TrackingState:
        """Wait until the MLflow run exists and return its ids and link; no wait on resume or when offline is allowed.

        Raises TrackingError when a first start cannot reach its store.
        """
        if self.request.resume or self.request.offline:
            return self.state()
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            alive, state = self.is_alive, self.state()
            if state.state == "failed":
                raise TrackingError(state.error, hint=state.hint)
            if state.run_id and state.state != "starting":
                return state
            if not alive:
                raise TrackingError(
                    f"the tracking sender ended with code {self.process.returncode}: {_tail(self.run)}",
                    hint=f"see {self.run.logs / 'sender.log'}",
                )
            time.sleep(POLL_S)
        raise TrackingError(
            f"MLflow at {_shown(self.request)} is not ready after {timeout_s:.0f} s",
            hint="start the server, or mend `track.uri`, or set `track.offline: true`",
        )

    def finish(self, timeout_s: float = 10.0) -> int:
        """Wait until all is shipped and the final status is set; return how many records remain (0: all done).

        Write the `status` record and close the writers first. Waits as long as the sender gets on, and `timeout_s`
        beyond its last progress; then it is asked to leave and what remains can be shipped by `sync`.
        """
        mark, end = progress_mark(self.run), time.monotonic() + timeout_s
        while self.is_alive and time.monotonic() < end:
            time.sleep(POLL_S)
            now = progress_mark(self.run)
            if now != mark:
                mark, end = now, time.monotonic() + timeout_s
        self.stop()
        return count_remaining(self.run)

    def stop(self, grace_s: float = 3.0) -> None:
        """End the process: asked first, then killed. What it had not shipped stays in the spool."""
        if self.is_alive:
            self.process.terminate()
            try:
                self.process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


def start_sender(run: RunDir, request: TrackingRequest, *, once: bool = False) -> SenderHandle:
    """Start the sender of a run whose request is written (`request.write_request`); returns at once."""
    launch = uuid.uuid4().hex
    run.logs.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "orchestrator.tracking.sender", str(run.path), "--launch", launch]
    command += ["--parent", str(os.getpid())]
    with open(run.logs / "sender.out", "ab") as out:
        process = subprocess.Popen(
            command + (["--once"] if once else []),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=tracking_environment(),
            cwd=run.path,
        )
    return SenderHandle(run, request, launch, process)


def sync(run: RunDir, timeout_s: float = 600.0, held_s: float = HELD_S) -> SyncCounts:
    """Ship everything a run has left and set the status of a run whose driver is gone. Doing it again changes nothing.

    Nothing is shipped while another process is at it for longer than `held_s` (a living driver's sender): `unsent` says
    so. Raises TrackingError when the run was never tracked.
    """
    request = read_request(run)
    if request is None:
        raise TrackingError(f"the run {run.run_id} has no tracking request", hint="it was never tracked")
    before, rejected = _totals(run)
    if is_closed(run) and not count_remaining(run):
        return SyncCounts(0, 0, rejected, read_state(run))
    if not _is_free(run, held_s):
        why = "another process is sending this run's records: wait for it, or for the run's end, and do this again"
        return SyncCounts(0, count_remaining(run), rejected, read_state(run), (why,))
    handle = start_sender(run, request, once=True)
    unsent: tuple[str, ...] = ()
    try:
        if handle.process.wait(timeout_s) != 0:
            unsent = (_why_it_failed(run),)
    except subprocess.TimeoutExpired:
        handle.stop()
        unsent = (f"it was ended after {timeout_s:.0f} s: do this again and it goes on",)
    shipped, rejected = _totals(run)
    state = read_state(run)
    return SyncCounts(shipped - before, count_remaining(run), rejected, state, unsent + _unsent_below(run))


def _is_free(run: RunDir, held_s: float) -> bool:
    """Wait up to `held_s` until no sender is at work on the run; say whether none is."""
    run.spool.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + held_s
    with open(run.spool / "sender.lock", "a", encoding="utf-8") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= end:
                    return False
            time.sleep(POLL_S)


def _why_it_failed(run: RunDir) -> str:
    """Return why a sender that was to ship what is there gave up."""
    state = read_state(run)
    if not state.error:
        return f"the sender failed, see {run.logs / 'sender.log'}: {_tail(run)}"
    return f"{state.error}; {state.hint}" if state.hint else state.error


def _totals(run: RunDir) -> tuple[int, int]:
    """Return how many records were shipped and how many refused so far, those of trials and stages included."""
    cursors = [load_cursor(each) for each in (run, *tracked_below(run))]
    return sum(cursor.shipped for cursor in cursors), sum(cursor.rejected for cursor in cursors)


def _unsent_below(run: RunDir) -> tuple[str, ...]:
    """Return why trials and stages are not told whole, where the sender said so."""
    lines = []
    for each in tracked_below(run):
        state, left = read_state(each), remaining_of(each)
        if state.error and (left or not load_cursor(each).closed):
            name = str(each.path.relative_to(run.path)).removeprefix("trials/")
            lines.append(f"{name}: {state.error} ({left} records and its status wait); {state.hint}")
    return tuple(lines)


def _tail(run: RunDir) -> str:
    for name in ("sender.log", "sender.out"):
        path = run.logs / name
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() if path.exists() else []
        if lines:
            return lines[-1]
    return "no output"


def _shown(request: TrackingRequest) -> str:
    from orchestrator.log import redact

    return redact(request.uri)
