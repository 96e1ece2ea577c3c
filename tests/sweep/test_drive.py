"""The loop of a sweep without processes: what every trial's state is after any end, and what schedulers decide then."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cluster.failure import Failure
from orchestrator.cluster.pool import PoolEvent
from orchestrator.cluster.trial_stage import COMPRESS
from orchestrator.errors import JobFileError
from orchestrator.runs import control
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import read_record, update_record
from orchestrator.spec.load import load_spec
from orchestrator.sweep.drive import SweepLoop
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.settle import settle
from orchestrator.sweep.trial import Trial
from tests.sweep.fakes import DriverKilledError, FakePool, Trainer, drive, folder_for, loss, release_leases
from tests.sweep.jobs import tiny_sweep
from tests.tiers import sample_of

DIED = Failure("infra", "WorkerDied", "a worker process ended without a word")
RATES = [0.05, 0.2, 0.01, 0.06, 0.3, 0.04, 0.5, 0.051]


def sweep_of(folder: Path, **sweep: Any) -> dict[str, Any]:
    given = {"space": {"optim.lr": RATES}, "search": {"use": "grid"}, "trials": None, **sweep}
    return tiny_sweep(folder / "runs", given)


def last_status(trial: RunDir) -> str:
    """Return the status that MLflow is told last."""
    lines = [json.loads(line) for line in (trial.spool / "driver.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "status", "what comes after a status keeps the run open"
    return str(lines[-1]["status"])


def lines_of(run: RunDir, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.sweep / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def kill_at(number: int) -> Any:
    def tell(told: int) -> None:
        if told == number:
            raise DriverKilledError

    return tell


def stop_at(run: RunDir, number: int) -> Any:
    def tell(told: int) -> None:
        if told == number:
            control.request_stop(run, "a test")

    return tell


def outcomes(loop: SweepLoop) -> list[tuple[str, int, int, float | None]]:
    return [
        (each.state, each.step, each.evaluations, each.values.get("val/loss")) for each in loop.ledger.trials.values()
    ]


def check_closed(run: RunDir, trials: dict[int, Trial]) -> None:
    """Ledger, record and tracking say the same of every trial that was begun."""
    said = {"finished": ("finished", "FINISHED"), "stopped": ("stopped", "FINISHED"), "failed": ("failed", "FAILED")}
    said |= {"interrupted": ("stopped", "KILLED"), "infeasible": ("stopped", "KILLED")}
    for trial in trials.values():
        assert trial.state != "running"
        for path in run.trials.glob(f"{trial.name}*"):
            record = read_record(RunDir(path))
            assert (record.state, last_status(RunDir(path))) == said[trial.state], trial.name


# ---- true states


def test_a_retried_trial_that_waits_for_room_when_the_sweep_is_stopped_is_closed(tmp_path: Path) -> None:
    data = sweep_of(tmp_path)
    run = folder_for(data)
    trainer = Trainer({("t000", 1): (7, DIED)})
    pool = FakePool(trainer, slots=2)
    calls = Counter[str]()

    def told(event: Any) -> None:
        if event.data.get("what") == "retry":
            calls["retry"] += 1
            control.request_stop(run, "a test")

    loop = drive(run, data, pool, on_told=told)
    assert calls["retry"] == 1
    assert loop.ledger.trials[0].state == "interrupted"
    check_closed(run, loop.ledger.trials)


def test_a_trial_of_a_killed_driver_is_closed_when_the_next_one_is_stopped_before_it_begins_it(tmp_path: Path) -> None:
    data = sweep_of(tmp_path)
    run = folder_for(data)
    with pytest.raises(DriverKilledError):
        drive(run, data, FakePool(Trainer(), slots=2, on_event=kill_at(3)))
    release_leases(run)
    assert {read_record(RunDir(path)).state for path in run.trials.iterdir()} == {"running"}

    class Stopped(FakePool):
        def can_start(self, need: Any, layout: Any = None) -> bool:
            control.request_stop(run, "a test")
            return False

    loop = drive(run, data, Stopped(Trainer()))
    assert [loop.ledger.trials[number].state for number in (0, 1)] == ["interrupted"] * 2
    check_closed(run, loop.ledger.trials)
    loop = drive(run, data, FakePool(Trainer()))
    assert {trial.state for trial in loop.ledger.trials.values()} == {"finished"}
    check_closed(run, loop.ledger.trials)


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_begun_trial_that_tighter_constraints_exclude_is_closed(tmp_path: Path, how: str) -> None:
    data = sweep_of(tmp_path, space={"optim.lr": [0.2, 0.05]})
    run = folder_for(data)
    if how == "killed":
        with pytest.raises(DriverKilledError):
            drive(run, data, FakePool(Trainer(), on_event=kill_at(2)))
        release_leases(run)
    else:
        drive(run, data, FakePool(Trainer(), on_event=stop_at(run, 2)))
    data["sweep"]["constraints"] = ["optim.lr < 0.1"]
    loop = drive(run, data, FakePool(Trainer()))
    assert [trial.state for trial in loop.ledger.trials.values()] == ["infeasible", "finished"]
    check_closed(run, loop.ledger.trials)
    tags = [json.loads(line) for line in (run.trials / "t000" / "spool" / "driver.jsonl").read_text().splitlines()]
    assert [line["values"]["trial.state"] for line in tags if line["kind"] == "tags"][-1] == "infeasible"


def test_a_repeat_that_fewer_repeats_leave_out_is_closed(tmp_path: Path) -> None:
    data = sweep_of(tmp_path, space={"optim.lr": [0.05]}, repeats=2)
    run = folder_for(data)
    with pytest.raises(DriverKilledError):
        drive(run, data, FakePool(Trainer(), on_event=kill_at(7)))  # 4 evaluations and an end are the first repeat's
    release_leases(run)
    data["sweep"]["repeats"] = 1
    loop = drive(run, data, FakePool(Trainer()))
    assert loop.ledger.trials[0].state == "finished"
    assert last_status(RunDir(run.trials / "t000")) == "FINISHED"
    assert last_status(RunDir(run.trials / "t000-r1")) == "KILLED"
    assert not read_record(RunDir(run.trials / "t000-r1")).is_live


def test_what_a_killed_driver_left_is_closed_when_the_next_one_cannot_start(tmp_path: Path) -> None:
    data = sweep_of(tmp_path)
    run = folder_for(data)
    with pytest.raises(DriverKilledError):
        drive(run, data, FakePool(Trainer(), on_event=kill_at(8)))
    release_leases(run)
    finishing = RunDir(run.trials / "t000")
    update_record(finishing, state="finishing")  # killed while it exported an earlier end's winner
    metrics = read_record(finishing).metrics
    ledger = Ledger(run.sweep / "ledger.jsonl")
    settle(run, ledger, "the sweep was interrupted")
    ledger.close()
    assert [trial.state for trial in ledger.trials.values()] == ["finished", "interrupted"]
    check_closed(run, ledger.trials)
    assert read_record(finishing).metrics == metrics != {}
    assert read_record(finishing).verdict == "finished"
    assert read_record(RunDir(run.trials / "t001")).verdict == "interrupted: the sweep was interrupted"


def test_a_diverged_trial_has_no_value_of_what_would_have_been_measured_after_it(tmp_path: Path) -> None:
    later = {"time/latency_ms": "min", "compress/size_bytes": "min"}
    data = sweep_of(tmp_path, space={"optim.lr": [0.05]}, objectives={"val/loss": "min", **later})
    run = folder_for(data)
    loop = drive(run, data, FakePool(Trainer(measure=lambda lr, step, weight: math.nan)))
    trial = loop.ledger.trials[0]
    assert (trial.state, trial.reason) == ("diverged", "val/loss was not finite or not reported")
    assert not later.keys() & trial.values.keys()
    told = read_record(RunDir(run.trials / "t000")).metrics
    assert not any(name in key for key in told for name in later)


# ---- schedulers over resumes and retries

ASHA = {"use": "asha", "grace": 1, "reduction": 2}


class Greedy:
    """A plug-in: ends a trial at its third evaluation unless it is the best so far. It has no `close`."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int, float]] = []

    def should_stop(self, trial: int, evaluation: int, score: float) -> bool:
        best = max((each for _, _, each in self.heard), default=score)
        self.heard.append((trial, evaluation, score))
        return evaluation == 3 and score < best


