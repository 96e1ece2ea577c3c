"""A run that is killed at a random moment ends as if nothing had happened: no run lost, no bit changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.checkpoint.load import load_consolidated
from orchestrator.checkpoint.verify import find_newest
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record

from .matrix import STEPS, Kill, losses, run_killed, run_undisturbed, table

FULL = table(20)
# Driver on one rank for every change; in the middle of a save on two ranks with the slow tests; all by hand.
DEFAULT = [row for row in FULL if (row.kind, row.ranks) == ("driver", 1)][:1]
SLOW = [row for row in FULL if (row.kind, row.ranks) == ("mid_save", 2)][:1]

Reference = tuple[dict[int, float], dict[str, Tensor]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Reference]:
    known: dict[int, Reference] = {}

    def reference(ranks: int) -> Reference:
        if ranks not in known:
            run = run_undisturbed(tmp_path_factory.mktemp(f"undisturbed-{ranks}"), ranks)
            known[ranks] = (losses(run), weights(run))
        return known[ranks]

    return reference


def weights(run: RunDir) -> dict[str, Tensor]:
    newest = find_newest(run.checkpoints)
    assert newest is not None
    assert newest.step == STEPS
    return load_consolidated(newest)[0]


def check(kill: Kill, tmp_path: Path, undisturbed: Callable[[int], Reference]) -> None:
    want_losses, want_weights = undisturbed(kill.ranks)
    run = run_killed(tmp_path, kill)
    assert losses(run) == want_losses
    got = weights(run)
    assert got.keys() == want_weights.keys()
    assert all(torch.equal(got[name], want_weights[name]) for name in got)
    record = read_record(run)
    assert record.state == "finished"
    assert record.attempt >= 2
    assert_tracked_once(run, want_losses)


def assert_tracked_once(run: RunDir, want: dict[int, float]) -> None:
    from mlflow import MlflowClient

    record = read_record(run)
    client = MlflowClient(record.mlflow["uri"])
    points = client.get_metric_history(record.mlflow["run_id"], "train/loss")
    assert [point.step for point in sorted(points, key=lambda point: point.step)] == sorted(want)
    assert all(point.value == want[point.step] for point in points)
    assert client.get_run(record.mlflow["run_id"]).info.status == "FINISHED"


def row_id(kill: Kill) -> str:
    return f"{kill.kind}-{kill.ranks}-seed{kill.seed}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kill", DEFAULT, ids=row_id)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    kill: Kill, tmp_path: Path, undisturbed: Callable[[int], Reference]
) -> None:
    check(kill, tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kill", SLOW, ids=row_id)
def test_a_run_on_two_workers_survives_every_kind_of_kill(
    kill: Kill, tmp_path: Path, undisturbed: Callable[[int], Reference]
) -> None:
    check(kill, tmp_path, undisturbed)


@pytest.mark.soak
@pytest.mark.ray
@pytest.mark.parametrize("kill", FULL, ids=row_id)
def test_twenty_random_kills_lose_nothing(kill: Kill, tmp_path: Path, undisturbed: Callable[[int], Reference]) -> None:
    check(kill, tmp_path, undisturbed)
