"""`SweepLoop`: places trials, answers their evaluations, takes note of their ends, until nothing is left to do.

What is decided elsewhere: points by the source, early ends by the scheduler, room by the pool. All that happens is in
the ledger before anybody is told.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.cluster.events import Event
from orchestrator.cluster.failure import Failure
from orchestrator.cluster.pool import Pool, PoolEvent, Room, room_of
from orchestrator.runs import control
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.after import After, Trained, missing_values, tasks_after
from orchestrator.sweep.budget import budget_spent
from orchestrator.sweep.closing import Closer
from orchestrator.sweep.ledger import Ledger, Trial
from orchestrator.sweep.objectives import Objective, derived_values, later_names
from orchestrator.sweep.schedulers import Scheduler
from orchestrator.sweep.shared import Shared
from orchestrator.sweep.source import Source
from orchestrator.sweep.trial_run import TrialRun, trial_folder

_POLL_S = 0.1
_MOST_HELD = 4  # trials that wait for the same training: what is asked later is asked knowing more
_AGAIN = {"infra", "hang", "preemption"}  # nobody's fault: begun again from the newest checkpoint
_STATE_OF = {"oom": "oom", "train": "diverged"}


@dataclass
class SweepLoop:
    """One start of a sweep. `tick` is called ten times a second."""

    run: RunDir
    job: JobSpec
    sweep: SweepSection
    ledger: Ledger
    source: Source
    pool: Pool
    scheduler: Scheduler
    judged_by: Objective | None
    on_event: Callable[[Event], None]
    tick: Callable[[], None]
    spent_before_s: float = 0.0
    ended: str = ""

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.closer = Closer(self.run, self.sweep, self.ledger, self.source, self.scheduler, self.on_event)
        self._queue: deque[TrialRun] = deque()
        self._after = After()
        self._shared = Shared(self.run, self.sweep)
        self._working: dict[int, TrialRun] = {}
        self._slot = 0
        self._smallest: Room | None = None
        self._stopping = False

    def execute(self) -> None:
        """Run to the end. Whatever is raised, no trial's process is left (the pool is closed by its owner)."""
        for trial in list(self.ledger.trials.values()):
            if not trial.is_over:
                self._begin_again(trial)
        while True:
            self._place()
            if not self._working:
                if self._after.alone or self._after.beside:
                    continue
                if not self._queue or self._stop_asked():
                    return
                self._refuse(self._queue.popleft())
                continue
            for event in self.pool.poll(_POLL_S):
                self._handle(event)
            self._watch()
            self.tick()

    def close_open(self, state: str) -> None:
        """Close what is still open, for an end that is not the sweep's own."""
        for work in [*self._working.values(), *self._after.drain()]:
            self._close(work, state, "the sweep was interrupted")
        self._working.clear()

    @property
    def elapsed_s(self) -> float:
        """Seconds of all starts of the sweep together."""
        return self.spent_before_s + time.monotonic() - self.began

    # ---- placing

    def _place(self) -> None:
        while not self._stop_asked() and self._has_room():
            if self._after.beside:
                if not self.pool.can_start(self._after.beside[0].work.feasible.plan.resources):
                    return
                self._measure(self._after.beside.popleft())
                continue
            if self._after.alone or len(self._shared.held) >= _MOST_HELD:
                break  # timed alone: nothing new begins until those under way have ended
            work = self._queue[0] if self._queue else self._fresh()
            if work is None:
                return
            if not self._queue:
                self._queue.append(work)
            if not self._start(work):
                return
            self._queue.popleft()
        if self._stop_asked():
            for each in self._after.drain():
                self._close(each, "interrupted", "the sweep was asked to stop")
        if self._after.alone and not self._working:
            self._measure(self._after.alone.popleft())

    def _has_room(self) -> bool:
        """Ask for a point only when it may start: what is asked later is asked knowing more."""
        if self.sweep.parallel_trials != "auto" and len(self._working) >= self.sweep.parallel_trials:
            return False
        return self._smallest is None or self.pool.has_room(self._smallest)

    def _fresh(self) -> TrialRun | None:
        self.ended = budget_spent(self.sweep, self.ledger, self.elapsed_s)
        if self.ended:
            return None
        known = len(self.ledger.trials)
        found = self.source.next()
        for trial in list(self.ledger.trials.values())[known:]:
            if trial.state == "infeasible":
                self.closer.tell("infeasible", trial)
        if found is None:
            self.ended = self.source.ended
            return None
        return TrialRun(found[0], 0, found[1], trial_folder(self.run, found[0], 0))

    def _begin_again(self, trial: Trial) -> None:
        feasible = self.source.judge(trial)
        if feasible is None:
            return
        done = [index for index in range(self.sweep.repeats) if index in trial.repeats]
        trial.seconds = sum(trial.repeats_s.values())
        if len(done) == self.sweep.repeats:
            self.closer.finish(trial, "finished", "")
            return
        repeat = len(done)
        self._queue.append(TrialRun(trial, repeat, feasible, trial_folder(self.run, trial, repeat)))

    def _refuse(self, work: TrialRun) -> None:
        """Nothing works, and yet there is no room: there never will be."""
        room, total = room_of(work.feasible.plan.resources), self.pool.total
        reason = f"needs {room.cpus:g} CPUs and {room.gpus:g} GPUs, the cluster has {total.cpus:g} and {total.gpus:g}"
        self.closer.finish(work.trial, "infeasible", reason)

    def _start(self, work: TrialRun) -> bool:
        need = work.feasible.plan.resources
        room = room_of(need)
        if self._smallest is None or room.cpus < self._smallest.cpus:
            self._smallest = room
        key = self._shared.key(work)
        training = self._shared.find(key)
        if training is None and not self.pool.can_start(need):
            return False
        if training is None and not self._shared.claim(key, work):
            return True
        self._slot += 1
        if work.repeat == 0 and work.trial.state != "running":
            self.ledger.begin(work.trial, workers=need.num_workers)
        share = work.open(self.run)
        work.trial.total_steps, work.trial.began = work.feasible.plan.batch.total_steps, time.monotonic()
        if training is None:
            self._working[self._slot] = work
            self.pool.start(self._slot, share, need)
        self.closer.tell("begun", work.trial)
        if training is not None:
            self._shared.adopt(training, work)
            if training.trial != work.trial.name:  # its own: it was interrupted after its training
                self.ledger.reuse(work.trial, work.repeat, training.trial)
            self._judge(work, training.result)
        return True

    # ---- what trials say

    def _handle(self, event: PoolEvent) -> None:
        work = self._working[event.trial]
        if event.kind == "evaluated":
            stop = self._evaluated(work, int(event.data["step"]), dict(event.data["metrics"]))
            self.pool.answer(event.trial, stop=stop)
        elif event.kind == "measured":
            self._measured(event.trial, dict(event.data["values"]))
        elif event.kind == "failed" and event.failure is not None:
            self._failed(event.trial, event.failure)
        else:
            self._ended(event.trial, dict(event.data))

    def _evaluated(self, work: TrialRun, step: int, metrics: dict[str, float]) -> bool:
        trial = work.trial
        trial.step, trial.evaluations = step, trial.evaluations + 1
        trial.curve.append((step, metrics))
        self.closer.tell("evaluated", trial)
        if self._stop_asked():
            work.stop_reason = work.stop_reason or "interrupted"
            return True
        if self.judged_by is None:
            return False
        score = self.judged_by.score(metrics.get(self.judged_by.name, math.nan))
        last = step >= trial.total_steps
        if self.scheduler.should_stop(trial.number, trial.evaluations, score) and not last:
            work.stop_reason = "scheduler"
            return True
        return False

    def _ended(self, slot: int, result: dict[str, Any]) -> None:
        work = self._working.pop(slot)
        if result["status"] != "stopped":
            self._shared.keep(work, result)
        self._queue.extendleft(reversed(self._shared.release(work)))
        self._judge(work, result)

    def _judge(self, work: TrialRun, result: Mapping[str, Any]) -> None:
        """Close a trial whose training has ended, or queue it for what is still to be done with its model."""
        trial = work.trial
        trial.step = int(result["step"])
        stopped = result["status"] == "stopped"
        if stopped and work.stop_reason != "scheduler":
            self._close(work, "interrupted", "the sweep was asked to stop")
            return
        values = dict(result["best_metrics"] or result["metrics"])
        values |= derived_values(work.feasible.plan, result)
        values |= dict.fromkeys(later_names(self.source.objectives), 0.0)  # to come
        missing = missing_values(values, self.source.objectives)
        tasks = tasks_after(work.feasible.job, self.source.objectives)
        state = "stopped" if stopped else "finished"
        reason = f"at step {trial.step} of {trial.total_steps}" if stopped else ""
        if missing:
            state, reason = "diverged", f"{missing} was not finite or not reported"
        elif self._after.add(Trained(work, state, reason, values, tasks)):
            return
        self._close(work, state, reason, values)

    def _measure(self, done: Trained) -> None:
        self._slot += 1
        self._working[self._slot] = done.work
        tasks = self._after.begin(self._slot, done)
        self.pool.measure(self._slot, str(done.work.run.path), done.work.feasible.plan.resources, tasks)

    def _measured(self, slot: int, values: dict[str, float]) -> None:
        self._working.pop(slot)
        done = self._after.end(slot)
        if done is None:
            return
        done.values |= values
        if self._after.add(done):
            return
        missing = missing_values(done.values, self.source.objectives)
        state, reason = ("failed", f"{missing} has no finite value") if missing else (done.state, done.reason)
        self._close(done.work, state, reason, done.values)

    def _failed(self, slot: int, failure: Failure) -> None:
        work = self._working.pop(slot)
        after = self._after.end(slot) is not None
        self._queue.extendleft(reversed(self._shared.release(work)))
        if self._stop_asked():
            self._close(work, "interrupted", failure.describe())
            return
        if failure.kind in _AGAIN and work.attempt <= self.job.cluster.max_failures:
            self.on_event(Event("trial", f"{work.trial.name}: {failure.message}; begun again", {"what": "retry"}))
            self._queue.appendleft(work)
            return
        state = "oom" if failure.kind == "oom" else "failed" if after else _STATE_OF.get(failure.kind, "failed")
        self._close(work, state, failure.message if after else failure.describe())

    def _close(self, work: TrialRun, state: str, reason: str, values: dict[str, float] | None = None) -> None:
        again = self.closer.close(work, state, reason, values)
        if again is not None:
            self._queue.appendleft(again)

    def _watch(self) -> None:
        for slot, work in list(self._working.items()):
            if slot not in self._after.under_way and work.is_hung():
                self.pool.kill(slot)
                self._failed(slot, Failure("hang", "Hang", "a rank was silent for too long", step=work.trial.step))

    def _stop_asked(self) -> bool:
        if not self._stopping and control.stop_requested(self.run):
            self._stopping = True
            self.ended = f"stopped by {control.stop_reason(self.run) or 'request'}"
            for work in self._working.values():
                control.request_stop(work.run, "the sweep was asked to stop")
        return self._stopping
