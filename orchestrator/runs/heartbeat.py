"""Progress heartbeats: each rank says which step and section it is in, and until when the next beat must come.

`HeartbeatWriter` runs on the training thread (about 2 microseconds a beat) and arms a timer that ends the process from
outside Python's lock when no beat comes in time: that catches "all ranks stuck". The driver reads the same files
(`read_heartbeats`), dumps stacks and kills what the timer cannot reach, such as a frozen process.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO

from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import is_same_process, process_started

SECTIONS = ("start", "step", "eval", "checkpoint", "outside", "done")
_HEAD = struct.Struct("<8siid64s")  # magic, rank, pid, process start (s), host
_BEAT = struct.Struct("<qqdff")  # number of beats, step, wall time (s), limit (s), section
_MAGIC = b"orchhb1\0"
_REARM_S = 1.0


@dataclass(frozen=True)
class Limits:
    """Seconds without a beat after which a rank counts as hung, as the job sets them."""

    start_s: float = 600.0
    step_s: float = 30.0

    def of(self, section: str, median_step_s: float, last_checkpoint_s: float) -> float:
        """Return the limit of a section; a step may take ten usual ones, an evaluation ten times that."""
        step_s = max(self.step_s, 10 * median_step_s)
        if section == "start":
            return self.start_s
        if section == "checkpoint":
            return max(60.0, 5 * last_checkpoint_s)
        return {"step": step_s, "eval": 10 * step_s}.get(section, 120.0)


@dataclass(frozen=True)
class Heartbeat:
    """The newest sign of life of one rank; `count` grows with every beat, `limit_s` is what the next one may take."""

    rank: int
    pid: int
    pid_started: float
    host: str
    count: int
    step: int
    section: str
    time_s: float
    limit_s: float


class HeartbeatWriter:
    """Writes one rank's heartbeats and ends the process, stacks dumped to `stacks_path`, when they stop."""

    def __init__(
        self, run: RunDir, rank: int, *, attempt: int, limits: Limits | None = None, armed: bool = True
    ) -> None:
        run.heartbeats.mkdir(parents=True, exist_ok=True)
        run.logs.mkdir(parents=True, exist_ok=True)
        self._limits = limits or Limits()
        self._fd = os.open(heartbeat_path(run, rank), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        pid = os.getpid()
        host = socket.gethostname().encode()[:64]
        os.pwrite(self._fd, _HEAD.pack(_MAGIC, rank, pid, process_started(pid), host), 0)
        self._stacks: IO[str] | None = None
        if armed:
            self._stacks = open(stacks_path(run, attempt, rank), "w", encoding="utf-8")  # noqa: SIM115
            # SIGUSR1 from the driver: say where every thread is, then go on (or be killed).
            faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True, chain=False)
        self._count = self._step = 0
        self._section = ""
        self._begun_s = 0.0
        self._last_s = 0.0
        self._steps: deque[float] = deque(maxlen=32)
        self._checkpoint_s = 0.0
        self._limit_s = self._armed_s = 0.0
        self._armed_at = -_REARM_S
        self.beat(0, "start")

    def beat(self, step: int, section: str) -> None:
        """Say that `step` and `section` (one of `SECTIONS`) are under way. Costs about 2 microseconds."""
        now = time.time()
        self._step = step
        if section != self._section:
            self._change(section, now)
        elif section == "step":
            self._steps.append(now - self._last_s)
        self._last_s = now
        self._count += 1
        if now - self._armed_at >= _REARM_S or self._limit_s > self._armed_s or now < self._armed_at:
            self._arm(now)
        code = SECTIONS.index(section)
        os.pwrite(self._fd, _BEAT.pack(self._count, step, now, self._limit_s, code), _HEAD.size)

    def close(self) -> None:
        """Say that the rank is done; nothing is watched any more."""
        if self._fd < 0:
            return
        if self._stacks is not None:
            faulthandler.cancel_dump_traceback_later()
            faulthandler.unregister(signal.SIGUSR1)
            self._stacks.close()
            self._stacks = None
        self.beat(self._step, "done")
        os.close(self._fd)
        self._fd = -1

    def _change(self, section: str, now: float) -> None:
        if self._section == "checkpoint":
            self._checkpoint_s = now - self._begun_s
        self._section, self._begun_s = section, now
        self._limit_s = self._limit(section)

    def _limit(self, section: str) -> float:
        usual_s = median(self._steps) if self._steps else 0.0
        # Until a step has been timed it may still be compiling: the limit of the start holds.
        timed = section if self._steps or section not in ("step", "eval") else "start"
        return self._limits.of(timed, usual_s, self._checkpoint_s)

    def _arm(self, now: float) -> None:
        self._limit_s = self._limit(self._section)
        self._armed_at, self._armed_s = now, self._limit_s
        if self._stacks is not None:
            # The timer may be up to _REARM_S older than the newest beat.
            faulthandler.dump_traceback_later(self._limit_s + _REARM_S, exit=True, file=self._stacks)


def heartbeat_path(run: RunDir, rank: int) -> Path:
    """Return where a rank's heartbeat is."""
    return run.heartbeats / f"rank-{rank}"


def stacks_path(run: RunDir, attempt: int, rank: int) -> Path:
    """Return where a rank's stacks are dumped when it hangs."""
    return run.logs / f"stacks-a{attempt}-rank{rank}.txt"


def read_heartbeats(run: RunDir) -> list[Heartbeat]:
    """Return the newest heartbeat of every rank, by rank. Files that are not complete yet are left out."""
    found: list[Heartbeat] = []
    if not run.heartbeats.is_dir():
        return found
    for path in run.heartbeats.glob("rank-*"):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if len(content) < _HEAD.size + _BEAT.size or not content.startswith(_MAGIC):
            continue
        _, rank, pid, pid_started, host = _HEAD.unpack_from(content)
        count, step, time_s, limit_s, code = _BEAT.unpack_from(content, _HEAD.size)
        name = host.rstrip(b"\0").decode()
        found.append(Heartbeat(rank, pid, pid_started, name, count, step, SECTIONS[int(code)], time_s, float(limit_s)))
    return sorted(found, key=lambda beat: beat.rank)


def clear_heartbeats(run: RunDir) -> None:
    """Remove all heartbeats, so that those of an earlier attempt are not taken for this one's."""
    for path in run.heartbeats.glob("rank-*"):
        path.unlink(missing_ok=True)


def kill_rank(beat: Heartbeat) -> bool:
    """Kill a rank of this host that is still the process its heartbeat names; frozen ones too."""
    if beat.host != socket.gethostname() or not is_same_process(beat.pid, beat.pid_started):
        return False
    with suppress(ProcessLookupError):
        os.kill(beat.pid, signal.SIGKILL)
        return True
    return False


class Watchdog:
    """Decides which ranks are hung. Judges by its own clock: hosts need not agree on the time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, slack_s: float = 2.0) -> None:
        self._clock = clock
        self._slack_s = slack_s
        self._seen: dict[int, tuple[int, float]] = {}

    def hung(self, beats: list[Heartbeat]) -> list[Heartbeat]:
        """Return the ranks whose newest beat has not changed for longer than it allowed."""
        now = self._clock()
        late: list[Heartbeat] = []
        for beat in beats:
            count, since = self._seen.get(beat.rank, (-1, now))
            if count != beat.count:
                since = now
            self._seen[beat.rank] = (beat.count, since)
            if beat.section != "done" and now - since > beat.limit_s + self._slack_s:
                late.append(beat)
        return late
