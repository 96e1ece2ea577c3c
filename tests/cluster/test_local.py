"""One supervised child without Ray: trains, survives kills and hangs, and tells what went wrong."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from orchestrator.cluster.events import Event
from orchestrator.cluster.local import LocalAttempt
from orchestrator.errors import ClusterError, TrainError
from orchestrator.runs import control
from orchestrator.runs.heartbeat import read_heartbeats
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import is_same_process, read_record
from tests.cluster.jobs import execute, fault, final_weights, same_bits, tiny


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tensor]:
    run, events = execute(tiny(tmp_path_factory.mktemp("undisturbed")), LocalAttempt)
    assert [event.kind for event in events] == ["attempt"]
    return final_weights(run)


def no_rank_lives(run: RunDir) -> bool:
    return not any(is_same_process(beat.pid, beat.pid_started) for beat in read_heartbeats(run))


@pytest.mark.parametrize("what", ["kill", "raise"])
def test_a_broken_attempt_is_resumed_to_the_same_bits(
    what: str, tmp_path: Path, undisturbed: Mapping[str, Tensor]
) -> None:
    job = tiny(tmp_path, callbacks=[fault(what, 17, marker=str(tmp_path / "once"))])
    run, events = execute(job, LocalAttempt)
    assert [event.kind for event in events] == ["attempt", "failure", "retry", "attempt"]
    assert "step 1" in events[1].text
    assert read_record(run).attempt == 2
    assert same_bits(final_weights(run), undisturbed)


@pytest.mark.parametrize("what", ["freeze", pytest.param("sleep", marks=pytest.mark.slow)])
def test_a_rank_that_stands_still_is_found_killed_and_resumed(
    what: str, tmp_path: Path, undisturbed: Mapping[str, Tensor]
) -> None:
    job = tiny(tmp_path, callbacks=[fault(what, 17, marker=str(tmp_path / "once"))])
    began: list[float] = []
    ended: list[float] = []

    def watch(run: RunDir) -> None:
        if (tmp_path / "once-0").exists() and not began:
            began.append(time.monotonic())
        if began and not ended and no_rank_lives(run):
            ended.append(time.monotonic())

    run, events = execute(job, LocalAttempt, tick=watch)
    failure = next(event for event in events if event.kind == "failure")
    assert failure.data["kind"] == "hang"
    assert ended[0] - began[0] < 15.0
    if what == "sleep":  # a frozen process cannot say where it stands
        assert "time.sleep" in _stacks(run) or "on_step_end" in _stacks(run)
    assert same_bits(final_weights(run), undisturbed)


def _stacks(run: RunDir) -> str:
    return (run.logs / "stacks-a1-rank0.txt").read_text()


def test_the_same_error_twice_ends_the_run_with_its_cause(tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(TrainError) as caught:
        execute(tiny(tmp_path, callbacks=[fault("raise", 12)]), LocalAttempt)
    assert "broken on purpose" in str(caught.value)
    assert "step 1" in str(caught.value)
    assert "twice" in caught.value.hint
    assert "rank-0.log" in caught.value.hint
    assert not events


def test_out_of_memory_is_not_tried_again_and_names_the_keys(tmp_path: Path) -> None:
    with pytest.raises(TrainError) as caught:
        execute(tiny(tmp_path, callbacks=[fault("memory", 12)]), LocalAttempt)
    assert "train.batch_size" in caught.value.hint
    assert read_record(RunDir(tmp_path / "tiny-1")).attempt == 1


def test_a_worker_that_always_dies_at_the_start_spends_the_budget(tmp_path: Path) -> None:
    job = tiny(tmp_path, callbacks=[fault("kill", 2)])
    job = job.model_copy(update={"cluster": job.cluster.model_copy(update={"max_failures": 1})})
    with pytest.raises(ClusterError, match="SIGKILL"):
        execute(job, LocalAttempt)
    assert read_record(RunDir(tmp_path / "tiny-1")).attempt == 2


def test_a_stop_finishes_the_step_and_saves(tmp_path: Path) -> None:
    job = tiny(tmp_path, callbacks=[{"use": "tests.cluster.faults:Slow", "seconds": 0.3}])

    def stop(run: RunDir) -> None:
        if any(beat.step >= 2 for beat in read_heartbeats(run)):
            control.request_stop(run, "a test")

    run, events = execute(job, LocalAttempt, tick=stop)
    assert [event.kind for event in events] == ["attempt"]
    assert '"stopped"' in run.result.read_text()
    assert len(list(run.checkpoints.glob("step-*/manifest.json"))) == 1
    assert no_rank_lives(run)


def test_a_stop_before_the_first_step_leaves_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    run, _ = execute(tiny(tmp_path), LocalAttempt, tick=lambda run: control.request_stop(run, "a test"))
    assert time.monotonic() - began < 5.0
    assert not run.result.exists()
