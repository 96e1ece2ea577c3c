"""Who may write to a run: one holder at a time, and a token that grows so that a stale holder's commits are refused.

The driver acquires, renews and releases; rank 0 asks `is_current` before it commits a checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.errors import ClusterError
from orchestrator.runs.paths import RunDir

REMOTE_TIMEOUT_S = 60.0
"""A holder on another host counts as dead when it has not renewed for this long: its process cannot be looked at."""
_START_TOLERANCE_S = 1.0


@dataclass(frozen=True)
class _Holder:
    """What lease.json says. `released` keeps the token, so that the next holder's is larger."""

    run_id: str
    host: str
    pid: int
    started: float
    token: int
    renewed: float
    released: bool = False


@dataclass(frozen=True)
class Lease:
    """The right to write to `run` under `token`. Hand `token` to the workers; call `renew` at least every 20 s."""

    run: RunDir
    token: int

    def renew(self) -> None:
        """Say that the holder is alive. Raises ClusterError when somebody else has taken the run over."""
        with _locked(self.run):
            _write(self.run, replace(self._own(), renewed=time.time()))

    def advance(self) -> Lease:
        """Return a lease with the next token: earlier attempts whose workers still live can commit nothing any more."""
        with _locked(self.run):
            holder = self._own()
            _write(self.run, replace(holder, token=holder.token + 1, renewed=time.time()))
            return Lease(self.run, holder.token + 1)

    def release(self) -> None:
        """Give the run back. Does nothing when it was already taken over."""
        with _locked(self.run):
            holder = _read(self.run)
            if holder is not None and holder.token == self.token:
                _write(self.run, replace(holder, released=True))

    def _own(self) -> _Holder:
        holder = _read(self.run)
        if holder is None or holder.token != self.token or holder.released:
            raise ClusterError(
                f"run {self.run.run_id} was taken over: {_describe(holder)}, this process held token {self.token}",
                hint="Only one process may drive a run. Let the other one go on, or stop it and resume.",
            )
        return holder


def acquire(run: RunDir) -> Lease:
    """Take the lease of `run`, or take over one whose holder is dead, with a token one larger.

    Raises ClusterError naming host, process and age when the holder is alive. Of several processes that ask at the same
    moment, one gets it.
    """
    with _locked(run):
        holder = _read(run)
        if holder is not None and _is_alive(holder):
            raise ClusterError(
                f"run {run.run_id} is already being driven by {_describe(holder)}",
                hint=f"Wait for it, or stop it first (`orchestrator stop {run.run_id}`).",
            )
        token = 1 if holder is None else holder.token + 1
        now = time.time()
        started = _process_start(os.getpid()) or now
        _write(run, _Holder(run.run_id, socket.gethostname(), os.getpid(), started, token, now))
        return Lease(run, token)


def is_current(run: RunDir, token: int) -> bool:
    """Return whether `token` still holds `run`. One small read without the lock: writes are atomic."""
    holder = _read(run)
    return holder is not None and holder.token == token and not holder.released


def holder_alive(run: RunDir) -> bool:
    """Return whether some process drives `run` right now."""
    holder = _read(run)
    return holder is not None and _is_alive(holder)


def _is_alive(holder: _Holder) -> bool:
    if holder.released:
        return False
    if holder.host != socket.gethostname():
        return time.time() - holder.renewed < REMOTE_TIMEOUT_S
    started = _process_start(holder.pid)
    return started is not None and abs(started - holder.started) < _START_TOLERANCE_S


def _process_start(pid: int) -> float | None:
    import psutil  # here: `check` and `plan` import this package and must start fast

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _describe(holder: _Holder | None) -> str:
    if holder is None:
        return "its lease is gone"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.started))
    age = max(0.0, time.time() - holder.renewed)
    return f"process {holder.pid} on {holder.host} (since {since}, renewed {age:.0f} s ago, token {holder.token})"


@contextlib.contextmanager
def _locked(run: RunDir) -> Iterator[None]:
    """Hold the file lock of the lease; the kernel frees it when the process dies."""
    path = run.lease.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _read(run: RunDir) -> _Holder | None:
    try:
        text = run.lease.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        return _Holder(**json.loads(text))
    except (ValueError, TypeError) as error:
        raise ClusterError(
            f"the lease of run {run.run_id} cannot be read: {run.lease}: {error}",
            hint="If no process drives this run any more, delete that file and resume.",
        ) from error


def _write(run: RunDir, holder: _Holder) -> None:
    temporary = run.lease.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(asdict(holder), handle)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, run.lease)
    _sync_folder(run.path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
