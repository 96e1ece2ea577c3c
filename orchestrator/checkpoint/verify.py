"""Which checkpoint to go on from: the newest whose every file has the size and SHA-256 of its manifest.

Called by rank 0 at the start of every attempt, by the driver and by `orchestrator runs`. Imports no torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from orchestrator.checkpoint.disk import hash_file, open_regular
from orchestrator.checkpoint.manifest import (
    CheckpointRef,
    FileEntry,
    Manifest,
    Skipped,
    parse_folder_name,
    read_manifest,
)
from orchestrator.errors import CheckpointError
from orchestrator.log import get_logger

_log = get_logger("checkpoint")


def find_newest(folder: Path) -> CheckpointRef | None:
    """Return the newest checkpoint in `folder` that verifies; None only when none was ever committed.

    Damaged ones are left where they are, logged and listed in the result's `skipped`.
    Raises CheckpointError when checkpoints were committed but none verifies: a run never silently starts from scratch.
    """
    candidates, skipped = list_committed(folder)
    for manifest, path in candidates:
        try:
            verify_files(path, manifest)
        except CheckpointError as error:
            _log.warning("checkpoint %s is damaged and passed over: %s", path.name, error.message)
            skipped.append(Skipped(path.name, error.message))
        else:
            return CheckpointRef(path, manifest, tuple(skipped))
    if not skipped:
        return None
    listing = "; ".join(f"{one.name}: {one.reason}" for one in skipped)
    raise CheckpointError(
        f"none of the {len(skipped)} checkpoints in {folder} can be trusted: {listing}",
        hint="Restore one of these folders from a copy, or start a new run: no run silently starts from scratch.",
    )


def list_committed(folder: Path) -> tuple[list[tuple[Manifest, Path]], list[Skipped]]:
    """Return ([(manifest, path)] newest first, unreadable ones): all saves with a manifest; files are not looked at."""
    found: list[tuple[Manifest, Path]] = []
    skipped: list[Skipped] = []
    for path in save_folders(folder):
        try:
            found.append((read_manifest(path), path))
        except FileNotFoundError:
            continue  # never committed: it does not exist
        except CheckpointError as error:
            _log.warning("checkpoint %s is damaged and passed over: %s", path.name, error.message)
            skipped.append(Skipped(path.name, error.message))
    return sorted(found, key=lambda pair: (pair[0].order, pair[1].name), reverse=True), skipped


def save_folders(folder: Path) -> list[Path]:
    """Return the folders of all saves, complete or not, by name, newest first."""
    if not folder.is_dir():
        return []
    named = [path for path in folder.iterdir() if parse_folder_name(path.name) is not None]
    return sorted(named, key=lambda path: (parse_folder_name(path.name), path.name), reverse=True)


def open_checkpoint(path: Path) -> CheckpointRef:
    """Return the checkpoint in `path` after verifying it. Raises CheckpointError naming the path and what is wrong."""
    try:
        manifest = read_manifest(path)
        verify_files(path, manifest)
    except FileNotFoundError:
        raise CheckpointError(f"{path} holds no committed checkpoint (no manifest)") from None
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error.message}", hint=error.hint) from error
    return CheckpointRef(path, manifest)


def verify_files(path: Path, manifest: Manifest, entries: Iterable[FileEntry] | None = None) -> None:
    """Compare size and SHA-256 of the listed files (all by default) with the manifest.

    Sizes come first, so that a truncated file is found without reading gigabytes. Raises CheckpointError.
    """
    chosen = manifest.files if entries is None else tuple(entries)
    verify_sizes(path, chosen)
    for entry in chosen:
        try:
            size, digest = hash_file(path / entry.name)
        except OSError as error:
            raise CheckpointError(f"{entry.name} cannot be read: {error}") from error
        if size != entry.size:
            raise CheckpointError(f"{entry.name} has {size} bytes, the manifest says {entry.size}")
        if digest != entry.sha256:
            raise CheckpointError(f"{entry.name} has other content than was saved (SHA-256 differs)")


def verify_sizes(path: Path, entries: Iterable[FileEntry]) -> None:
    """Check that every file is there with its size, without reading it. Raises CheckpointError."""
    for entry in entries:
        try:
            size = (path / entry.name).lstat().st_size
        except OSError as error:
            raise CheckpointError(f"{entry.name} is missing: {error.strerror}") from error
        if size != entry.size:
            raise CheckpointError(f"{entry.name} has {size} bytes, the manifest says {entry.size}")


def read_verified(path: Path, entry: FileEntry) -> bytes:
    """Return the content of one file: the very bytes whose hash was compared. Raises CheckpointError."""
    try:
        with open_regular(path / entry.name) as handle:
            data = handle.read(entry.size + 1)
    except OSError as error:
        raise CheckpointError(f"{entry.name} of {path} cannot be read: {error}") from error
    if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CheckpointError(f"{entry.name} of {path} has other content than was saved (SHA-256 differs)")
    return data
