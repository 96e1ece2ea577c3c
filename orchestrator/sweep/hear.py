"""`Hearing`: answers what trials say: evaluations, ends of trainings, values measured after them, failures.

Called by the loop with the pool's events. What the scheduler is told stands in the ledger, so that it is told the same
after a resume; an evaluation that comes again, because an attempt went on from an earlier checkpoint, is answered as
the first time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.events import Event
from orchestrator.cluster.failure import Failure
from orchestrator.cluster.pool import Pool, PoolEvent
from orchestrator.sweep.after import Trained, missing_values, tasks_after
from orchestrator.sweep.closing import Closer
from orchestrator.sweep.objectives import Objective, derived_values, later_names
from orchestrator.sweep.schedulers import Scheduler
from orchestrator.sweep.trial_run import TrialRun
from orchestrator.sweep.under_way import UnderWay

_AGAIN = {"infra", "hang", "preemption"}  # nobody's fault: begun again from the newest checkpoint
_STATE_OF = {"oom": "oom", "train": "diverged"}


@dataclass
class Hearing:
    """One start's ear. `stopping` says whether the sweep was asked to stop; `judged_by` None: nothing is judged."""

    pool: Pool
    closer: Closer
    under_way: UnderWay
    scheduler: Scheduler
    judged_by: Objective | None
    max_failures: int
    stopping: Callable[[], bool]
    on_event: Callable[[Event], None]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the sweep looks for."""
        return self.closer.source.objectives

    def handle(self, event: PoolEvent) -> None:
        """Answer one event."""
        work = self.under_way.working[event.trial]
        if event.kind == "evaluated":
            stop = self._evaluated(work, int(event.data["step"]), dict(event.data["metrics"]))
            self.pool.answer(event.trial, stop=stop)
        elif event.kind == "measured":
            self._measured(event.trial, dict(event.data["values"]))
        elif event.kind == "failed" and event.failure is not None:
            self._failed(event.trial, event.failure)
        else:
            self._ended(event.trial, dict(event.data))

    def judge(self, work: TrialRun, result: Mapping[str, Any]) -> None:
        """Close a trial whose training has ended, or queue it for what is still to be done with its model."""
        trial = work.trial
        trial.step = int(result["step"])
        self._note_last(work, dict(result["metrics"]))
        stopped = work.is_cut(trial.step)  # whatever its status: of a resumed one nothing may have been left to train
        if result["status"] == "stopped" and not stopped:
            self.close(work, "interrupted", "the sweep was asked to stop")
            return
        values = dict(result["best_metrics"] or result["metrics"])
        values |= derived_values(work.feasible.plan, result)
        later = later_names(self.objectives)
        missing = missing_values(values, [each for each in self.objectives if each.name not in later])
        tasks = tasks_after(work.feasible.job, self.objectives)
        state = "stopped" if stopped else "finished"
        reason = f"at step {trial.step} of {trial.total_steps}" if stopped else ""
        if missing:
            self.close(work, "diverged", f"{missing} was not finite or not reported", values)
            return
        self._go_on(Trained(work, state, reason, values, tasks))

    def close(self, work: TrialRun, state: str, reason: str, values: dict[str, float] | None = None) -> None:
        """Close a training; its trial's next repeat, if there is one, is the next to begin."""
        again = self.closer.close(work, state, reason, values)
        if again is not None:
            self.under_way.queue.appendleft(again)

    def watch(self) -> None:
        """End the trainings whose ranks have been silent for too long."""
        for slot, work in list(self.under_way.working.items()):
            if slot not in self.under_way.after.under_way and work.is_hung():
                self.pool.kill(slot)
                self._failed(slot, Failure("hang", "Hang", "a rank was silent for too long", step=work.trial.step))

    def _evaluated(self, work: TrialRun, step: int, metrics: dict[str, float]) -> bool:
        trial, number = work.trial, work.evaluation_at(step)
        if number > trial.evaluations and not trial.stopped_at:
            stop = self._score(work, number, metrics) and step < trial.total_steps
            self.closer.ledger.evaluate(trial, number, step, metrics, stop=stop)
        trial.step = step
        self.closer.tell("evaluated", trial)
        return bool(trial.stopped_at and number >= trial.stopped_at) or self.stopping()

    def _note_last(self, work: TrialRun, metrics: dict[str, float]) -> None:
        """Members of a population are compared by this evaluation, which a power cut may have taken from the ledger."""
        trial, number = work.trial, work.evaluation_at(work.trial.step)
        if trial.birth is not None and number > trial.evaluations:
            self.closer.ledger.evaluate(trial, number, trial.step, metrics, stop=False)

    def _score(self, work: TrialRun, number: int, metrics: Mapping[str, float]) -> bool:
        if self.judged_by is None:
            return False
        score = self.judged_by.score(metrics.get(self.judged_by.name, math.nan))
        return bool(self.scheduler.should_stop(work.trial.number, number, score))

    def _ended(self, slot: int, result: dict[str, Any]) -> None:
        work = self.under_way.working.pop(slot)
        self.closer.leave(work)
        if result["status"] != "stopped" and not work.is_cut(int(result["step"])):
            self.under_way.shared.keep(work, result)
        self.under_way.release(work)
        self.judge(work, result)

    def _measured(self, slot: int, values: dict[str, float]) -> None:
        self.under_way.working.pop(slot)
        done = self.under_way.after.end(slot)
        if done is None:
            return
        self.closer.leave(done.work)  # also when it is timed later: what it waits till then it does not use
        done.values |= values
        self._go_on(done)

    def _go_on(self, done: Trained) -> None:
        """Queue a trained trial for its next task; close it when there is none left."""
        if self.under_way.after.add(done):
            return
        missing = missing_values(done.values, self.objectives)
        state, reason = ("failed", f"{missing} has no finite value") if missing else (done.state, done.reason)
        self.close(done.work, state, reason, done.values)

    def _failed(self, slot: int, failure: Failure) -> None:
        work = self.under_way.working.pop(slot)
        after = self.under_way.after.end(slot) is not None
        self.under_way.release(work)
        if self.stopping():
            self.close(work, "interrupted", failure.describe())
            return
        work.failures += 1
        if failure.kind in _AGAIN and work.failures <= self.max_failures:
            self.on_event(Event("trial", f"{work.trial.name}: {failure.message}; begun again", {"what": "retry"}))
            self.closer.leave(work)
            self.under_way.queue.appendleft(work)
            return
        state = "oom" if failure.kind == "oom" else "failed" if after else _STATE_OF.get(failure.kind, "failed")
        self.close(work, state, failure.message if after else failure.describe())
