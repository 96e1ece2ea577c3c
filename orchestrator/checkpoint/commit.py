"""The transaction of a save, on the writer thread of every rank: from a snapshot to a committed checkpoint.

Order: agree on a new folder -> shards, random states, fsync and hashes on every rank -> fencing token asked ->
manifest by rank 0 -> older checkpoints collected. A kill at any moment leaves either a checkpoint that verifies or a
folder without a manifest, which does not exist for anybody.
"""

from __future__ import annotations

import contextlib
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

import torch

from orchestrator.checkpoint.disk import MANIFEST, Disk, volume_of
from orchestrator.checkpoint.group import DiskFullError, Group, is_full
from orchestrator.checkpoint.manifest import CheckpointMeta, CheckpointRef, FileEntry, Json, Manifest, folder_name
from orchestrator.checkpoint.retention import Retention
from orchestrator.checkpoint.staging import Snapshot, find_non_finite
from orchestrator.checkpoint.verify import verify_sizes
from orchestrator.checkpoint.write import write_part
from orchestrator.errors import CheckpointError
from orchestrator.log import get_logger

SPACE_FACTOR = 1.2
T = TypeVar("T")
_log = get_logger("checkpoint")


@dataclass(frozen=True)
class Save:
    """One save on its way to the disk."""

    snapshot: Snapshot
    meta: CheckpointMeta
    best: bool


@dataclass(frozen=True)
class Holder:
    """Under which right a process commits: the lease's token, and a question whether it still holds (rank 0)."""

    attempt: int
    token: int
    check_token: Callable[[], bool]


class Committer:
    """Writes and commits saves into one folder. Collective; from one thread, in the same order on all ranks."""

    def __init__(self, folder: Path, group: Group, holder: Holder, *, keep: int, disk: Disk) -> None:
        self._folder = folder
        self._group = group
        self._holder = holder
        self._disk = disk
        self._retention = Retention(folder, keep=keep, attempt=holder.attempt, disk=disk)
        self._last_bytes = 0

    def commit(self, work: Save) -> CheckpointRef:
        """Write and commit, once more after making room when the volume was full. Raises CheckpointError."""
        try:
            return self._try(work)
        except DiskFullError as full:
            freed = self._on_rank_0("making room", lambda: self._retention.collect(keep=1))
            if not freed:
                raise CheckpointError(full.message, hint=full.hint) from full
            _log.warning("volume full: %d old checkpoints deleted to make room, saving again", freed)
        try:
            return self._try(work)
        except DiskFullError as full:
            raise CheckpointError(full.message, hint=full.hint) from full

    def _try(self, work: Save) -> CheckpointRef:
        step = work.meta.step
        path = self._group.agree(f"preparing to save step {step}", lambda: self._prepare(work))[0]
        try:
            parts = self._group.agree(f"writing step {step}", lambda: self._write_part(path, work.snapshot))
            entries = tuple(entry for files, _ in parts for entry in files)
            values = {name: value for _, rank_values in reversed(parts) for name, value in rank_values.items()}
            manifest = self._describe(work, entries, values)
            self._on_rank_0(f"committing step {step}", lambda: self._commit(path, manifest))
        except CheckpointError:
            if self._group.rank == 0:
                self._discard(path)
            raise
        self._last_bytes = manifest.total_bytes
        if self._group.rank == 0:
            self._collect(path.name)
        return CheckpointRef(path, manifest)

    def _prepare(self, work: Save) -> Path:
        """Check what can be checked before a byte is written; rank 0 makes the folder. Returns its path."""
        bad = find_non_finite(work.snapshot.tensors)
        if bad is not None:
            raise CheckpointError(
                f"step {work.meta.step} is not saved: {bad} holds NaN or infinity",
                hint="The newest checkpoint before it is still good; lower the learning rate or clip gradients.",
            )
        path = self._folder / folder_name(work.meta.step, self._holder.attempt, secrets.token_hex(3))
        if self._group.rank == 0:
            self._require_token(work.meta.step)
            self._folder.mkdir(parents=True, exist_ok=True)
            needed = self._needed_bytes(work.snapshot)
            if self._disk.free_bytes(self._folder) < needed:
                raise self._full(needed)
            with self._naming_the_volume(needed):
                self._disk.make_folder(path)
        return path

    def _write_part(self, path: Path, snapshot: Snapshot) -> tuple[list[FileEntry], dict[str, Json]]:
        with self._naming_the_volume(self._needed_bytes(snapshot)):
            return write_part(path, snapshot, self._group, self._disk), snapshot.values

    def _commit(self, path: Path, manifest: Manifest) -> None:
        try:
            verify_sizes(path, manifest.files)
        except CheckpointError as error:
            raise CheckpointError(
                f"step {manifest.step} cannot be committed: {error.message}",
                hint=f"Is {self._folder} the same folder on every node? `cluster.storage` must be shared.",
            ) from error
        self._require_token(manifest.step)
        with self._naming_the_volume(manifest.total_bytes):
            self._disk.commit_file(path / MANIFEST, manifest.to_json())

    def _describe(self, work: Save, entries: tuple[FileEntry, ...], values: dict[str, Json]) -> Manifest:
        return Manifest(
            step=work.meta.step,
            attempt=self._holder.attempt,
            token=self._holder.token,
            world_size=self._group.world_size,
            best=work.best,
            files=entries,
            meta=work.meta,
            values=values,
            versions=_versions(),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def _require_token(self, step: int) -> None:
        if not self._holder.check_token():
            raise CheckpointError(
                f"step {step} is not committed: another process has taken over this run "
                f"(token {self._holder.token} is stale)",
                hint="This process must stop; the run goes on under its new holder.",
            )

    def _needed_bytes(self, snapshot: Snapshot) -> int:
        return int(SPACE_FACTOR * max(self._last_bytes, snapshot.total_bytes))

    def _full(self, needed: int) -> DiskFullError:
        free = self._disk.free_bytes(self._folder)
        return DiskFullError(
            f"volume {volume_of(self._folder)} is full: a checkpoint in {self._folder} needs {needed} bytes, "
            f"{free} are free",
            hint="Free space or move `cluster.storage` to a larger volume, then resume: nothing committed is lost.",
        )

    @contextlib.contextmanager
    def _naming_the_volume(self, needed: int) -> Iterator[None]:
        """Turn "no space left" into an error that says where, how much is needed and how much is free."""
        try:
            yield
        except OSError as error:
            if is_full(error):
                raise self._full(needed) from error
            raise

    def _on_rank_0(self, doing: str, step: Callable[[], T]) -> T | None:
        rank = self._group.rank
        return self._group.agree(doing, lambda: step() if rank == 0 else None)[0]

    def _discard(self, path: Path) -> None:
        try:
            self._disk.remove(path)
        except OSError as error:
            _log.warning("unfinished save %s could not be removed: %s", path, error)

    def _collect(self, name: str) -> None:
        self._retention.trust(name)
        try:
            self._retention.collect()
        except OSError as error:
            _log.warning("old checkpoints could not be collected: %s", error)


def _versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "python": platform.python_version()}
    try:
        found["orchestrator"] = version("orchestrator")
    except PackageNotFoundError:
        found["orchestrator"] = "not installed"
    return found
