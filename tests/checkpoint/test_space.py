"""A full volume: old checkpoints make room once; else the error names volume, needed and free bytes, and what to do."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import IO, Any, cast

import pytest

from orchestrator.checkpoint.disk import FULL, volume_of
from orchestrator.checkpoint.manifest import CheckpointMeta
from orchestrator.checkpoint.verify import find_newest
from orchestrator.errors import CheckpointError
from orchestrator.testing.ranks import run_ranks
from tests.checkpoint.states import RecordingDisk, make_state, make_store, names_in

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


class _Limited:
    """A file that runs out of space after `room` bytes, as write(2) would say it."""

    def __init__(self, handle: IO[bytes], disk: SmallDisk) -> None:
        self._handle = handle
        self._disk = disk

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self._disk.used + size > self._disk.size:
            raise OSError(self._disk.error, "No space left on device" if self._disk.error == errno.ENOSPC else "odd")
        self._disk.used += size
        return self._handle.write(data)

    def __enter__(self) -> _Limited:
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)


class SmallDisk(RecordingDisk):
    """A volume of `size` bytes. With `honest` false it claims to have space, as a quota or a race would."""

    def __init__(self, size: int, *, honest: bool = True, error: int = errno.ENOSPC) -> None:
        super().__init__()
        self.size, self.honest, self.error = size, honest, error
        self.used = 0

    def free_bytes(self, path: Path) -> int:
        return self.size - self.used if self.honest else 1 << 40

    def open_write(self, path: Path) -> IO[bytes]:
        return cast(IO[bytes], _Limited(super().open_write(path), self))

    def remove(self, folder: Path) -> None:
        self.used -= sum(path.stat().st_size for path in folder.iterdir())
        super().remove(folder)


def _one_save_bytes(folder: Path) -> int:
    disk = SmallDisk(1 << 40)
    store = make_store(folder, disk=disk)
    store.save(make_state(1), CheckpointMeta(step=1))
    store.close()
    return disk.used


@pytest.mark.parametrize("honest", [True, False], ids=["seen beforehand", "met while writing"])
def test_old_checkpoints_make_room_and_the_save_succeeds(tmp_path: Path, honest: bool) -> None:
    size = _one_save_bytes(tmp_path / "probe")
    disk = SmallDisk(int(2.7 * size), honest=honest)
    store = make_store(tmp_path / "c", keep=2, disk=disk)
    for step in (1, 2, 3, 4):
        store.save(make_state(step), CheckpointMeta(step=step))
    store.close()
    newest = find_newest(tmp_path / "c")
    assert newest is not None
    assert newest.step == 4
    assert len(names_in(tmp_path / "c")) == 2


@pytest.mark.parametrize("honest", [True, False], ids=["seen beforehand", "met while writing"])
@pytest.mark.parametrize("background", [True, False])
def test_when_no_room_can_be_made_the_error_is_plain_and_the_last_good_one_stays(
    tmp_path: Path, honest: bool, background: bool
) -> None:
    size = _one_save_bytes(tmp_path / "probe")
    store = make_store(tmp_path / "c", disk=SmallDisk(int(1.6 * size), honest=honest), background=background)
    store.save(make_state(1), CheckpointMeta(step=1))
    with pytest.raises(CheckpointError) as caught:  # noqa: PT012 - which of the two calls raises depends on the mode
        store.save(make_state(2), CheckpointMeta(step=2))
        store.wait()
    for part in (f"volume {volume_of(tmp_path)} is full", str(tmp_path / "c"), "bytes, ", "are free"):
        assert part in caught.value.message
    assert "cluster.storage" in caught.value.hint
    store.close()
    newest = find_newest(tmp_path / "c")
    assert newest is not None
    assert (newest.step, newest.skipped) == (1, ())


@pytest.mark.parametrize("file_name", ["__0_0.distcp", ".metadata.tmp", "rng-0.safetensors", "manifest.json.tmp"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failing_write_at_any_point_leaves_the_older_checkpoint_and_names_the_cause(
    tmp_path: Path, file_name: str, number: int
) -> None:
    class Failing(RecordingDisk):
        def open_write(self, path: Path) -> IO[bytes]:
            if path.name == file_name and "step-00000002" in str(path):
                raise OSError(number, errno.errorcode[number], str(path))
            return super().open_write(path)

    store = make_store(tmp_path / "c", disk=Failing())
    store.save(make_state(1), CheckpointMeta(step=1))
    cause = "is full" if number in FULL else errno.errorcode[number]
    with pytest.raises(CheckpointError, match=cause) as caught:
        store.save(make_state(2), CheckpointMeta(step=2))
    assert str(tmp_path / "c") in caught.value.message
    store.save(make_state(3), CheckpointMeta(step=3))
    store.close()
    newest = find_newest(tmp_path / "c")
    assert newest is not None
    assert (newest.step, newest.skipped) == (3, ())


def _fill_up(rank: int, world_size: int, folder: str, size: int) -> list[str]:
    disk = SmallDisk(size, honest=False)
    disk.size = size if rank == 1 else 1 << 40
    store = make_store(Path(folder), rank, world_size, disk=disk, background=True)
    errors = []
    for step in range(1, 4):
        try:
            store.save(make_state(step, "shard", world_size), CheckpointMeta(step=step))
            store.wait()
        except CheckpointError as error:
            errors.append(error.message)
    store.close()
    return errors


def test_a_volume_that_is_full_on_one_rank_only_is_told_to_all(tmp_path: Path) -> None:
    first, second = run_ranks(_fill_up, 2, str(tmp_path / "c"), 50_000)
    assert first == second
    assert first
    assert all(message.startswith("rank 1: volume ") for message in first)