MEDIAN = {"use": "median", "grace": 2, "min_trials": 2}
GREEDY = {"use": f"{__name__}:Greedy"}


@pytest.mark.parametrize(("scheduler", "how"), [(ASHA, "killed"), (GREEDY, "stopped")])
def test_a_sweep_that_was_ended_decides_after_the_resume_as_one_never_ended(
    tmp_path: Path, how: str, scheduler: dict[str, Any]
) -> None:
    end_and_resume(tmp_path, how, scheduler, every=6)


@pytest.mark.parametrize("scheduler", sample_of([ASHA, MEDIAN, GREEDY], 1, seed=1))
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_so_it_does_when_ended_at_any_moment(tmp_path: Path, how: str, scheduler: dict[str, Any]) -> None:
    end_and_resume(tmp_path, how, scheduler, every=1)


def end_and_resume(tmp_path: Path, how: str, scheduler: dict[str, Any], *, every: int) -> None:
    whole_data = sweep_of(tmp_path / "whole", scheduler=scheduler)
    whole_run = folder_for(whole_data)
    pool = FakePool(Trainer())
    whole = drive(whole_run, whole_data, pool)
    assert {"finished", "stopped"} == {trial.state for trial in whole.ledger.trials.values()}
    heard = [[line[key] for key in ("trial", "number", "stop")] for line in lines_of(whole_run, "evaluated")]
    for number in range(1, pool.told + 1, every):
        data = sweep_of(tmp_path / f"{number}", scheduler=scheduler)
        run = folder_for(data)
        if how == "killed":
            with pytest.raises(DriverKilledError):
                drive(run, data, FakePool(Trainer(), on_event=kill_at(number)))
            release_leases(run)
        else:
            drive(run, data, FakePool(Trainer(), on_event=stop_at(run, number)))
        again = drive(run, data, FakePool(Trainer()))
        assert outcomes(again) == outcomes(whole), number
        assert heard == [[line[key] for key in ("trial", "number", "stop")] for line in lines_of(run, "evaluated")]
        check_closed(run, again.ledger.trials)


