"""Saving and loading back, on one process and on gloo ranks, in the foreground and in the background."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint import commit
from orchestrator.checkpoint.manifest import CheckpointMeta, parse_folder_name
from orchestrator.checkpoint.verify import find_newest
from orchestrator.errors import CheckpointError
from orchestrator.testing.ranks import run_ranks
from tests.checkpoint.states import RecordingDisk, assert_same, make_state, make_store, names_in, save_steps

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

META = CheckpointMeta(
    step=7,
    epoch=2,
    samples=96,
    seed=3,
    job_digest="abc",
    layout={"replicate": 2, "shard": 1},
    scheduler={"last_lr": 0.1 + 0.2},
    monitor={"best": 0.5, "bad": 1},
    metrics={"val/loss": 1 / 3},
    mlflow_run_id="0f",
    mlflow_sequence=12,
    extra={"tail": [1, 2]},
)


def _save_and_load(rank: int, world_size: int, folder: str, layout: str, background: bool) -> tuple[Any, int, bool]:
    store = make_store(Path(folder), rank, world_size, background=background)
    blocked = store.save(make_state(7, layout, world_size), META, best=True)
    assert blocked > 0
    store.wait()
    expected = torch.rand(3)
    torch.manual_seed(0)
    ref = store.find_newest()
    assert ref is not None
    state = make_state(1, layout, world_size)
    meta = store.load_into(ref, state)
    assert_same(state, 7)
    exact = store.restore_rng(ref, seed=3)
    same_stream = torch.equal(torch.rand(3), expected)
    store.close()
    assert same_stream
    return dataclasses.asdict(meta), len(ref.manifest.files), exact


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize(
    ("world_size", "layout"),
    [(1, "alone"), (2, "replicate"), (2, "shard"), (4, "both")],
)
def test_a_state_comes_back_bit_for_bit(tmp_path: Path, world_size: int, layout: str, background: bool) -> None:
    results = run_ranks(_save_and_load, world_size, str(tmp_path / "checkpoints"), layout, background)
    for meta, num_files, exact in results:
        assert meta == dataclasses.asdict(META)
        assert num_files == 2 * world_size + 1, "a shard and random-number states per rank, and .metadata"
        assert exact


def test_a_background_save_holds_the_state_of_the_moment_it_was_called(tmp_path: Path) -> None:
    store = make_store(tmp_path / "c", background=True)
    state = make_state(1)
    for step in (1, 2, 3):
        _become(state, step)
        store.save(state, CheckpointMeta(step=step))
        _become(state, 99)
    store.wait()
    newest = store.find_newest()
    assert newest is not None
    assert newest.step == 3
    loaded = make_state(50)
    store.load_into(newest, loaded)
    assert_same(loaded, 3)
    store.close()


def test_only_one_save_is_in_flight_and_the_next_waits_for_it(tmp_path: Path) -> None:
    gate = threading.Event()
    running = []

    class SlowDisk(RecordingDisk):
        def commit_file(self, path: Path, data: bytes) -> None:
            running.append(path.parent.name)
            gate.wait(30)
            super().commit_file(path, data)

    store = make_store(tmp_path / "c", background=True, disk=SlowDisk())
    quick = store.save(make_state(1), CheckpointMeta(step=1))
    assert store.last_committed is None
    threading.Timer(0.5, gate.set).start()
    slow = store.save(make_state(2), CheckpointMeta(step=2))
    assert slow > 0.2 > quick, "the second save waited for the first"
    assert store.last_committed is not None
    store.wait()
    assert store.last_committed.step == 2
    assert store.last_write_s > 0
    store.close()


def test_an_error_in_the_background_surfaces_at_the_next_call_and_the_store_goes_on(tmp_path: Path) -> None:
    class FailOnce(RecordingDisk):
        def commit_file(self, path: Path, data: bytes) -> None:
            if "step-00000001" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            super().commit_file(path, data)

    store = make_store(tmp_path / "c", background=True, disk=FailOnce())
    store.save(make_state(1), CheckpointMeta(step=1))
    with pytest.raises(CheckpointError, match=r"Permission denied.*manifest\.json"):
        store.save(make_state(2), CheckpointMeta(step=2))
    store.save(make_state(3), CheckpointMeta(step=3))
    store.wait()
    assert [parse_folder_name(name) for name in names_in(tmp_path / "c")] == [(3, 1)], "the failed one left nothing"
    store.close()


def test_closing_never_raises(tmp_path: Path) -> None:
    store = make_store(tmp_path / "c", background=True, check_token=lambda: False)
    store.save(make_state(1), CheckpointMeta(step=1))
    store.close()
    assert find_newest(tmp_path / "c") is None


def test_every_save_has_a_folder_of_its_own(tmp_path: Path) -> None:
    save_steps(tmp_path / "c", 5)
    save_steps(tmp_path / "c", 5)
    assert len(names_in(tmp_path / "c")) == 2
    assert {parse_folder_name(name) for name in names_in(tmp_path / "c")} == {(5, 1)}


def test_the_manifest_is_written_after_everything_else_is_durable(tmp_path: Path) -> None:
    disk = RecordingDisk()
    store = make_store(tmp_path / "c", disk=disk)
    store.save(make_state(1), CheckpointMeta(step=1))
    store.close()
    kinds = [one for one in disk.operations if not one.startswith("sync")]
    name = next(iter(names_in(tmp_path / "c")))
    assert kinds == [
        f"mkdir {name}",
        "open __0_0.distcp",
        "open .metadata.tmp",
        "open rng-0.safetensors",
        "commit manifest.json",
        "open manifest.json.tmp",
    ]
    assert disk.operations[-1] == f"sync {name}", "the manifest's name is durable at the end"


def test_a_stale_token_commits_nothing(tmp_path: Path) -> None:
    answers = iter([True, False])
    store = make_store(tmp_path / "c", token=4, check_token=lambda: next(answers))
    with pytest.raises(CheckpointError, match=r"taken over this run \(token 4 is stale\)"):
        store.save(make_state(1), CheckpointMeta(step=1))
    assert names_in(tmp_path / "c") == set(), "asked again right before the commit, and cleaned up"
    store.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("section", ["model", "optim"])
def test_a_state_that_is_not_finite_is_not_committed(tmp_path: Path, bad: float, section: str) -> None:
    state = make_state(1)
    tensor = state["model"]["head.weight"] if section == "model" else state["optim"]["state"]["head.weight"]["exp_avg"]
    tensor[3, 2] = bad
    store = make_store(tmp_path / "c")
    with pytest.raises(CheckpointError, match=rf"{section}/.*head.weight.* holds NaN or infinity"):
        store.save(state, CheckpointMeta(step=1))
    assert find_newest(tmp_path / "c") is None
    store.close()


def _one_rank_fails(rank: int, world_size: int, folder: str, background: bool) -> str:
    class Broken(RecordingDisk):
        def on_operation(self, what: str, path: Path) -> None:
            if rank == 1 and path.name == "__1_0.distcp":
                raise OSError(5, "Input/output error", str(path))

    store = make_store(Path(folder), rank, world_size, background=background, disk=Broken())
    try:
        store.save(make_state(1, "shard", world_size), CheckpointMeta(step=1))
        store.wait()
    except CheckpointError as error:
        return str(error)
    finally:
        store.close()
    return ""


@pytest.mark.parametrize("background", [False, True])
def test_when_one_rank_fails_all_ranks_hear_why(tmp_path: Path, background: bool) -> None:
    first, second = run_ranks(_one_rank_fails, 2, str(tmp_path / "c"), background)
    assert first == second
    assert "rank 1" in first
    assert "Input/output error" in first
    assert names_in(tmp_path / "c") == set()


def test_a_leaf_that_would_need_pickle_is_refused_at_the_save(tmp_path: Path) -> None:
    store = make_store(tmp_path / "c")
    state = make_state(1)
    state["optim"]["odd"] = {"generator": torch.Generator()}
    with pytest.raises(CheckpointError, match="optim/odd/generator holds a Generator"):
        store.save(state, CheckpointMeta(step=1))
    store.close()


def test_meta_that_is_not_json_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "c")
    with pytest.raises(CheckpointError, match="cannot be described in JSON"):
        store.save(make_state(1), CheckpointMeta(step=1, extra={"when": object()}))  # type: ignore[dict-item]
    assert names_in(tmp_path / "c") == set()
    store.close()


def test_a_store_that_disagrees_with_the_process_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="rank 1 of 2 was announced"):
        make_store(tmp_path / "c", 1, 2)


def test_a_file_that_rank_0_cannot_see_stops_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = commit.write_part

    def write_and_lose(folder: Path, *arguments: Any) -> Any:
        entries = original(folder, *arguments)
        (folder / entries[1].name).unlink()
        return entries

    monkeypatch.setattr(commit, "write_part", write_and_lose)
    store = make_store(tmp_path / "c")
    with pytest.raises(CheckpointError, match="the same folder on every node"):
        store.save(make_state(1), CheckpointMeta(step=1))
    store.close()


def test_an_overlapping_training_thread_is_not_held_up(tmp_path: Path) -> None:
    store = make_store(tmp_path / "c", background=True)
    state = {"model": {"w": torch.randn(1 << 20)}}
    store.save(state, CheckpointMeta(step=1))
    store.wait()
    begun = time.perf_counter()
    blocked = store.save(state, CheckpointMeta(step=2))
    store.wait()
    assert blocked < time.perf_counter() - begun
    store.close()


def _become(state: dict[str, Any], step: int) -> None:
    want = make_state(step)
    for name, tensor in want["model"].items():
        state["model"][name].copy_(tensor)
        state["optim"]["state"][name]["exp_avg"].copy_(want["optim"]["state"][name]["exp_avg"])
        state["optim"]["state"][name]["step"].fill_(step)
    state["optim"]["param_groups"] = want["optim"]["param_groups"]
