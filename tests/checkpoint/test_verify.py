"""Damaged checkpoints are found, whatever the damage, and the next older one is used; never a silent fresh start."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.checkpoint.load import load_into
from orchestrator.checkpoint.manifest import CheckpointRef, Manifest
from orchestrator.checkpoint.verify import find_newest, open_checkpoint
from orchestrator.errors import CheckpointError
from tests.checkpoint.states import assert_same, make_state, save_steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
FILES = ["__0_0.distcp", ".metadata", "rng-0.safetensors", "manifest.json"]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 3, len(data) // 3 + 64):
        data[place] ^= 0x40
    path.write_bytes(data)


def _remove(path: Path) -> None:
    path.unlink()


def _rename(path: Path) -> None:
    path.rename(path.with_name(path.name + ".old"))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [_truncate, _empty, _flip, _remove, _rename, _folder]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_passed_over_for_the_next_older(
    tmp_path: Path, damage: Callable[[Path], None], name: str
) -> None:
    _, older, newest = save_steps(tmp_path / "c", 1, 2, 3)
    damage(newest.path / name)
    found = find_newest(tmp_path / "c")
    assert found is not None
    assert found.name == older.name
    uncommitted = name == "manifest.json" and damage in (_remove, _rename)
    assert [one.name for one in found.skipped] == ([] if uncommitted else [newest.name])
    assert all(one.reason for one in found.skipped)
    state = make_state(9)
    load_into(found, state)
    assert_same(state, 2)


def test_when_none_verifies_the_error_names_each_and_why(tmp_path: Path) -> None:
    first, second = save_steps(tmp_path / "c", 1, 2)
    _flip(first.path / "__0_0.distcp")
    _truncate(second.path / ".metadata")
    with pytest.raises(CheckpointError) as caught:
        find_newest(tmp_path / "c")
    for ref, reason in ((first, "SHA-256 differs"), (second, ".metadata has")):
        assert ref.name in caught.value.message
        assert reason in caught.value.message
    assert "silently" in caught.value.hint


def test_only_a_run_that_never_committed_has_no_checkpoint(tmp_path: Path) -> None:
    assert find_newest(tmp_path / "nothing") is None
    (tmp_path / "c").mkdir()
    assert find_newest(tmp_path / "c") is None
    (ref,) = save_steps(tmp_path / "c", 1)
    (ref.path / "manifest.json").unlink()
    assert find_newest(tmp_path / "c") is None, "a folder without a manifest does not exist"


def test_newer_is_a_later_step_then_a_later_holder(tmp_path: Path) -> None:
    save_steps(tmp_path / "c", 5, attempt=1, token=1)
    (again,) = save_steps(tmp_path / "c", 5, attempt=1, token=2)
    save_steps(tmp_path / "c", 4, attempt=2, token=3)
    found = find_newest(tmp_path / "c")
    assert found is not None
    assert found.name == again.name


def test_foreign_things_in_the_folder_are_ignored(tmp_path: Path) -> None:
    (ref,) = save_steps(tmp_path / "c", 1)
    (tmp_path / "c" / "notes.txt").write_text("hello")
    shutil.copytree(ref.path, tmp_path / "c" / "step-2-copy")
    (ref.path / ".DS_Store").write_text("harmless")
    found = find_newest(tmp_path / "c")
    assert found is not None
    assert (found.name, found.skipped) == (ref.name, ())


def test_a_checkpoint_may_be_moved_but_not_pass_for_another_step(tmp_path: Path) -> None:
    (ref,) = save_steps(tmp_path / "c", 1)
    moved = tmp_path / "backup"
    shutil.copytree(ref.path, moved)
    assert open_checkpoint(moved).manifest == ref.manifest
    ref.path.rename(ref.path.with_name("step-00000009-a1-abcdef"))
    with pytest.raises(CheckpointError, match="the folder's name differs"):
        find_newest(tmp_path / "c")


def _edited(ref: CheckpointRef, **changes: object) -> bytes:
    return json.dumps(json.loads(ref.manifest.to_json()) | changes).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"step": -1},
        {"step": True},
        {"step": "1"},
        {"token": 1.5},
        {"world_size": None},
        {"best": 1},
        {"values": []},
        {"surprise": 1},
        {"files": {}},
        {"files": [{"name": "x", "size": 1}]},
        {"files": [{"name": "x", "size": -1, "sha256": "0" * 64}]},
        {"files": [{"name": "x", "size": 1, "sha256": "zz"}]},
        {"files": [{"name": "x", "size": 1, "sha256": "0" * 64}] * 2},
        {"meta": {"step": 2}},
        {"meta": {"step": 1, "layout": []}},
        {"meta": {}},
        {"meta": 3},
    ],
    ids=str,
)
def test_a_misshapen_manifest_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    (ref,) = save_steps(tmp_path / "c", 1)
    assert Manifest.from_json(_edited(ref)) == ref.manifest
    with pytest.raises(CheckpointError, match="manifest"):
        Manifest.from_json(_edited(ref, **changes))


@pytest.mark.parametrize("data", [b"", b"[]", b"nonsense", b"[" * 100_000, b"\xff\xfe"])
def test_a_manifest_that_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="manifest is not"):
        Manifest.from_json(data)


def test_finding_a_checkpoint_loads_no_torch() -> None:
    code = "import sys, orchestrator.checkpoint.verify; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