def test_a_trial_whose_end_was_decided_when_the_driver_was_killed_is_not_trained_on(tmp_path: Path) -> None:
    data = sweep_of(tmp_path, space={"optim.lr": [0.05, 0.2]}, scheduler=ASHA)
    run = folder_for(data)
    with pytest.raises(DriverKilledError):
        drive(run, data, FakePool(Trainer(), on_event=kill_at(7)))  # t000: 1 to 5, t001: evaluated, then its end
    release_leases(run)
    trial = drive(run, data, FakePool(Trainer())).ledger.trials[1]
    assert (trial.state, trial.stopped_at, trial.evaluations) == ("stopped", 1, 1)
    assert (trial.step, trial.total_steps, trial.values["val/loss"]) == (5, 20, loss(0.2, 5))
    assert trial.reason == "at step 5 of 20"


def test_a_trial_ended_by_the_scheduler_without_a_checkpoint_is_trained_to_that_step_again(tmp_path: Path) -> None:
    """Killed while the checkpoint of that step was written; and there is no second kind of end at it."""
    data = sweep_of(tmp_path, space={"optim.lr": [0.05, 0.2]}, scheduler=ASHA)
    run = folder_for(data)
    with pytest.raises(DriverKilledError):
        drive(run, data, FakePool(Trainer(), on_event=kill_at(7)))
    release_leases(run)
    for path in (run.trials / "t001" / "checkpoints").glob("*/manifest.json"):
        path.unlink()
        path.parent.rename(path.parent.with_name(f"torn-{path.parent.name}"))
    trial = drive(run, data, FakePool(Trainer())).ledger.trials[1]
    assert (trial.state, trial.step, trial.evaluations) == ("stopped", 5, 1)
    assert trial.values["val/loss"] == loss(0.2, 5)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_sweep_stopped_while_such_a_trial_is_begun_again_takes_it_for_what_it_is(
    tmp_path: Path, checkpoint: bool
) -> None:
    data = sweep_of(tmp_path, space={"optim.lr": [0.05, 0.2]}, scheduler=ASHA)
    run = folder_for(data)
    with pytest.raises(DriverKilledError):
        drive(run, data, FakePool(Trainer(), on_event=kill_at(7)))
    release_leases(run)
    if not checkpoint:
        shutil.rmtree(run.trials / "t001" / "checkpoints")

    class Stops(Trainer):
        def __call__(self, share: Any) -> Any:
            control.request_stop(run, "a test")
            control.request_stop(RunDir(Path(share.folder)), "a test")
            return super().__call__(share)

    trial = drive(run, data, FakePool(Stops())).ledger.trials[1]
    assert (trial.state, trial.step) == (("stopped", 5) if checkpoint else ("interrupted", 1))


