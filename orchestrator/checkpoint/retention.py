"""What may be deleted: everything but the newest verified checkpoints and the best one, and only after a newer commit.

Called by rank 0's writer after each commit, and to make room when a volume is full.
"""

from __future__ import annotations

import time
from pathlib import Path

from orchestrator.checkpoint.disk import MANIFEST, Disk
from orchestrator.checkpoint.manifest import Manifest, parse_folder_name
from orchestrator.checkpoint.verify import list_committed, save_folders, verify_files
from orchestrator.errors import CheckpointError
from orchestrator.log import get_logger

ORPHAN_AGE_S = 3600.0
_log = get_logger("checkpoint")


class Retention:
    """Deletes old checkpoints of one folder. Remembers which it has verified, so that each is hashed once at most."""

    def __init__(self, folder: Path, *, keep: int, attempt: int, disk: Disk) -> None:
        self._folder = folder
        self._keep = keep
        self._attempt = attempt
        self._disk = disk
        self._trusted: set[str] = set()

    def trust(self, name: str) -> None:
        """Take a checkpoint as verified: this process has just hashed and committed it."""
        self._trusted.add(name)

    def collect(self, *, keep: int | None = None) -> int:
        """Delete what need not stay and return the number of folders deleted.

        Stays: the newest `keep` that verify, the newest flagged best that verifies. A damaged one goes once `keep`
        good ones exist. Folders without a manifest go when they are an hour old or of an earlier attempt.
        """
        wanted = keep if keep is not None else self._keep
        candidates, unreadable = list_committed(self._folder)
        stay: set[str] = set()
        good = 0
        best_found = False
        for manifest, path in candidates:
            needed = good < wanted or (manifest.best and not best_found)
            if needed and self._verified(path, manifest):
                stay.add(path.name)
                good += 1
                best_found = best_found or manifest.best
        doomed = [path for _, path in candidates if path.name not in stay]
        doomed += [self._folder / one.name for one in unreadable]
        return sum(self._remove(path) for path in (doomed if good >= wanted else []) + self._orphans())

    def _verified(self, path: Path, manifest: Manifest) -> bool:
        if path.name in self._trusted:
            return True
        try:
            verify_files(path, manifest)
        except CheckpointError as error:
            _log.warning("checkpoint %s is damaged: %s", path.name, error.message)
            return False
        self._trusted.add(path.name)
        return True

    def _orphans(self) -> list[Path]:
        found = []
        for path in save_folders(self._folder):
            named = parse_folder_name(path.name)
            if named is None or path.is_symlink() or (path / MANIFEST).exists():
                continue
            if named[1] < self._attempt or time.time() - path.stat().st_mtime > ORPHAN_AGE_S:
                found.append(path)
        return found

    def _remove(self, path: Path) -> bool:
        try:
            if path.is_symlink():
                path.unlink()
            else:
                self._disk.remove(path)
        except OSError as error:
            _log.warning("checkpoint %s could not be removed: %s", path, error)
            return False
        self._trusted.discard(path.name)
        return True
