"""Trials shipped by their sweep's sender: one whose MLflow run was deleted costs the others nothing."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import pytest

from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import RunRecord, now_iso, write_record
from orchestrator.tracking import store
from orchestrator.tracking.children import Children
from orchestrator.tracking.cursor import count_remaining
from orchestrator.tracking.handle import sync
from orchestrator.tracking.pump import Pump
from orchestrator.tracking.request import read_state, write_request, write_state
from tests.tracking.conftest import end_run, history, write_steps

PumpBuilder = Callable[..., Pump]


def add_trial(sweep: RunDir, name: str, steps: int, *, ended: bool) -> RunDir:
    """Add a trial that has recorded so many steps."""
    trial = RunDir(sweep.trials / name)
    trial.path.mkdir(parents=True)
    write_request(trial, uri=f"sqlite:///{sweep.storage / 'mlflow.db'}")
    write_steps(trial, "rank0-a1", range(1, steps + 1))
    if ended:
        end_run(trial)
    return trial


@pytest.fixture
def children(run: RunDir, pump: PumpBuilder) -> Callable[[], Children]:
    """Return what a newly started sender of the sweep ships its trials with."""

    def build() -> Children:
        shipper = pump().shipper
        return Children(shipper.client, run, shipper.experiment_id, shipper.run_id, once=False)

    return build


def drain(children: Children) -> None:
    """Ship until nothing moves."""
    while children.round():
        pass


def test_a_finished_trial_deleted_in_mlflow_keeps_no_other_from_being_shipped(
    run: RunDir, children: Callable[[], Children], caplog: pytest.LogCaptureFixture
) -> None:
    first = add_trial(run, "t000", 3, ended=True)
    before = children()
    drain(before)
    before._client.delete_run(read_state(first).run_id)
    last = add_trial(run, "t001", 4, ended=True)
    resumed = children()  # opens every trial anew
    with caplog.at_level(logging.WARNING, "orchestrator"):
        drain(resumed)
        drain(resumed)
    assert before._client.get_run(read_state(last).run_id).info.status == "FINISHED"
    assert count_remaining(run) == 0
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "t000" in said[0]
    assert f"mlflow runs restore --run-id {read_state(first).run_id}" in said[0]


@pytest.mark.parametrize("left", ["points", "last word"])
def test_a_trial_deleted_while_it_is_shipped_waits_for_its_restoration_and_no_other_for_it(
    run: RunDir, children: Callable[[], Children], left: str
) -> None:
    first = add_trial(run, "t000", 3, ended=False)
    sender = children()
    drain(sender)
    if left == "points":
        write_steps(first, "rank0-a2", range(4, 6))
    end_run(first)
    client, child = sender._client, read_state(first).run_id
    client.delete_run(child)
    last = add_trial(run, "t001", 4, ended=True)
    drain(sender)
    assert client.get_run(read_state(last).run_id).info.status == "FINISHED"
    assert count_remaining(run) == (3 if left == "points" else 1)
    assert "was deleted" in read_state(first).error

    # Deleted still, it is tried again only when there is more to tell; restored, all is there.
    client.restore_run(child)
    again = children()
    drain(again)
    assert client.get_run(child).info.status == "FINISHED"
    assert len(history(client, child)) == (5 if left == "points" else 3)
    assert read_state(first).error == ""


def test_a_trial_purged_while_it_is_shipped_goes_on_in_a_new_run(run: RunDir, children: Callable[[], Children]) -> None:
    trial = add_trial(run, "t000", 3, ended=False)
    sender = children()
    drain(sender)
    end_run(trial)
    client, old = sender._client, read_state(trial).run_id
    client.delete_run(old)
    client._tracking_client.store._hard_delete_run(old)  # as `mlflow gc` does
    drain(sender)
    assert "runs sync" in read_state(trial).hint
    assert "restore" not in read_state(trial).hint
    drain(children())
    assert read_state(trial).run_id != old
    assert client.get_run(read_state(trial).run_id).info.status == "FINISHED"


def test_a_server_that_is_away_is_no_deletion(
    run: RunDir, children: Callable[[], Children], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("away")

    add_trial(run, "t000", 3, ended=True)
    sender = children()
    monkeypatch.setattr(store, "ensure_run", fail)
    with pytest.raises(ConnectionError):
        sender.round()


def test_a_sync_says_which_trial_was_not_told_and_why(run: RunDir, pump: PumpBuilder, sync_here: None) -> None:
    trial = add_trial(run, "t000", 3, ended=False)
    sweep = pump()
    client = sweep.shipper.client
    write_state(run, read_state(run), state="ready", run_id=sweep.shipper.run_id)
    sweep.note_closed(True)
    assert (sync(run).shipped, sync(run).unsent) == (3, ())
    child = read_state(trial).run_id
    client.delete_run(child)
    write_record(
        trial, RunRecord("t000", "job", state="running", created=now_iso(), pid=2**22 + 1, host=socket.gethostname())
    )
    counts = sync(run)  # no record is left, but its status is
    assert (counts.shipped, counts.remaining) == (0, 0)
    assert [line.split(":")[0] for line in counts.unsent] == ["t000"]
    assert f"mlflow runs restore --run-id {child}" in counts.unsent[0]
    client.restore_run(child)
    assert sync(run).unsent == ()
    assert client.get_run(child).info.status == "KILLED"