def test_another_scheduler_learns_from_the_scores_of_before(tmp_path: Path) -> None:
    data = sweep_of(tmp_path, space={"optim.lr": [0.05, 0.04]})
    run = folder_for(data)
    drive(run, data, FakePool(Trainer()))
    data["sweep"] |= {"space": {"optim.lr": [0.05, 0.04, 0.5]}, "scheduler": ASHA}
    loop = drive(run, data, FakePool(Trainer()))
    assert [trial.state for trial in loop.ledger.trials.values()] == ["finished", "finished", "stopped"]
    assert loop.ledger.trials[2].stopped_at == 1


def test_a_retried_trial_counts_no_evaluation_twice(tmp_path: Path) -> None:
    plain_data = sweep_of(tmp_path / "plain", scheduler=ASHA)
    plain = drive(folder_for(plain_data), plain_data, FakePool(Trainer()))
    data = sweep_of(tmp_path / "retried", scheduler=ASHA)
    run = folder_for(data)

    class Forgetful(Trainer):
        """Goes on from an earlier checkpoint than the newest: what was evaluated after it comes again."""

        def __call__(self, share: Any) -> Any:
            for path in sorted((Path(share.folder) / "checkpoints").glob("*"))[1:]:
                (path / "manifest.json").unlink()
            return super().__call__(share)

    trainer = Forgetful({("t000", 1): (18, DIED), ("t003", 1): (12, DIED)})
    loop = drive(run, data, FakePool(trainer))
    assert outcomes(loop) == outcomes(plain)
    told = [(line["trial"], line["number"]) for line in lines_of(run, "evaluated")]
    assert len(told) == len(set(told))


class FlakyPool(FakePool):
    """A cluster whose only node is away from event `at` on, for `away` looks at it."""

    def __init__(self, trainer: Trainer, away: int, at: int = 2) -> None:
        super().__init__(trainer, slots=1, on_event=self._tell)
        self._away, self._left, self._at = away, 0, at

    def measure(self, trial: int, folder: str, need: Any, tasks: Any) -> None:
        self._events.append(PoolEvent(trial, "measured", {"values": {"compress/size_bytes": 9.0}}))

    def _tell(self, told: int) -> None:
        if told == self._at:
            self._left, self.cpus = self._away, 0.0

    def can_start(self, need: Any, layout: Any = None) -> bool:
        self._left = max(0, self._left - 1)
        self.cpus = 0.0 if self._left else 1.0
        return not self._left and super().can_start(need, layout)


@pytest.mark.parametrize(("wait_s", "state"), [(300.0, "finished"), (1e-9, "infeasible")])
def test_a_trial_whose_node_is_gone_waits_for_it_to_come_back_but_not_for_ever(
    tmp_path: Path, wait_s: float, state: str
) -> None:
    data = sweep_of(tmp_path, space={"optim.lr": [0.05]})
    data["cluster"]["wait_s"] = wait_s
    run, notes = folder_for(data), list[str]()
    pool = FlakyPool(Trainer({("t000", 1): (12, DIED)}), away=5 if state == "finished" else 1000)
    loop = drive(run, data, pool, on_told=lambda event: notes.append(event.text) if event.kind == "note" else None)
    assert loop.ledger.trials[0].state == state
    assert len(notes) == 1
    assert notes[0].startswith("nodes are gone")


@pytest.mark.parametrize(("wait_s", "state"), [(300.0, "finished"), (1e-9, "failed")])
def test_so_does_one_that_waits_to_be_compressed(tmp_path: Path, wait_s: float, state: str) -> None:
    data = compressed_sweep(tmp_path, {"compress/size_bytes": "min"})
    data["cluster"]["wait_s"] = wait_s
    run, notes = folder_for(data), list[str]()
    pool = FlakyPool(Trainer(), away=5 if state == "finished" else 1000, at=5)
    loop = drive(run, data, pool, on_told=lambda event: notes.append(event.text) if event.kind == "note" else None)
    trial = loop.ledger.trials[0]
    assert trial.state == state
    said = "it was trained, but compressing it needs 1 process with 1 CPU; the cluster has 0 CPUs"
    assert trial.reason == (said if state == "failed" else "")
    assert len(notes) == 1
    check_closed(run, loop.ledger.trials)


