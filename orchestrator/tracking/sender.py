"""The sender: the one process of a run that talks to MLflow. Started by `tracking.handle`; ships the spool to its end.

`python -m orchestrator.tracking.sender RUN_DIR [--once] [--launch ID] [--parent PID]`. Killed at any moment and started
again, it loses and doubles nothing. Environment comes from `environment.tracking_environment`.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType

from orchestrator.errors import TrackingError
from orchestrator.log import get_logger, redact, setup_file_logging
from orchestrator.runs.paths import RunDir
from orchestrator.tracking import store
from orchestrator.tracking.busy import busy, busy_path
from orchestrator.tracking.children import Children
from orchestrator.tracking.ending import ending_of_dead_run
from orchestrator.tracking.figures import draw_run
from orchestrator.tracking.pump import Pump, send_request
from orchestrator.tracking.request import TrackingRequest, read_request, read_state, url_of, write_state
from orchestrator.tracking.ship import RunGoneError, Shipper
from orchestrator.tracking.sweep_figures import draw_sweep

ROUND_S = 2.0
POLL_S = 0.1
BACKLOG = 500
FIRST_TRIES_S = 3.0
IDLE_S = 5.0
ORPHAN_S = 30.0
ONCE_S = 20.0
LAST_FLUSH_S = 8.0
MAX_BACKOFF_S = 5.0
_log = get_logger("tracking")


class Sender:
    """State of one sender process: connect, ship, end."""

    def __init__(self, run: RunDir, request: TrackingRequest, *, once: bool, launch: str, parent: int = 0) -> None:
        self.run = run
        self.request = request
        self.once = once
        self.launch = launch
        self.stop = threading.Event()
        # Told, not looked up: a driver that died while this process was starting or waiting for its place is no parent.
        self._parent = parent or os.getppid()
        self._quiet_since = time.monotonic()
        self._failing_since: float | None = None
        self._pump: Pump | None = None
        self._children: Children | None = None
        self._tried_to_open = False
        self._drawn = False

    def work(self) -> int:
        """Run to the end; return the exit code (1: a first start could not reach its store, or records remain)."""
        state = write_state(
            self.run, read_state(self.run), state="starting", launch=self.launch, uri=redact(self.request.uri)
        )
        first = not (self.request.offline or self.request.resume or self.once or state.run_id)
        backoff_s = 0.5
        while True:
            try:
                if self._pump is None:
                    self._pump = self._connect()
                moved = self._round(self._pump)
                if self._is_over(self._pump, moved):
                    return 0
                self._failing_since, backoff_s = None, 0.5
            except Exception as error:
                # mlflow's edge: a dead, slow or wrong server raises dozens of kinds; all of them mean "later".
                self._note_failure(error, first=first and self._pump is None)
                if first and self._pump is None and self._give_up_first(error):
                    return self._fail(error)
                if self._must_leave(reachable=False) or (self.once and _is_deletion(error)):
                    if self.once:
                        self._announce_offline(error)
                    return 1
                self.stop.wait(backoff_s)
                backoff_s = min(MAX_BACKOFF_S, backoff_s * 2)

    def _connect(self) -> Pump:
        store.check_answers(self.request.uri)
        tried, self._tried_to_open = self._tried_to_open, True
        with busy(self.run, counts=not tried):  # importing mlflow takes seconds, on a busy machine many
            client = store.open_client(self.request.uri, self.run.storage)
        experiment_id = store.ensure_experiment(client, self.request, self.run.storage)
        known = self.request.mlflow_run_id or read_state(self.run).run_id
        run_id = store.ensure_run(client, self.request, experiment_id, known, reopen=not self.once)
        state = replace(read_state(self.run), experiment_id=experiment_id, run_id=run_id)
        write_state(self.run, state, state="ready", url=url_of(state), error="", hint="")
        pump = Pump(self.run, Shipper(client, self.run, self.request, experiment_id, run_id), self.request.after_bytes)
        if not self.once:
            pump.note_closed(False)  # `ensure_run` has reopened it
        send_request(pump, self.request)
        self._children = Children(client, self.run, experiment_id, run_id, once=self.once)
        return pump

    def _round(self, pump: Pump) -> int:
        """Ship a portion of the run and of its trials: those of a sweep are its children, and end before it does."""
        moved = pump.round()
        ships = self._children.round() if self._children is not None else 0
        if ships:
            busy_path(self.run).touch()
        return moved + ships

    def _is_over(self, pump: Pump, moved: int) -> bool:
        """Decide what follows a round that worked, and do it; True: leave."""
        if not self.once and read_request(self.run) != self.request:
            # A resumed run's own sender waits for our place; the last word it will send is not ours to say.
            _log.info("a newer start of this run has its own sender")
            return True
        if moved:
            self._quiet_since = time.monotonic()
            if moved < BACKLOG and pump.final is None and not (self.once or self.stop.is_set()):
                self._rest()
            return False
        if pump.final is not None:
            self._draw(pump)
            pump.finish()
            _log.info("all is shipped (%d records, %d set aside)", pump.cursor.shipped, pump.cursor.rejected)
            return True
        if self.once:
            self._end_dead_run(pump)
            return True
        if self.stop.is_set() or self._must_leave(reachable=True):
            return True
        self._rest()
        return False

    def _draw(self, pump: Pump) -> None:
        """Draw the figures and send them, once, when all points are there."""
        if self._drawn:
            return
        with busy(self.run, counts=not pump.is_failing):
            try:
                folder = draw_sweep(self.run) if self.run.sweep.is_dir() else draw_run(self.run)
            except Exception as error:
                # A picture of odd data may fail in any way inside matplotlib; it must not cost the final status.
                _log.error("the figures cannot be drawn: %s", error)
                folder = None
            if folder is not None:
                pump.send_own({"kind": "artifact", "path": str(folder), "artifact_path": "figures"})
        self._drawn = True

    def _rest(self) -> None:
        """Let points gather, so that one request carries many; a word from the driver ends the rest early."""
        driver = self.run.spool / "driver.jsonl"
        size = driver.stat().st_size if driver.exists() else 0
        end = time.monotonic() + ROUND_S
        while time.monotonic() < end and not self.stop.wait(POLL_S):
            if driver.exists() and driver.stat().st_size != size:
                return

    def _end_dead_run(self, pump: Pump) -> None:
        ending = ending_of_dead_run(self.run)
        if ending is None:
            return
        if pump.shipper.status() == "RUNNING":
            pump.shipper.finish(*ending)
            _log.info("the run's driver is gone; its status is now %s", ending[0])
        pump.note_closed(True)

    def _note_failure(self, error: Exception, *, first: bool) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            _log.warning("%s cannot be reached: %s", redact(self.request.uri), redact(str(error)))
        if self._pump is not None:
            self._pump.is_failing = True
        if not first and self._pump is None:
            self._announce_offline(error)

    def _announce_offline(self, error: Exception) -> None:
        state, text = read_state(self.run), _first_line(error)
        hint = error.hint if isinstance(error, TrackingError) else ""
        if (state.state, state.error) != ("offline", text):
            write_state(self.run, state, state="offline", error=text, hint=hint)

    def _give_up_first(self, error: Exception) -> bool:
        hopeless = isinstance(error, TrackingError) or store.is_rejection(error)
        return hopeless or self.stop.is_set() or time.monotonic() - (self._failing_since or 0.0) > FIRST_TRIES_S

    def _fail(self, error: Exception) -> int:
        uri = redact(self.request.uri)
        text = _first_line(error)
        hint = "start the server, or mend `track.uri`, or set `track.offline: true` to train now and ship later"
        if isinstance(error, TrackingError):
            message, hint = redact(error.message), error.hint or hint
        else:
            message = f"no MLflow server answers at {uri} (tried for {FIRST_TRIES_S:.0f} s): {text}"
        write_state(self.run, read_state(self.run), state="failed", error=message, hint=hint)
        _log.error("%s", message)
        return 1

    def _must_leave(self, *, reachable: bool) -> bool:
        now = time.monotonic()
        if self.stop.is_set():
            return True
        failing_s = now - self._failing_since if self._failing_since is not None else 0.0
        if self.once:
            return not reachable and failing_s > ONCE_S
        if os.getppid() == self._parent:
            return False
        return now - self._quiet_since > IDLE_S if reachable else failing_s > ORPHAN_S


def _first_line(error: Exception) -> str:
    text = redact(str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _is_deletion(error: Exception) -> bool:
    """Say whether the run itself was deleted in MLflow: somebody must restore it, and `sync` says so at once."""
    return isinstance(error, store.DeletedRunError | RunGoneError)


def main(arguments: list[str] | None = None) -> int:
    """Entry of the process."""
    parser = argparse.ArgumentParser(prog="orchestrator.tracking.sender")
    parser.add_argument("run", type=Path)
    parser.add_argument("--once", action="store_true", help="ship what is there, then leave")
    parser.add_argument("--launch", default="", help="name of this start, repeated in the state file")
    parser.add_argument("--parent", type=int, default=0, help="the process whose end is waited for (0: who started it)")
    options = parser.parse_args(arguments)
    run = RunDir(options.run.resolve())
    setup_file_logging(run.logs / "sender.log")
    request = read_request(run)
    if request is None:
        _log.error("%s has no tracking.json", run.path)
        return 1
    run.spool.mkdir(parents=True, exist_ok=True)
    with open(run.spool / "sender.lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sender = Sender(run, request, once=options.once, launch=options.launch, parent=options.parent)
        _obey_sigterm(sender)
        try:
            return sender.work()
        except Exception:  # the last resort of a process nobody watches: the reason must reach the log, redacted
            _log.exception("the sender ends")
            return 1


def _obey_sigterm(sender: Sender) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        sender.stop.set()
        # A call that hangs must not outlive this; leaving at any moment is safe, the cursor is durable.
        timer = threading.Timer(LAST_FLUSH_S, os._exit, (1,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, handle)


if __name__ == "__main__":
    sys.exit(main())
