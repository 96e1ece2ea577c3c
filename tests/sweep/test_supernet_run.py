"""The driver's side of a supernet's training: whatever interrupts it, its record and its tracking run end truly."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checkpoint.manifest import folder_name
from orchestrator.cluster.failure import Failure
from orchestrator.cluster.trial_worker import Share
from orchestrator.errors import TrainError
from orchestrator.plan.available import Available
from orchestrator.plan.build import build_plan
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record
from orchestrator.spec.load import load_spec
from orchestrator.supernet.page import WEIGHTS_FILE, Nets, Ranking, supernet_seconds, write_ranking
from orchestrator.sweep.feasible import Feasible
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.settle import settle
from orchestrator.sweep.supernet_run import train_supernet
from orchestrator.sweep.workshop import Workshop
from tests.sweep.fakes import (
    DriverKilledError,
    FakePool,
    Training,
    TrainingFailedError,
    drive,
    folder_for,
    release_leases,
)
from tests.sweep.jobs import tiny_sweep

NAME = "supernet-5a43daae"
NETS = Nets(({"use": "cnn", "channels": [4]}, {"use": "cnn", "channels": [8]}))


def ranks(share: Share) -> Training:
    """Train as a worker does: one evaluation, a checkpoint, the ranking."""
    run = RunDir(Path(share.folder))
    yield 10, {"val/accuracy": 0.5}
    (run.checkpoints / "step-10").mkdir(parents=True)
    (run.path / WEIGHTS_FILE).touch()
    scores = ({"val/accuracy": 0.4}, {"val/accuracy": 0.6})
    write_ranking(run, Ranking(scores, str(run.path / WEIGHTS_FILE), "0" * 64, {"val/accuracy": 0.6}))
    return {"status": "finished", "step": 20}


def runs_out_of_memory(share: Share) -> Training:
    yield 10, {"val/accuracy": 0.5}
    raise TrainingFailedError(Failure("oom", "MemoryError", "no memory is left"))


def sweep_folder(path: Path) -> RunDir:
    return folder_for(tiny_sweep(path / "runs", {"space": {"optim.lr": [0.1]}, "trials": 1}))


def train(
    sweep: RunDir,
    work: Callable[[Share], Training],
    on_event: Callable[[int], None] = lambda n: None,
    spent: Callable[[], str] = lambda: "",
) -> Any:
    job = load_spec(tiny_sweep(sweep.storage, {"space": {"optim.lr": [0.1]}, "trials": 1}))
    wide = Feasible(job, build_plan(job, Available.unknown()))
    pool: Any = FakePool(work, on_event=on_event)
    here = Available.unknown()
    workshop = Workshop(sweep, job, pool, here, lambda _: wide, [], lambda event: None, lambda: None, spent)
    return train_supernet(workshop, NAME, wide, NETS)


def last_status(run: RunDir) -> str:
    lines = [json.loads(line) for line in (run.spool / "driver.jsonl").read_text().splitlines()]
    return str([line["status"] for line in lines if line["kind"] == "status"][-1])


def kill_driver_at(event: int) -> Callable[[int], None]:
    def kill(number: int) -> None:
        if number == event:
            raise DriverKilledError

    return kill


def leave_open(sweep: RunDir, event: int, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Train until the driver is killed at an event: nothing after it is carried out."""
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.sweep.supernet_run.SupernetRun.close", lambda *given: None)
        with pytest.raises(DriverKilledError):
            train(sweep, ranks, kill_driver_at(event))
    release_leases(sweep)
    run = RunDir(sweep.trials / NAME)
    assert read_record(run).is_live
    return run


def test_one_whose_driver_was_killed_after_the_ranking_is_closed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = sweep_folder(tmp_path)
    run = leave_open(sweep, 2, monkeypatch)
    assert run.checkpoints.exists()
    found = train(sweep, runs_out_of_memory)
    assert [each["val/accuracy"] for each in found.scores] == [0.4, 0.6]
    record = read_record(run)
    assert (record.state, record.attempt) == ("finished", 1)
    assert record.metrics == {"supernet/val/accuracy": 0.6}
    assert last_status(run) == "FINISHED"
    assert not run.checkpoints.exists()
    lines = (run.path / "ranking.csv").read_text().splitlines()
    assert lines == ["channels,val/accuracy", "4,0.4", "8,0.6"]

    told = len((run.spool / "driver.jsonl").read_text())
    train(sweep, runs_out_of_memory)
    assert len((run.spool / "driver.jsonl").read_text()) == told, "it is closed once"