def test_the_failures_that_are_forgiven_are_counted_anew_at_a_resume(tmp_path: Path) -> None:
    data = sweep_of(tmp_path, space={"optim.lr": [0.05]})
    data["cluster"]["max_failures"] = 1
    run = folder_for(data)
    trainer = Trainer({("t000", 1): (12, DIED), ("t000", 3): (19, DIED)})
    drive(run, data, FakePool(trainer, on_event=stop_at(run, 4)))
    loop = drive(run, data, FakePool(trainer))
    assert trainer.begun == [("t000", attempt) for attempt in (1, 2, 3, 4)]
    assert loop.ledger.trials[0].state == "finished"


def test_seconds_of_all_attempts_are_counted_also_those_of_a_killed_driver(tmp_path: Path, monkeypatch: Any) -> None:
    clock = {"now": 100.0}

    def later() -> float:
        clock["now"] += 1.0
        return clock["now"]

    data = sweep_of(tmp_path, space={"optim.lr": [0.05]})
    run = folder_for(data)
    monkeypatch.setattr("orchestrator.sweep.trial_run.time.monotonic", later)
    drive(run, data, FakePool(Trainer({("t000", 1): (12, DIED)}), on_event=stop_at(run, 4)))
    ledger = Ledger(run.sweep / "ledger.jsonl")
    first = ledger.trials[0].seconds
    ledger.close()
    left = [line["seconds"] for line in lines_of(run, "left")]
    assert len(left) == 2
    assert first == pytest.approx(sum(left))
    assert first > 0
    with pytest.raises(DriverKilledError):
        drive(run, data, FakePool(Trainer(), on_event=kill_at(1)))
    release_leases(run)
    begun = lines_of(run, "begun")[-1]["time_s"]
    monkeypatch.setattr("orchestrator.sweep.drive.last_sign_s", lambda folder: begun + 7.5)
    loop = drive(run, data, FakePool(Trainer()))
    left = [line["seconds"] for line in lines_of(run, "left")]
    assert left[2] == pytest.approx(7.5)
    assert loop.ledger.trials[0].seconds == pytest.approx(sum(left))


class StagePool(FakePool):
    """Compresses in 50 s and times in 7 s of a clock of its own."""

    def __init__(self, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(trainer)
        self.now_s, self.asked = 1000.0, list[tuple[str, ...]]()
        self.seen: Callable[[], None] = lambda: None
        monkeypatch.setattr("orchestrator.sweep.trial_run.time.monotonic", lambda: self.now_s)

    def measure(self, trial: int, folder: str, need: Any, tasks: Any) -> None:
        self.asked.append(tasks)
        values = {"compress/size_bytes": 9.0} if COMPRESS in tasks else {"compress/latency_ms": 2.0}
        self._events.append(PoolEvent(trial, "measured", {"values": values}))

    def poll(self, timeout_s: float) -> list[PoolEvent]:
        if self._events and self._events[0].kind == "measured":
            self.now_s += 50.0 if "compress/size_bytes" in self._events[0].data["values"] else 7.0
            self.seen()
        return super().poll(timeout_s)


def compressed_sweep(folder: Path, objectives: dict[str, str], **sweep: Any) -> dict[str, Any]:
    data = sweep_of(folder, space={"optim.lr": [0.05]}, objectives={"val/loss": "min", **objectives}, **sweep)
    return {**data, "compress": {"steps": [{"use": "export"}]}}


@pytest.mark.parametrize(("objective", "stages_s"), [("compress/size_bytes", [50.0]), ("compress/latency_ms", [50, 7])])
def test_compressing_and_timing_a_trial_count_as_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, stages_s: list[float]
) -> None:
    data = compressed_sweep(tmp_path, {objective: "min"})
    run, pool, trials, used_s = folder_for(data), StagePool(Trainer(), monkeypatch), list[Trial](), list[float]()
    pool.seen = lambda: used_s.append(trials[0].worker_s_by(pool.now_s))

    def told(event: Any) -> None:
        if event.data.get("what") == "begun":
            trials.append(event.data["trial"])

    loop = drive(run, data, pool, on_told=told)
    trial = loop.ledger.trials[0]
    assert (trial.state, len(pool.asked)) == ("finished", len(stages_s)), trial.reason
    assert trial.seconds == trial.worker_s == sum(stages_s)
    assert used_s == [sum(stages_s[: index + 1]) for index in range(len(stages_s))], "budgets count it meanwhile"


