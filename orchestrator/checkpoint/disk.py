"""Every touch of the file system that a save makes, in one small class: durable writes, hashes, free space, removal.

The store calls it; tests hand in one that fails on purpose. Standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path
from typing import IO

from orchestrator.errors import CheckpointError

MANIFEST = "manifest.json"
_CHUNK_BYTES = 1 << 20
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers that mean "no space": the volume is full, or the user's quota is."""


class Disk:
    """The real disk."""

    def free_bytes(self, path: Path) -> int:
        """Return the bytes that this user may still write on the volume of `path`."""
        return shutil.disk_usage(path).free

    def make_folder(self, path: Path) -> None:
        """Make a folder that must not exist yet, and make its name durable."""
        path.mkdir()
        self.sync_folder(path.parent)

    def open_write(self, path: Path) -> IO[bytes]:
        """Open a new file for writing; fails when the name is taken."""
        return path.open("xb")

    def sync_file(self, path: Path) -> None:
        """Make the content of a written file durable."""
        self.sync_folder(path)

    def write_file(self, path: Path, data: bytes) -> None:
        """Write a new file and make its content durable."""
        with self.open_write(path) as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())

    def commit_file(self, path: Path, data: bytes) -> None:
        """Make `path` appear with all of `data` or not at all, durably: temporary name, fsync, rename, folder fsync."""
        temporary = path.with_name(path.name + ".tmp")
        self.write_file(temporary, data)
        os.rename(temporary, path)
        self.sync_folder(path.parent)

    def sync_folder(self, path: Path) -> None:
        """Make the names inside a folder durable."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, folder: Path) -> None:
        """Remove a checkpoint: its manifest first, so that a kill in between leaves nothing that looks complete."""
        manifest = folder / MANIFEST
        if manifest.exists():
            manifest.unlink()
            self.sync_folder(folder)
        shutil.rmtree(folder)


def open_regular(path: Path) -> IO[bytes]:
    """Open an existing regular file for reading. Symbolic links, devices and pipes raise CheckpointError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is not a regular file")
    return os.fdopen(descriptor, "rb")


def hash_file(path: Path) -> tuple[int, str]:
    """Return (size in bytes, SHA-256 in hex) of a regular file. Links raise OSError or CheckpointError."""
    digest = hashlib.sha256()
    size = 0
    buffer = bytearray(_CHUNK_BYTES)
    view = memoryview(buffer)
    with open_regular(path) as handle:
        while count := handle.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(view[:count])
            size += count
    return size, digest.hexdigest()


def volume_of(path: Path) -> Path:
    """Return the mount point that holds `path`."""
    place = path.resolve()
    while not os.path.ismount(place):
        place = place.parent
    return place
