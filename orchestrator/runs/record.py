"""`RunRecord`: the state of one run in `run.json`. Read by every command; changed under a lock, replaced atomically."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from orchestrator.errors import NotAbleError
from orchestrator.runs.paths import RunDir

LIVE_STATES = ("created", "starting", "running", "stopping", "finishing")
"""States of a run whose driver should be alive; all others are final."""


@dataclass(frozen=True)
class RunRecord:
    """One run as far as it has come. Times are ISO 8601, UTC; `pid` and `host` name the driver.

    `kind` is run or sweep. `state` is one of `LIVE_STATES` or finished, failed, stopped, killed. `pid_started` (seconds
    since the epoch) tells the driver from a later process of the same number.
    """

    run_id: str
    name: str
    state: str = "created"
    verdict: str = ""
    created: str = ""
    ended: str = ""
    pid: int = 0
    pid_started: float = 0.0
    host: str = ""
    attempt: int = 0
    mlflow: Mapping[str, str] = field(default_factory=dict)
    model_version: Mapping[str, str] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    command: str = ""
    kind: str = "run"

    @property
    def is_live(self) -> bool:
        """Whether the record says that a driver is at work; `catalog` also looks whether it is."""
        return self.state in LIVE_STATES


def now_iso() -> str:
    """Return the time as the record writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def process_started(pid: int) -> float:
    """Return when a process of this host began (seconds since the epoch); 0.0: there is none, or a zombie."""
    import psutil

    try:
        process = psutil.Process(pid)
        return 0.0 if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return 0.0


def is_same_process(pid: int, started: float) -> bool:
    """Say whether process `pid` of this host is alive and is the one that began at `started` (0: any)."""
    found = process_started(pid) if pid > 0 else 0.0
    return found > 0 and (started == 0 or abs(found - started) < 1.0)


def driver_is_dead(record: RunRecord) -> bool:
    """Say whether the driver of a live record is known to be gone. A driver on another host is never known to be."""
    return (
        record.is_live and record.host == socket.gethostname() and not is_same_process(record.pid, record.pid_started)
    )


def read_record(run: RunDir) -> RunRecord:
    """Return the record. Raises NotAbleError when there is none or it cannot be read."""
    try:
        content = json.loads(run.record.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotAbleError(f"{run.path} holds no run", hint="`orchestrator runs` lists the runs there are") from error
    except (OSError, ValueError) as error:
        raise NotAbleError(
            f"{run.record} cannot be read: {error}", hint="restore the file or delete the run"
        ) from error
    known = {item.name for item in fields(RunRecord)}
    return RunRecord(**{key: value for key, value in content.items() if key in known})


def write_record(run: RunDir, record: RunRecord) -> None:
    """Replace the record atomically and durably."""
    write_json(run.record, asdict(record))


def update_record(run: RunDir, **changes: Any) -> RunRecord:
    """Change some fields under the record's lock and return the new record. Unknown fields raise TypeError."""
    with _locked(run):
        record = replace(read_record(run), **changes)
        write_record(run, record)
    return record


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write a JSON file (mode 0600) so that a reader sees the old or the new content, also after a power cut.

    Not `durable`: never a part of it, but after a power cut perhaps neither (what can be made again).
    """
    _replace(path, lambda file: json.dump(content, file, indent=1, allow_nan=True), durable=durable)


def write_private(path: Path, text: str) -> None:
    """Write a text that may hold credentials (mode 0600) so that a reader sees the old or the new one; not durable."""
    _replace(path, lambda file: file.write(text), durable=False)


def _replace(path: Path, fill: Callable[[TextIO], object], *, durable: bool) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            fill(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        make_durable(path.parent)


def make_durable(path: Path) -> None:
    """Have a file's content, or a folder's list of names, outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _locked(run: RunDir) -> Iterator[None]:
    with open(run.record_lock, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
