"""The executor: starts attempts, watches heartbeats, tells what happened, and carries out what `recovery` decides."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.cluster.attempt import Attempt, Ended, Order
from orchestrator.cluster.events import Event
from orchestrator.cluster.failure import Failure, hung_stacks, read_failures, root_cause, write_failure
from orchestrator.cluster.recovery import Failed, GiveUp, decide
from orchestrator.errors import ClusterError, OrchestratorError, TrainError
from orchestrator.runs.control import stop_requested
from orchestrator.runs.heartbeat import Heartbeat, Watchdog, clear_heartbeats, kill_rank, read_heartbeats, stacks_path
from orchestrator.runs.lease import Lease
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record, update_record

_POLL_S = 0.1
_RENEW_S = 15.0
_DUMP_S = 0.3


@dataclass
class Executor:
    """Everything the attempts of one run share. `launch` makes an attempt, `tick` is called ten times a second."""

    run: RunDir
    lease: Lease
    launch: Callable[[Order], Attempt]
    tick: Callable[[], None]
    on_event: Callable[[Event], None]
    max_failures: int
    seed: int = 0

    def execute(self, *, resume: bool) -> None:
        """Run attempts until one ends well or a stop was asked for. Raises what fits the root cause."""
        history: list[Failed] = []
        commits = Commits(self.run)
        attempt = read_record(self.run).attempt
        while True:
            attempt += 1
            if history or resume:
                self.lease = self.lease.advance()
            order = Order(self.run, attempt, self.lease.token, resume or bool(history))
            update_record(self.run, attempt=attempt, state="running")
            failure = self._one(order)
            if failure is None or stop_requested(self.run):
                return
            write_failure(self.run, attempt, replace(failure, rank=-1))
            history.append(Failed(failure, commits.count()))
            decision = decide(history, max_failures=self.max_failures, seed=self.seed)
            self.on_event(Event("failure", failure.describe(), {"attempt": attempt, "kind": failure.kind}))
            if isinstance(decision, GiveUp):
                raise _final_error(self.run, failure, decision.reason)
            self.on_event(Event("retry", f"trying again in {decision.after_s:.0f} s", {"after_s": decision.after_s}))
            if self._sleep(decision.after_s):
                return

    def _one(self, order: Order) -> Failure | None:
        """Run one attempt to its end; return its root cause, None when it ended well."""
        self._kill_leftovers()
        clear_heartbeats(self.run)
        attempt, watchdog = self.launch(order), Watchdog()
        hang: Failure | None = None
        renewed = time.monotonic()
        self.on_event(Event("attempt", f"attempt {order.attempt}", {"attempt": order.attempt, "resume": order.resume}))
        attempt.start()
        try:
            while (ended := attempt.poll()) is None:
                self.tick()
                beats = read_heartbeats(self.run)
                if hang is None and (late := watchdog.hung(beats)):
                    hang = self._end_hung(order, attempt, late)
                if not beats and stop_requested(self.run):
                    attempt.kill()  # no rank has begun: there is nothing to finish or to save
                    return None
                if time.monotonic() - renewed > _RENEW_S:
                    self.lease.renew()
                    renewed = time.monotonic()
                time.sleep(_POLL_S)
        except BaseException:
            attempt.kill()
            raise
        self.tick()
        return self._judge(order, ended, hang)

    def _judge(self, order: Order, ended: Ended, hang: Failure | None) -> Failure | None:
        if ended.failure is None:
            return None
        self._kill_leftovers()
        stacks = hung_stacks(self.run, order.attempt)
        if hang is None and stacks:
            hang = _hang(read_heartbeats(self.run), ", ".join(str(path) for path in stacks))
        found = read_failures(self.run, order.attempt)
        return root_cause([] if hang else found, hang or self._with_step(ended.failure))

    def _with_step(self, failure: Failure) -> Failure:
        return replace(failure, step=max([failure.step, *(beat.step for beat in read_heartbeats(self.run))]))

    def _end_hung(self, order: Order, attempt: Attempt, late: list[Heartbeat]) -> Failure:
        """Have the hung ranks on this host write their stacks, then kill the whole attempt at once."""
        for beat in late:
            if beat.host == socket.gethostname():
                with suppress(ProcessLookupError):
                    os.kill(beat.pid, signal.SIGUSR1)
        time.sleep(_DUMP_S)
        failure = _hang(late, str(stacks_path(self.run, order.attempt, late[0].rank)))
        self.on_event(Event("hang", failure.describe(), {"ranks": [beat.rank for beat in late]}))
        attempt.kill()
        return failure

    def _kill_leftovers(self) -> None:
        for beat in read_heartbeats(self.run):
            kill_rank(beat)

    def _sleep(self, seconds: float) -> bool:
        """Wait; True when a stop was asked for meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if stop_requested(self.run):
                return True
            self.tick()
            time.sleep(_POLL_S)
        return False


class Commits:
    """Counts the checkpoints committed since it was made, by the names of their folders, which are never used twice.

    Steps would not do: after a damaged newest checkpoint was passed over, progress is made at lower steps again.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._before = self._committed()
        self._seen: set[str] = set()

    def count(self) -> int:
        """Return the number so far. Contents are not verified here."""
        self._seen |= self._committed() - self._before
        return len(self._seen)

    def _committed(self) -> set[str]:
        from orchestrator.checkpoint.disk import MANIFEST
        from orchestrator.checkpoint.manifest import parse_folder_name

        folder = self._run.checkpoints
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return {name for name in names if parse_folder_name(name) and (folder / name / MANIFEST).is_file()}


def _hang(late: list[Heartbeat], stacks: str) -> Failure:
    ranks = ", ".join(str(beat.rank) for beat in late)
    first = late[0] if late else None
    where = f" in section {first.section} for {first.limit_s:.0f} s" if first else ""
    return Failure(
        kind="hang",
        type="Hang",
        message=f"no progress on rank{'s' if len(late) > 1 else ''} {ranks}{where}",
        hint=f"where every thread stood: {stacks}",
        step=first.step if first else -1,
        at_s=time.time(),
    )


def _final_error(run: RunDir, failure: Failure, reason: str) -> OrchestratorError:
    log = run.logs / f"rank-{max(0, failure.rank)}.log"
    kind = ClusterError if failure.kind in ("infra", "placement", "hang", "preemption") else TrainError
    error = kind(failure.describe(), hint="\n  ".join(filter(None, [failure.hint, f"{reason}; full log: {log}"])))
    error.exit_code = failure.exit_code
    return error
