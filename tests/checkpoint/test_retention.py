"""Old checkpoints go, but never the newest good ones, nor the best, nor anything before a newer commit is durable."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from orchestrator.checkpoint.disk import Disk
from orchestrator.checkpoint.manifest import CheckpointMeta
from orchestrator.checkpoint.retention import ORPHAN_AGE_S
from orchestrator.checkpoint.verify import find_newest, list_committed
from tests.checkpoint.states import RecordingDisk, make_state, make_store, names_in, save_steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def _steps(folder: Path) -> list[int]:
    return sorted(manifest.step for manifest, _ in list_committed(folder)[0])


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    save_steps(tmp_path / "c", 1, 2, 3, 4, 5, 6, keep=2, best=(1, 3))
    assert _steps(tmp_path / "c") == [3, 5, 6]


def test_a_damaged_checkpoint_does_not_count_and_goes_once_enough_good_ones_exist(tmp_path: Path) -> None:
    *_, damaged = save_steps(tmp_path / "c", 10, 20, 30)
    shard = damaged.path / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    save_steps(tmp_path / "c", 21, attempt=2, keep=3)
    assert _steps(tmp_path / "c") == [10, 20, 21]


def test_while_too_few_are_good_nothing_is_deleted(tmp_path: Path) -> None:
    first, _ = save_steps(tmp_path / "c", 1, 2)
    (first.path / "manifest.json").write_text("{")
    save_steps(tmp_path / "c", 3, attempt=2, keep=3)
    assert len(names_in(tmp_path / "c")) == 3


def test_deletion_comes_after_the_newer_commit_and_takes_the_manifest_first(tmp_path: Path) -> None:
    disk = RecordingDisk()
    store = make_store(tmp_path / "c", keep=2, disk=disk)
    for step in (1, 2, 3):
        store.save(make_state(step), CheckpointMeta(step=step))
    store.close()
    removal = next(i for i, one in enumerate(disk.operations) if one.startswith("remove"))
    commits = [i for i, one in enumerate(disk.operations) if one == "commit manifest.json"]
    assert commits[2] < removal
    assert disk.operations[removal].startswith("remove step-00000001")
    assert disk.operations[removal + 1].startswith("sync step-00000001"), "the manifest's removal is durable first"


def test_a_kill_during_deletion_leaves_no_folder_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ref,) = save_steps(tmp_path / "c", 1)

    def die(path: Path) -> None:
        raise OSError(5, "killed here")

    monkeypatch.setattr("shutil.rmtree", die)
    with pytest.raises(OSError, match="killed here"):
        Disk().remove(ref.path)
    assert ref.path.exists()
    assert find_newest(tmp_path / "c") is None


def test_orphans_of_earlier_attempts_and_old_ones_are_collected_younger_ones_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    for name in ("step-00000001-a1-aaaaaa", "step-00000002-a3-bbbbbb", "step-00000003-a3-cccccc", "mine"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__0_0.distcp").write_bytes(b"half")
    old = time.time() - ORPHAN_AGE_S - 10
    os.utime(folder / "step-00000002-a3-bbbbbb", (old, old))
    (ref,) = save_steps(folder, 4, attempt=3)
    assert names_in(folder) == {"step-00000003-a3-cccccc", "mine", ref.name}


def test_what_cannot_be_deleted_does_not_stop_the_run(tmp_path: Path) -> None:
    class Stubborn(RecordingDisk):
        def remove(self, folder: Path) -> None:
            raise PermissionError(13, "Permission denied")

    save_steps(tmp_path / "c", 1, 2, 3, keep=2, disk=Stubborn())
    assert _steps(tmp_path / "c") == [1, 2, 3]
