"""A pool without processes for whole sweeps in a test: trainings are generators, killed drivers are exceptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.disk import MANIFEST, hash_file
from orchestrator.checkpoint.manifest import CheckpointMeta, FileEntry, Manifest, folder_name
from orchestrator.cluster.events import Event
from orchestrator.cluster.failure import Failure
from orchestrator.cluster.nodes import Node
from orchestrator.cluster.pool import PoolEvent
from orchestrator.cluster.trial_worker import Share
from orchestrator.plan.available import Available
from orchestrator.plan.layout import Layout
from orchestrator.plan.plan import Resources
from orchestrator.runs import control
from orchestrator.runs.catalog import create_run
from orchestrator.runs.heartbeat import HeartbeatWriter
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json
from orchestrator.spec.load import load_spec
from orchestrator.sweep.check import build_space
from orchestrator.sweep.drive import SweepLoop
from orchestrator.sweep.feasible import Limits
from orchestrator.sweep.generations import build_source
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.resume import require_same_trials
from orchestrator.sweep.schedulers import build_scheduler, replay
from orchestrator.sweep.trial_run import newest_step

Training = Generator[tuple[int, dict[str, float]], bool, dict[str, Any]]


class DriverKilledError(BaseException):
    """The driver's process is gone: nothing after it is carried out."""


def loss(lr: float, step: int) -> float:
    """Return a made loss: it falls with the steps, and is lowest at a learning rate of 0.05."""
    return abs(lr - 0.05) * 10 + 1 / step


class Trainer:
    """Trains as the engine does: evaluates every 5 of 20 steps, saves at each, stops where it is asked to.

    `faults` are failures by (name of the folder, attempt) and step, each before that step is taken. The one weight is
    the sum of the learning rates of all steps that led to it, whoever took them; `measure` makes a loss of it.
    """

    def __init__(
        self,
        faults: Mapping[tuple[str, int], tuple[int, Failure]] | None = None,
        measure: Callable[[float, int, float], float] = lambda lr, step, weight: loss(lr, step),
    ) -> None:
        self.faults = dict(faults or {})
        self.measure = measure
        self.begun: list[tuple[str, int]] = []

    def __call__(self, share: Share) -> Training:
        """Train a share."""
        run = RunDir(Path(share.folder))
        lr = json.loads(run.job.read_text())["optim"]["lr"]
        self.begun.append((run.run_id, share.attempt))
        HeartbeatWriter(run, 0, attempt=share.attempt, armed=False).close()
        step = newest_step(run) if share.resume else 0
        weight, found = _state_at(run, step) if step else (0.0, {})
        last = share.until or 20
        fault_step, failure = self.faults.get((run.run_id, share.attempt), (-1, None))
        while step < last:
            step += 1
            weight += lr
            if step == fault_step and failure is not None:
                raise TrainingFailedError(failure)
            stop = control.stop_requested(run)
            if step % 5 == 0:
                found = {"val/loss": self.measure(lr, step, weight)}
                stop = (yield step, found) or stop
            if stop or step % 5 == 0:
                _commit(run, step, share.attempt, [weight, found])
            if stop and step < last:
                return {"status": "stopped", "step": step, "metrics": found, "best_metrics": found, "train_s": 1.0}
        return {"status": "finished", "step": step, "metrics": found, "best_metrics": found, "train_s": 1.0}


def _commit(run: RunDir, step: int, attempt: int, state: list[Any]) -> None:
    place = run.checkpoints / folder_name(step, attempt, "abcdef")
    place.mkdir(parents=True)
    (place / "state").write_text(json.dumps(state))
    entry = FileEntry("state", *hash_file(place / "state"))
    (place / MANIFEST).write_bytes(Manifest(step, attempt, 1, 1, False, (entry,), CheckpointMeta(step)).to_json())


def _state_at(run: RunDir, step: int) -> tuple[float, dict[str, float]]:
    weight, found = json.loads(next(run.checkpoints.glob(f"step-{step:08d}-*/state")).read_text())
    return weight, found


class TrainingFailedError(Exception):
    """A training has failed."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class FakePool:
    """Has room for `slots` trials. `on_event` is told the number of every event before it is handed out."""

    def __init__(
        self, train: Callable[[Share], Training], slots: int = 1, on_event: Callable[[int], None] = lambda n: None
    ) -> None:
        self.cpus, self.gpus, self.nodes = float(slots), 0.0, [Node("here", float(slots))]
        self._train, self._slots, self._on_event = train, slots, on_event
        self._running: dict[int, Training] = {}
        self._events: list[PoolEvent] = []
        self.told = 0

    def can_start(self, need: Resources, layout: Layout | None = None) -> bool:
        return len(self._running) < self._slots

    def has_room(self, need: Resources) -> bool:
        return len(self._running) < self._slots

    def start(self, trial: int, share: Share, need: Resources, layout: Layout | None = None) -> None:
        self._running[trial] = self._train(share)
        self._go_on(trial, None)

    def answer(self, trial: int, *, stop: bool) -> None:
        self._go_on(trial, stop)

    def measure(self, trial: int, folder: str, need: Resources, tasks: Sequence[str]) -> None:
        raise NotImplementedError

    def kill(self, trial: int) -> None:
        self._running.pop(trial)

    def poll(self, timeout_s: float) -> list[PoolEvent]:
        if not self._events:
            return []
        self.told += 1
        self._on_event(self.told)
        return [self._events.pop(0)]

    def _go_on(self, trial: int, answer: bool | None) -> None:
        training = self._running[trial]
        try:
            step, metrics = next(training) if answer is None else training.send(answer)
            self._events.append(PoolEvent(trial, "evaluated", {"step": step, "metrics": metrics}))
            return
        except StopIteration as done:
            event = PoolEvent(trial, "ended", done.value)
        except TrainingFailedError as error:
            event = PoolEvent(trial, "failed", failure=error.failure)
        del self._running[trial]
        self._events.append(event)


def folder_for(data: dict[str, Any]) -> RunDir:
    """Return the folder of a new sweep."""
    job = load_spec(data)
    run = create_run(Path(job.cluster.storage), job.name, kind="sweep")
    for folder in (run.trials, run.sweep):
        folder.mkdir()
    write_json(run.job, job.model_dump(mode="json"))
    return run


def drive(run: RunDir, data: dict[str, Any], pool: Any, *, on_told: Callable[[Event], None] | None = None) -> SweepLoop:
    """Run one start of a sweep to its end, as `run_sweep` does, without cluster and tracking server."""
    job = load_spec(data)
    assert job.sweep is not None
    control.clear_stop(run)
    ledger = Ledger(run.sweep / "ledger.jsonl")
    try:
        require_same_trials(run, data, ledger)
        source = build_source(data, job, build_space(job), ledger, Limits(Available.unknown()))
        scheduler, judged_by = build_scheduler(job.sweep, source.objectives)
        replay(scheduler, judged_by, ledger.history)
        loop = SweepLoop(
            run, job, job.sweep, ledger, source, pool, scheduler, judged_by, on_told or (lambda event: None),
            lambda: None, ledger.spent_s,
        )  # fmt: skip
        loop.execute()
    finally:
        ledger.close()
    return loop


def release_leases(run: RunDir) -> None:
    """Make the leases of a driver that was "killed" in this very process those of a dead one."""
    for path in run.trials.glob("*/lease.json"):
        page = json.loads(path.read_text())
        path.write_text(json.dumps(page | {"released": True}))
