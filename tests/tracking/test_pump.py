"""What reaches MLflow: every point once, whatever is killed or repeated; bad records aside; secrets not at all."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.runs.paths import RunDir
from orchestrator.runs.spool import SpoolWriter
from orchestrator.tracking import pump as pump_module
from orchestrator.tracking.cursor import count_remaining, load_cursor
from orchestrator.tracking.pump import Pump
from orchestrator.tracking.ship import RunGoneError
from tests.tracking.conftest import assert_each_step_once, drain, end_run, history, write_steps

PumpBuilder = Callable[..., Pump]


def test_points_keep_their_step_and_their_original_time(run: RunDir, pump: PumpBuilder) -> None:
    write_steps(run, "rank0-a1", range(1, 2501))
    times = [json.loads(line)["time_ms"] for line in (run.spool / "rank0-a1.jsonl").read_text().splitlines()]
    assert count_remaining(run) == 2500
    sender = pump()
    drain(sender)
    assert count_remaining(run) == 0
    stored = sender.shipper.client.get_metric_history(sender.shipper.run_id, "train/loss")
    assert_each_step_once([(m.step, m.value) for m in sorted(stored, key=lambda m: m.step)], range(1, 2501))
    assert [m.timestamp for m in sorted(stored, key=lambda m: m.step)] == times


def test_a_sender_that_dies_between_sending_and_noting_it_doubles_nothing(
    run: RunDir, pump: PumpBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(7)
    write_steps(run, "rank0-a1", range(1, 1201))
    real, died = pump_module.save_cursor, 0

    def save_or_die(*arguments: object) -> None:
        if chance.random() < 0.5:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(pump_module, "save_cursor", save_or_die)
    monkeypatch.setattr(pump_module, "MAX_POINTS", 100)
    while True:
        sender = pump()
        sender._max_points = 100
        try:
            drain(sender)
            break
        except KeyboardInterrupt:
            died += 1
    assert died >= 4
    assert_each_step_once(history(sender.shipper.client, sender.shipper.run_id), range(1, 1201))


def test_steps_repeated_after_a_resume_are_sent_once_and_the_first_value_stands(run: RunDir, pump: PumpBuilder) -> None:
    write_steps(run, "rank0-a1", range(1, 58))
    drain(pump())
    with SpoolWriter(run.spool / "rank0-a2.jsonl") as spool:
        for step in range(51, 81):
            spool.metrics(step, {"train/loss": step / 8 if step > 57 else -1.0})
    sender = pump()
    drain(sender)
    assert_each_step_once(history(sender.shipper.client, sender.shipper.run_id), range(1, 81))


def test_attempts_left_by_a_dead_driver_are_shipped_in_their_order(run: RunDir, pump: PumpBuilder) -> None:
    for attempt in (10, 9, 2, 1):
        write_steps(run, f"rank0-a{attempt}", range(attempt * 10, attempt * 10 + 20))
    sender = pump()
    drain(sender)
    wanted = sorted({step for attempt in (1, 2, 9, 10) for step in range(attempt * 10, attempt * 10 + 20)})
    points = history(sender.shipper.client, sender.shipper.run_id)
    assert [step for step, _ in points] == wanted


def test_system_metrics_of_one_step_are_all_kept(run: RunDir, pump: PumpBuilder) -> None:
    with SpoolWriter(run.spool / "rank0-a1.jsonl") as spool:
        for value in (1.0, 2.0, 3.0):
            spool.metrics(5, {"system/cpu_percent": value})
    sender = pump()
    drain(sender)
    assert len(history(sender.shipper.client, sender.shipper.run_id, "system/cpu_percent")) == 3


def test_a_poison_point_is_set_aside_and_its_neighbours_arrive(run: RunDir, pump: PumpBuilder) -> None:
    write_steps(run, "rank0-a1", range(1, 101))
    with SpoolWriter(run.spool / "rank0-a1.jsonl") as spool:
        spool.metrics(101, {"train/loss": 101 / 8, "not a # name": 1.0})
        for step in range(102, 200):
            spool.metrics(step, {"train/loss": step / 8})
    with open(run.spool / "rank0-a1.jsonl", "a") as file:
        file.write('garbage\n{"kind":"metrics","step":"x","time_ms":1,"values":{}}\n{"kind":"telegram"}\n')
    write_steps(run, "rank0-a1", range(200, 211))
    sender = pump()
    drain(sender)
    assert_each_step_once(history(sender.shipper.client, sender.shipper.run_id), range(1, 211))
    rejected = [json.loads(line) for line in (run.spool / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == load_cursor(run).rejected == 4
    assert json.loads(rejected[0]["record"]) == {"key": "not a # name", "value": 1.0, "step": 101}
    assert "Names may only contain" in rejected[0]["reason"]
    assert count_remaining(run) == 0


def test_loads_of_experts_are_drawn_and_no_curves_of_their_own(run: RunDir, pump: PumpBuilder) -> None:
    with SpoolWriter(run.spool / "rank0-a1.jsonl") as spool:
        spool.record("experts", step=1, loads={"block1": [1.5, 0.5]})
    mine = pump()
    drain(mine)
    assert mine.cursor.rejected == 0
    assert not mine.shipper.client.get_run(mine.shipper.run_id).data.metrics


def test_values_that_are_not_finite_arrive_as_mlflow_keeps_them(run: RunDir, pump: PumpBuilder) -> None:
    with SpoolWriter(run.spool / "rank0-a1.jsonl") as spool:
        spool.metrics(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    sender = pump()
    drain(sender)
    stored = sender.shipper.client.get_run(sender.shipper.run_id).data.metrics
    assert math.isnan(stored["a"])
    assert stored["b"] > 1e308
    assert stored["c"] < -1e308


def test_parameters_are_cut_masked_and_sent_beyond_a_hundred(run: RunDir, pump: PumpBuilder) -> None:
    values = {f"p{i}": i for i in range(250)} | {"long": "x" * 9000, "data.api_key": "hunter2"}
    values |= {"track.uri": "http://ann:hunter2@host"}
    with SpoolWriter(run.spool / "driver.jsonl") as spool:
        spool.record("params", values=values)
        spool.record("params", values={"p0": "changed", "extra": 1})
        spool.record("tags", values={"source": "git+https://ann:hunter2@host/repo"})
        spool.record("note", text="finished: see http://ann:hunter2@host")
        spool.record("text", text="uri: http://ann:hunter2@host", artifact_file="config/resolved.yaml")
    sender = pump()
    drain(sender)
    data = sender.shipper.client.get_run(sender.shipper.run_id).data
    assert data.params["p249"] == "249"
    assert data.params["p0"] == "0"
    assert data.params["extra"] == "1"
    assert len(data.params["long"]) == 6000
    assert data.params["data.api_key"] == "***"
    assert data.params["track.uri"] == "http://***@host"
    assert data.tags["mlflow.note.content"] == "finished: see http://***@host"
    artifact = sender.shipper.client.download_artifacts(sender.shipper.run_id, "config/resolved.yaml")
    assert Path(artifact).read_text() == "uri: http://***@host"
    assert "hunter2" not in str(data.tags) + str(data.params) + (run.spool / "rejected.jsonl").read_text()


def test_the_dataset_and_artifacts_are_logged_once_however_often_they_are_sent(
    run: RunDir, pump: PumpBuilder, tmp_path: Path
) -> None:
    figure = tmp_path / "loss.png"
    figure.write_bytes(b"png")
    with SpoolWriter(run.spool / "driver.jsonl") as spool:
        for _ in range(2):
            spool.record(
                "dataset", name="digits", digest="0123456789abcdef", source="sklearn", num_samples=5, context="training"
            )
            spool.record("artifact", path=str(figure), artifact_path="figures")
        spool.record("artifact", path=str(tmp_path / "gone.png"))
    sender = pump()
    drain(sender)
    inputs = sender.shipper.client.get_run(sender.shipper.run_id).inputs.dataset_inputs
    assert [(item.dataset.name, item.dataset.digest) for item in inputs] == [("digits", "0123456789abcdef")]
    assert [item.path for item in sender.shipper.client.list_artifacts(sender.shipper.run_id, "figures")] == [
        "figures/loss.png"
    ]
    assert "gone.png" in (run.spool / "rejected.jsonl").read_text()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_last_word_is_sent_last_with_the_true_end_time(run: RunDir, pump: PumpBuilder, status: str) -> None:
    sender = pump()
    end_run(run, status)
    write_steps(run, "finish-a1", range(1, 5), key="test/loss")
    ended = json.loads((run.spool / "driver.jsonl").read_text())["time_ms"]
    drain(sender)
    stored = sender.shipper.client.get_run(sender.shipper.run_id)
    assert (stored.info.status, stored.info.end_time) == (status, ended)
    assert len(history(sender.shipper.client, sender.shipper.run_id, "test/loss")) == 4


def test_a_resumed_run_reopens_its_mlflow_run_and_the_old_last_word_does_not_end_it(
    run: RunDir, pump: PumpBuilder
) -> None:
    first = pump()
    end_run(run, "KILLED")
    drain(first)
    again = pump(mlflow_run_id=first.shipper.run_id)
    drain(again)
    client, run_id = again.shipper.client, again.shipper.run_id
    assert run_id == first.shipper.run_id
    assert client.get_run(run_id).info.status == "RUNNING"
    end_run(run, "FINISHED")
    drain(again)
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_run_that_was_created_but_never_announced_is_found_again(run: RunDir, pump: PumpBuilder) -> None:
    first, second = pump(), pump()
    assert first.shipper.run_id == second.shipper.run_id
    assert len(first.shipper.client.search_runs([first.shipper.experiment_id])) == 1


def test_points_for_a_deleted_run_wait_until_it_is_restored(run: RunDir, pump: PumpBuilder) -> None:
    sender = pump()
    write_steps(run, "rank0-a1", range(1, 11))
    sender.shipper.client.delete_run(sender.shipper.run_id)
    with pytest.raises(RunGoneError, match="restore it"):
        sender.round()
    assert count_remaining(run) == 10
    sender.shipper.client.restore_run(sender.shipper.run_id)
    drain(sender)
    assert_each_step_once(history(sender.shipper.client, sender.shipper.run_id), range(1, 11))


def test_a_record_that_fails_again_is_no_sign_of_life(
    run: RunDir, pump: PumpBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    signs: list[bool] = []

    @contextmanager
    def note(run: RunDir, *, counts: bool) -> Iterator[None]:
        signs.append(counts)
        yield

    def fail(record: dict[str, object]) -> None:
        raise ConnectionError("away")

    with SpoolWriter(run.spool / "driver.jsonl") as spool:
        spool.record("tags", values={"a": "b"})
        spool.record("tags", values={"c": "d"})
    sender = pump()
    monkeypatch.setattr(pump_module, "busy", note)
    with monkeypatch.context() as away:
        away.setattr(sender.shipper, "send", fail)
        with pytest.raises(ConnectionError):
            sender.round()
        sender.is_failing = True  # as the sender says
        with pytest.raises(ConnectionError):
            sender.round()
    sender.round()
    assert signs == [True, False, False, True]
