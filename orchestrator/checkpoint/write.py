"""One rank's part of a save: its shards through DCP, its random-number states, and the hashes of what it wrote."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.state_dict_saver import save

from orchestrator.checkpoint import rng
from orchestrator.checkpoint.disk import Disk, hash_file
from orchestrator.checkpoint.group import Group
from orchestrator.checkpoint.load import METADATA
from orchestrator.checkpoint.manifest import FileEntry
from orchestrator.checkpoint.staging import Snapshot, SnapshotPlanner


class _Stream:
    """A file that remembers why a write failed: torch's archive writer would turn a full disk into "unexpected pos"."""

    def __init__(self, handle: IO[bytes], path: Path, errors: list[OSError]) -> None:
        self._handle = handle
        self._path = path
        self._errors = errors

    def write(self, data: bytes) -> int:
        """Write; an error of the system is kept, with the path it lacks, and raised."""
        try:
            return self._handle.write(data)
        except OSError as error:
            self._errors.append(OSError(error.errno, error.strerror, str(self._path)))
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


class _Files(FileSystem):
    """Opens new files through our `Disk`; `errors` keeps what went wrong."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.errors: list[OSError] = []

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Generator[IO[bytes], None, None]:  # type: ignore[override]
        """Open a file that must not exist yet."""
        try:
            handle = self._disk.open_write(Path(path))
        except OSError as error:
            self.errors.append(error)
            raise
        with handle:
            yield cast(IO[bytes], _Stream(handle, Path(path), self.errors))


class _Writer(FileSystemWriter):
    """DCP's writer: never overwrites, leaves fsync to `write_part` and this machine's path out of the metadata."""

    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path, overwrite=False, sync_files=False)
        self.files = self.fs = _Files(disk)

    def storage_meta(self) -> StorageMeta:
        """Return metadata without the path: a checkpoint may be moved, and loading allows no path objects."""
        return StorageMeta(save_id=self.save_id)


def write_part(folder: Path, snapshot: Snapshot, group: Group, disk: Disk) -> list[FileEntry]:
    """Write this rank's files into `folder` durably and return them with sizes and hashes. Collective.

    `.metadata` is rank 0's. Raises OSError, or DCP's CheckpointException on all ranks when writing failed on one.
    """
    writer = _Writer(folder, disk)
    if all(tensor.is_cpu for tensor in snapshot.tensors.values()):
        writer.per_thread_copy_ahead = (
            0  # nothing to overlap, and DCP's overlapping loader would wait for the GPU's work
        )
    try:
        save(
            {},
            storage_writer=writer,
            planner=SnapshotPlanner(snapshot),
            process_group=group.process_group,
            no_dist=group.process_group is None,
        )
    except CheckpointException:
        if writer.files.errors:
            raise writer.files.errors[0] from None
        raise
    own = [folder / rng.file_name(group.rank), *sorted(folder.glob(f"__{group.rank}_*.distcp"))]
    disk.write_file(own[0], rng.to_bytes(snapshot.rng))
    if group.rank == 0:
        own.append(folder / METADATA)
    with ThreadPoolExecutor(1) as helper:  # the disk works on fsync while this core hashes
        durable = helper.submit(_sync, own, disk)
        entries = [FileEntry(path.name, *hash_file(path)) for path in own]
        durable.result()
    return entries


def _sync(paths: list[Path], disk: Disk) -> None:
    for path in paths:
        disk.sync_file(path)
    disk.sync_folder(paths[0].parent)