def test_one_that_nobody_goes_on_with_is_not_left_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_folder(tmp_path)
    run = leave_open(sweep, 1, monkeypatch)
    ledger = Ledger(sweep.sweep / "ledger.jsonl")
    settle(sweep, ledger, "the sweep was interrupted")
    ledger.close()
    record = read_record(run)
    assert (record.state, record.verdict) == ("stopped", "interrupted: the sweep was interrupted")
    assert last_status(run) == "KILLED"


def test_the_record_of_an_attempt_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next attempt would not know of this one, and begin from scratch."""
    sweep = sweep_folder(tmp_path)
    run = RunDir(sweep.trials / NAME)
    kept: list[tuple[str, int]] = []

    def note(handle: int) -> None:
        kept.append((os.readlink(f"/proc/self/fd/{handle}"), os.fstat(handle).st_size))

    def begins(share: Share) -> Training:
        names = [name for name, _ in kept]
        assert any(Path(name).name.startswith(".run.json.") for name in names), "the file"
        assert str(run.path) in names, "the folder that names it"
        assert str(sweep.trials) in names, "the folder that names this one"
        assert all(size > 0 for name, size in kept if Path(name).name.startswith(".run.json."))
        return (yield from ranks(share))

    monkeypatch.setattr(os, "fsync", note)
    assert train(sweep, begins) is not None


def test_a_record_that_is_lost_is_made_up_for_by_the_checkpoints(tmp_path: Path) -> None:
    sweep = sweep_folder(tmp_path)
    run = RunDir(sweep.trials / NAME)
    (run.checkpoints / folder_name(10, 2, "abcdef")).mkdir(parents=True)
    asked: list[Share] = []

    def begins(share: Share) -> Training:
        asked.append(share)
        return (yield from ranks(share))

    train(sweep, begins)
    assert [(share.attempt, share.resume) for share in asked] == [(3, True)]


def until_stopped(share: Share) -> Training:
    """Train without end, saved where it is asked to stop."""
    step = 0
    while not (yield step, {"val/accuracy": 0.5}):
        time.sleep(0.02)
        step += 10
    return {"status": "stopped", "step": step}


def test_a_budget_that_is_spent_stops_it_and_every_attempt_counts(tmp_path: Path) -> None:
    sweep = sweep_folder(tmp_path)
    run = RunDir(sweep.trials / NAME)
    left = iter([""] * 6 + ["the time is up"] * 99)
    assert train(sweep, until_stopped, spent=lambda: next(left)) is None
    assert (read_record(run).state, read_record(run).verdict) == ("stopped", "the time is up")
    first = supernet_seconds(sweep)
    assert first >= 0.02, "one that was interrupted counts, too"
    assert train(sweep, until_stopped, spent=lambda: "the time is up") is None
    assert (supernet_seconds(sweep), read_record(run).attempt) == (first, 1), "nothing is begun without a budget"
    assert len(train(sweep, ranks).scores) == 2
    assert read_record(run).attempt == 2
    assert supernet_seconds(sweep) > first, "both attempts count, not what the ranking says of the last"


def test_a_sweep_watches_its_worker_seconds_while_its_supernet_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.sweep.supernet_run._NOTE_S", 0.0)
    space = {"model.channels": [[4], [8]]}
    sections: dict[str, Any] = {"model": {"use": "cnn"}, "data": {"use": "digits"}}
    search = {"use": "supernet", "steps": 40}
    data = tiny_sweep(tmp_path / "runs", {"space": space, "search": search, "trials": None, "worker_s": 0.2})
    data = data | sections | {"sweep": data["sweep"] | {"objectives": {"val/accuracy": "max"}}}
    sweep = folder_for(data)
    loop = drive(sweep, data, FakePool(until_stopped))
    assert loop.ended == "the budget of 0.2 worker seconds is spent"
    assert 0.2 <= supernet_seconds(sweep) < 30
    assert loop.ledger.trials == {}


def test_one_that_fails_is_told_as_failed_with_its_reason(tmp_path: Path) -> None:
    sweep = sweep_folder(tmp_path)
    with pytest.raises(TrainError, match="no memory is left"):
        train(sweep, runs_out_of_memory)
    run = RunDir(sweep.trials / NAME)
    assert read_record(run).state == "failed"
    assert "no memory is left" in read_record(run).verdict
    assert last_status(run) == "FAILED"