def test_a_trial_whose_job_is_another_by_now_is_refused_by_name(tmp_path: Path) -> None:
    space = {"model": [{"use": "mlp", "inputs": 2, "hidden": [8], "outputs": 2}], "optim.lr": [0.01, 0.05]}
    data = sweep_of(tmp_path, space=space)
    run = folder_for(data)
    drive(run, data, FakePool(Trainer(), on_event=stop_at(run, 7)))
    path = run.sweep / "ledger.jsonl"
    digest = lines_of(run, "begun")[1]["job"]
    path.write_text(path.read_text().replace(digest, "0" * 16))  # as a version with other defaults would have left it
    before = path.read_bytes()
    with pytest.raises(JobFileError, match="the point of t001 makes another job now"):
        drive(run, data, FakePool(Trainer()))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"aggregate": "worst"},
            {"sweep.aggregate": "was 'mean' when the sweep began and 1 trial finished, is 'worst' now"},
        ),
        ({"repeats": 3}, {"sweep.repeats": "was 2 when the sweep began and 1 trial finished, is 3 now"}),
        (
            {"repeats": 1, "aggregate": "worst"},
            {"sweep.repeats": "was 2 when the sweep began and 1 trial finished, is 1 now"},
        ),
        ({"repeats": 2, "time_s": 1000.0}, {}),
    ],
)
def test_repeats_are_put_together_alike_once_a_trial_has_finished(
    tmp_path: Path, change: dict[str, Any], said: dict[str, str]
) -> None:
    data = sweep_of(tmp_path, space={"optim.lr": [0.05, 0.04]}, repeats=2)
    run = folder_for(data)
    drive(run, data, FakePool(Trainer(), on_event=stop_at(run, 17)))  # of t001 one is done
    data["sweep"] |= change
    before = (run.sweep / "ledger.jsonl").read_bytes()
    if not said:
        assert {trial.state for trial in drive(run, data, FakePool(Trainer())).ledger.trials.values()} == {"finished"}
        return
    with pytest.raises(JobFileError, match="its trials could not be compared") as caught:
        drive(run, data, FakePool(Trainer()))
    assert {each.path: each.message for each in caught.value.problems} == said
    assert (run.sweep / "ledger.jsonl").read_bytes() == before


def test_repeats_may_change_while_no_trial_has_finished(tmp_path: Path) -> None:
    data = sweep_of(tmp_path, space={"optim.lr": [0.05]}, repeats=2)
    run = folder_for(data)
    drive(run, data, FakePool(Trainer(), on_event=stop_at(run, 2)))
    data["sweep"] |= {"repeats": 3, "aggregate": "worst"}
    trial = drive(run, data, FakePool(Trainer())).ledger.trials[0]
    assert (trial.state, len(trial.repeats)) == ("finished", 3)


def test_a_long_stretch_of_infeasible_points_does_not_keep_trials_waiting(tmp_path: Path) -> None:
    """Each evaluation is answered between two portions of points, not after all of them."""
    rates = [0.05, *(0.1 + index / 1000 for index in range(150)), 0.04]
    data = sweep_of(tmp_path, space={"optim.lr": rates}, constraints=["optim.lr < 0.1"])
    run = folder_for(data)
    looked_at: list[int] = []

    def tell(told: int) -> None:
        looked_at.append(len(lines_of(run, "proposed")))

    loop = drive(run, data, FakePool(Trainer(), slots=2, on_event=tell))
    assert Counter(trial.state for trial in loop.ledger.trials.values()) == {"finished": 2, "infeasible": 150}
    assert looked_at[0] < 50
    assert looked_at[1] < 100


def test_the_number_of_an_evaluation_follows_from_its_step() -> None:
    from orchestrator.plan.plan import BatchPlan

    for every, total, batch in [(5, 20, 16), (5, 18, 16), (1, 7, 16), (30, 20, 16), (None, 50, 16), (None, 9, 250)]:
        plan = BatchPlan(batch, 1, 1, batch, batch, 100, total, every, None)
        for step in range(total + 1):
            assert plan.count_due(every, step) == sum(plan.due(every, each) for each in range(1, step + 1))


def test_the_job_of_the_tests_is_sound(tmp_path: Path) -> None:
    assert load_spec(sweep_of(tmp_path)).sweep is not None
