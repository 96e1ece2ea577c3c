"""Which runs there are: numbers new ones, finds, lists, measures and deletes them. A storage folder holds the runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import JobFileError, NotAbleError
from orchestrator.log import redact
from orchestrator.runs.numbers import claim_folder
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import RunRecord, driver_is_dead, now_iso, read_record, write_record

_TRASH = ".deleted-"


@dataclass(frozen=True)
class RunInfo:
    """A run as listed. `state` is the record's, or `died` for a live record whose driver is gone."""

    run: RunDir
    record: RunRecord
    state: str
    size_bytes: int

    @property
    def is_live(self) -> bool:
        """Whether a driver is at work on it."""
        return self.record.is_live and self.state != "died"


def create_run(storage: Path, name: str, command: str = "", *, kind: str = "run") -> RunDir:
    """Make the folder of a new run (or, by `kind`, sweep), `<name>-<n>` with n one above the highest there ever was, and its record.

    Two runs never get the same number. Raises NotAbleError when the folder cannot be written.
    """
    try:
        storage.mkdir(parents=True, exist_ok=True)
        run = RunDir(claim_folder(storage.resolve(), name))
    except OSError as error:
        raise NotAbleError(
            f"cannot make a run in {storage}: {error.strerror or error}",
            hint="free space or set `cluster.storage` to a folder you can write to",
        ) from error
    for folder in (run.logs, run.failures, run.heartbeats, run.spool):
        folder.mkdir()
    shown = redact(command)  # everybody may read the record
    write_record(run, RunRecord(run_id=run.run_id, name=name, created=now_iso(), command=shown, kind=kind))
    return run


def list_runs(storage: Path, *, with_size: bool = True) -> list[RunInfo]:
    """Return all runs in a storage folder, oldest first. Folders without a readable record are left out."""
    found: list[RunInfo] = []
    if not storage.is_dir():
        return found
    for path in storage.iterdir():
        if path.name.startswith(".") or not (path / "run.json").is_file():
            continue
        try:
            found.append(describe_run(RunDir(path.resolve()), with_size=with_size))
        except NotAbleError:
            continue
    return sorted(found, key=lambda info: (info.record.created, info.run.run_id))


def describe_run(run: RunDir, *, with_size: bool = True) -> RunInfo:
    """Return one run as listed. Raises NotAbleError when there is none."""
    record = read_record(run)
    state = "died" if driver_is_dead(record) else record.state
    return RunInfo(run, record, state, folder_bytes(run.path) if with_size else 0)


def folder_bytes(folder: Path) -> int:
    """Return how much a folder takes, links not followed."""
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return total


def find_run(
    storage: Path, run_id: str = "latest", *, name: str | None = None, kind: str | None = None
) -> RunDir:
    """Return a run by id, or the latest (of job `name` and of this `kind`, if given).

    Raises JobFileError when there is none, or when the one that is named is of another kind.
    """
    if run_id != "latest":
        if "/" not in run_id and run_id not in (".", "..") and (storage / run_id / "run.json").is_file():
            found = RunDir((storage / run_id).resolve())
            _require_kind(found, kind)
            return found
        known = [info.run.run_id for info in list_runs(storage, with_size=False)]
        raise JobFileError(
            f"there is no run '{run_id}' in {storage}",
            hint=f"runs there are: {', '.join(known[-8:])}" if known else "no run has been made there yet",
        )
    runs = [info for info in list_runs(storage, with_size=False) if name is None or info.record.name == name]
    runs = [info for info in runs if kind is None or info.record.kind == kind]
    if not runs:
        what, of_job = kind or "run", f" of job '{name}'" if name else ""
        raise JobFileError(f"there is no {what}{of_job} in {storage}", hint=f"start one with `orchestrator {what} JOB`")
    return runs[-1].run


def _require_kind(run: RunDir, kind: str | None) -> None:
    found = read_record(run).kind
    if kind is not None and found != kind:
        raise JobFileError(
            f"{run.run_id} is a {found}, not a {kind}", hint=f"`orchestrator {found} JOB --resume {run.run_id}` goes on with it"
        )


def delete_run(run: RunDir) -> int:
    """Delete a run that is not live and return the bytes freed. Raises NotAbleError for a live one.

    The folder is renamed first, so that an interrupted deletion never leaves half a run.
    """
    info = describe_run(run)
    refuse_live([info])
    doomed = run.storage / f"{_TRASH}{run.run_id}-{os.getpid()}"
    os.replace(run.path, doomed)
    shutil.rmtree(doomed)
    return info.size_bytes


def refuse_live(runs: Sequence[RunInfo]) -> None:
    """Raise NotAbleError when one of the runs is live."""
    for info in runs:
        if info.is_live:
            name = info.run.run_id
            raise NotAbleError(f"run {name} is {info.state}", hint=f"`orchestrator stop {name}` ends it")


def select_runs(runs: Sequence[RunInfo], *, keep: int | None = None, older_days: float | None = None) -> list[RunInfo]:
    """Return those runs that are not live and not among the `keep` newest, or ended more than `older_days` ago."""
    from datetime import UTC, datetime

    idle = [info for info in runs if not info.is_live]
    if keep is not None:
        idle = idle[: max(0, len(idle) - keep)]
    if older_days is None:
        return idle
    now = datetime.now(UTC)
    times = {info.run.run_id: datetime.fromisoformat(info.record.ended or info.record.created) for info in idle}
    return [info for info in idle if (now - times[info.run.run_id]).total_seconds() > older_days * 86400]
