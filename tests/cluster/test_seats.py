"""The rank map: written by ranks, told once an attempt, kept for MLflow; a rank on the wrong node refuses to train."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cluster.events import Event
from orchestrator.cluster.failure import classify
from orchestrator.cluster.rooms import no_room, num_ranks, selectors
from orchestrator.cluster.seats import Seat, SeatPlan, own_seat, require_node, write_seat
from orchestrator.errors import ClusterError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Plan, Resources
from orchestrator.plan.seating import Room
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec


def plan(**parallel: int) -> Plan:
    job = {
        "model": {"use": "mlp", "inputs": 64, "hidden": [16, 16], "outputs": 10},
        "data": {"use": "digits", "flat": True},
        "train": {"steps": 2, "batch_size": 32},
        "parallel": {"replicate": 1, **parallel},
        "cluster": {"address": "auto", "gpus_per_worker": 0},
    }
    return build_plan(JobSpec.model_validate(job), Available.unknown())


def tell(run: RunDir, nodes: list[str], attempt: int = 1, **parallel: int) -> tuple[list[Event], list[Path]]:
    events, kept = list[Event](), list[Path]()
    seats = SeatPlan(run, plan(**parallel), events.append, kept.append)
    seats.begin(attempt)
    for rank, node in enumerate(nodes):
        seats.poll()
        assert not events, "told before all ranks are seated"
        write_seat(run, attempt, Seat(rank, rank % 2, f"{node}123456789", f"10.0.0.{node}", f"host-{node}"))
    seats.poll()
    seats.poll()
    return events, kept


def test_the_map_is_told_once_and_kept_with_node_device_and_coordinates(tmp_path: Path) -> None:
    (event,), (folder,) = tell(RunDir(tmp_path), ["1", "1", "2", "2"], pipeline=2, tensor=2)
    assert event.kind == "ranks"
    assert event.text == "10.0.0.1: ranks 0-1; 10.0.0.2: ranks 2-3; across nodes: pipeline"
    assert folder == tmp_path / "artifacts" / "layout"
    found = json.loads((folder / "rank_map.json").read_text())
    assert found["layout"] == "4 ranks = pipeline 2 x tensor 2"
    assert found["ranks"][3] == {
        "rank": 3,
        "node": "2123456789",
        "address": "10.0.0.2",
        "host": "host-2",
        "device": "cpu",
        "coordinates": {"pipeline": 1, "replicate": 0, "shard": 0, "context": 0, "tensor": 1},
    }
    lines = (folder / "rank_map.txt").read_text().splitlines()
    assert lines[3] == "rank 3  10.0.0.2 21234567  cpu  pipeline 1, tensor 1"
    assert event.data["lines"] == lines


def test_a_tensor_group_across_nodes_is_warned_of(tmp_path: Path) -> None:
    (event, note), _ = tell(RunDir(tmp_path), ["1", "2"], tensor=2)
    assert event.text.endswith("across nodes: tensor")
    assert note.kind == "note"
    assert "Lower parallel.tensor" in note.text


def test_each_attempt_has_a_map_of_its_own(tmp_path: Path) -> None:
    tell(RunDir(tmp_path), ["1", "1"], replicate=2)
    (event,), _ = tell(RunDir(tmp_path), ["3", "4"], attempt=2, replicate=2)
    assert event.text == "10.0.0.3: rank 0; 10.0.0.4: rank 1; across nodes: replicate"


def test_many_nodes_are_summed_up(tmp_path: Path) -> None:
    (event,), _ = tell(RunDir(tmp_path), [str(number) for number in range(8)], replicate=8)
    assert event.text.count("10.0.0.") == 3
    assert "... 5 more nodes" in event.text


def test_a_rank_on_another_node_than_it_was_meant_for_refuses() -> None:
    seat = own_seat(3, 0, node="abc", address="10.0.0.7")
    require_node(seat, "")
    require_node(seat, "abc")
    with pytest.raises(
        ClusterError, match=r"rank 3 was placed on node abc \(10\.0\.0\.7\), it belongs on node xyz"
    ) as e:
        require_node(seat, "xyz")
    assert classify(e.value) == "placement"


def test_room_is_what_every_resource_leaves() -> None:
    need = Resources(4, cpus_per_worker=0.5, gpus_per_worker=1.0, backend="nccl", device="cuda")
    assert num_ranks({"CPU": 8.0, "GPU": 3.0}, need) == 3
    assert num_ranks({"CPU": 1.0, "GPU": 8.0}, need) == 2
    assert num_ranks({"CPU": 64.0}, need) == 0
    assert num_ranks({"CPU": 1.5}, Resources(2, 0.5, 0.0, "gloo", "cpu")) == 3
    shares = Resources(4, cpus_per_worker=1.0, gpus_per_worker=0.75, backend="gloo", device="cuda")
    assert num_ranks({"CPU": 8.0, "GPU": 3.0}, shares) == 3, (
        "three GPUs have no room for four workers of three quarters"
    )


def test_every_worker_is_pinned_to_its_node_and_none_where_ray_chooses() -> None:
    assert selectors(("a", "b")) == [{"ray.io/node-id": "a"}, {"ray.io/node-id": "b"}]
    assert selectors(()) is None


def test_no_room_says_what_every_node_holds() -> None:
    error = no_room(Layout(pipeline=2, tensor=2), [Room("a" * 56, 1, 2), Room("b" * 56, 2, 2)], 30.0)
    assert "4 ranks in whole tensor groups of 2 within 30 s" in error.message
    assert "aaaaaaaa 1 of 2, bbbbbbbb 2 of 2" in error.message
