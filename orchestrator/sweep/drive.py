"""`SweepLoop`: places trials, answers their evaluations, takes note of their ends, until nothing is left to do.

What is decided elsewhere: points by the source, early ends by the scheduler, room by the pool. All that happens is in
the ledger before anybody is told.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator import plugins
from orchestrator.cluster.events import Event
from orchestrator.cluster.failure import Failure
from orchestrator.cluster.pool import Pool, PoolEvent, Room, room_of
from orchestrator.runs import control
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.ledger import Ledger, Trial
from orchestrator.sweep.objectives import Objective, aggregate, derived_values, pareto_front, scores_of
from orchestrator.sweep.schedulers import Scheduler
from orchestrator.sweep.source import Source
from orchestrator.sweep.trial_run import TrialRun, drop_checkpoints, trial_folder

_POLL_S = 0.1
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
        self._queue: deque[TrialRun] = deque()
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
        for work in list(self._working.values()):
            self._close(work, state, "the sweep was interrupted")
        self._working.clear()

    @property
    def elapsed_s(self) -> float:
        """Seconds of all starts of the sweep together."""
        return self.spent_before_s + time.monotonic() - self.began

    @property
    def num_counted(self) -> int:
        """Trials that count towards `sweep.trials`."""
        return sum(trial.state != "infeasible" for trial in self.ledger.trials.values())

    def front(self) -> list[int]:
        """Return the numbers of the trials that nothing dominates so far."""
        return front_of(self.ledger, self.source.objectives)

    # ---- placing

    def _place(self) -> None:
        while not self._stop_asked() and self._has_room():
            work = self._queue[0] if self._queue else self._fresh()
            if work is None:
                return
            if not self._queue:
                self._queue.append(work)
            if not self._start(work):
                return
            self._queue.popleft()

    def _has_room(self) -> bool:
        """Ask for a point only when it may start: what is asked later is asked knowing more."""
        if self.sweep.parallel_trials != "auto" and len(self._working) >= self.sweep.parallel_trials:
            return False
        return self._smallest is None or self.pool.has_room(self._smallest)

    def _fresh(self) -> TrialRun | None:
        self.ended = self._budget_spent()
        if self.ended:
            return None
        known = len(self.ledger.trials)
        found = self.source.next()
        for trial in list(self.ledger.trials.values())[known:]:
            if trial.state == "infeasible":
                self._tell("infeasible", trial)
        if found is None:
            self.ended = self.source.ended
            return None
        return TrialRun(found[0], 0, found[1], trial_folder(self.run, found[0], 0))

    def _budget_spent(self) -> str:
        sweep = self.sweep
        if sweep.trials is not None and self.num_counted >= sweep.trials:
            return f"all {sweep.trials} trials"
        if sweep.time_s is not None and self.elapsed_s >= sweep.time_s:
            return f"the time is up ({sweep.time_s:g} s)"
        if sweep.worker_s is not None and self._worker_s() >= sweep.worker_s:
            return f"the budget of {sweep.worker_s:g} worker seconds is spent"
        return ""

    def _worker_s(self) -> float:
        return sum(trial.seconds * trial.workers for trial in self.ledger.trials.values())

    def _begin_again(self, trial: Trial) -> None:
        feasible = self.source.judge(trial)
        if feasible is None:
            return
        done = [index for index in range(self.sweep.repeats) if index in trial.repeats]
        trial.seconds = sum(trial.repeats_s.values())
        if len(done) == self.sweep.repeats:
            self._finish_trial(trial, "finished", "")
            return
        repeat = len(done)
        self._queue.append(TrialRun(trial, repeat, feasible, trial_folder(self.run, trial, repeat)))

    def _refuse(self, work: TrialRun) -> None:
        """Nothing works, and yet there is no room: there never will be."""
        room, total = room_of(work.feasible.plan.resources), self.pool.total
        reason = f"needs {room.cpus:g} CPUs and {room.gpus:g} GPUs, the cluster has {total.cpus:g} and {total.gpus:g}"
        self._finish_trial(work.trial, "infeasible", reason)

    def _start(self, work: TrialRun) -> bool:
        need = work.feasible.plan.resources
        room = room_of(need)
        if self._smallest is None or room.cpus < self._smallest.cpus:
            self._smallest = room
        if not self.pool.can_start(need):
            return False
        self._slot += 1
        if work.repeat == 0 and work.trial.state != "running":
            self.ledger.begin(work.trial, workers=need.num_workers)
        share = work.open(self.run)
        work.trial.total_steps, work.trial.began = work.feasible.plan.batch.total_steps, time.monotonic()
        self._working[self._slot] = work
        self.pool.start(self._slot, share, need)
        self._tell("begun", work.trial)
        return True

    # ---- what trials say

    def _handle(self, event: PoolEvent) -> None:
        work = self._working[event.trial]
        if event.kind == "evaluated":
            stop = self._evaluated(work, int(event.data["step"]), dict(event.data["metrics"]))
            self.pool.answer(event.trial, stop=stop)
        elif event.kind == "failed" and event.failure is not None:
            self._failed(event.trial, event.failure)
        else:
            self._ended(event.trial, dict(event.data))

    def _evaluated(self, work: TrialRun, step: int, metrics: dict[str, float]) -> bool:
        trial = work.trial
        trial.step, trial.evaluations = step, trial.evaluations + 1
        trial.curve.append((step, metrics))
        self._tell("evaluated", trial)
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
        trial = work.trial
        trial.step = int(result["step"])
        stopped = result["status"] == "stopped"
        if stopped and work.stop_reason != "scheduler":
            self._close(work, "interrupted", "the sweep was asked to stop")
            return
        values = dict(result["best_metrics"] or result["metrics"])
        values |= derived_values(work.feasible.plan, float(result["train_s"]))
        missing = [each.name for each in self.source.objectives if not math.isfinite(values.get(each.name, math.nan))]
        state = "stopped" if stopped else "finished"
        reason = f"at step {trial.step} of {trial.total_steps}" if stopped else ""
        if missing:
            state, reason = "diverged", f"{', '.join(missing)} was not finite or not reported"
        self._close(work, state, reason, values)

    def _failed(self, slot: int, failure: Failure) -> None:
        work = self._working.pop(slot)
        if self._stop_asked():
            self._close(work, "interrupted", failure.describe())
            return
        if failure.kind in _AGAIN and work.attempt <= self.job.cluster.max_failures:
            self.on_event(Event("trial", f"{work.trial.name}: {failure.message}; begun again", {"what": "retry"}))
            self._queue.appendleft(work)
            return
        self._close(work, _STATE_OF.get(failure.kind, "failed"), failure.describe())

    def _close(self, work: TrialRun, state: str, reason: str, values: dict[str, float] | None = None) -> None:
        """Close one training; when it was the last of its trial, the trial."""
        trial, values = work.trial, values or {}
        seconds = time.monotonic() - work.began
        trial.seconds += seconds
        told = {f"objective/{each.name}": values[each.name] for each in self.source.objectives if each.name in values}
        line = f"{state}: {reason}" if reason else f"{state}: {self._said(values)}"
        work.close(state, line, told, {"trial.state": state})
        if state == "interrupted":
            self.ledger.end(trial, state, reason=reason)
            self._tell("interrupted", trial)
            return
        if state == "finished":
            self.ledger.repeat(trial, work.repeat, values, seconds)
            if work.repeat + 1 < self.sweep.repeats:
                again = work.repeat + 1
                self._queue.appendleft(TrialRun(trial, again, work.feasible, trial_folder(self.run, trial, again)))
                return
        self._finish_trial(trial, state, reason, values)

    def _finish_trial(self, trial: Trial, state: str, reason: str, values: dict[str, float] | None = None) -> None:
        if state == "finished":
            columns = [trial.repeats[index] for index in sorted(trial.repeats)]
            values = aggregate(columns, self.sweep.aggregate, self.source.objectives)
        self.scheduler.close(trial.number)
        self.ledger.end(trial, state, values=values, reason=reason)
        self.source.tell(trial)
        self._tidy()
        self._tell("ended", trial)

    def _tidy(self) -> None:
        """Delete the checkpoints of ended trials that something dominates."""
        if self.sweep.keep == "all":
            return
        front = set(self.front())
        for trial in self.ledger.trials.values():
            if trial.is_over and trial.number not in front and trial.state != "infeasible":
                for repeat in range(self.sweep.repeats):
                    drop_checkpoints(trial_folder(self.run, trial, repeat))

    def _watch(self) -> None:
        for slot, work in list(self._working.items()):
            if work.is_hung():
                self.pool.kill(slot)
                self._failed(slot, Failure("hang", "Hang", "a rank was silent for too long", step=work.trial.step))

    def _stop_asked(self) -> bool:
        if not self._stopping and control.stop_requested(self.run):
            self._stopping = True
            self.ended = f"stopped by {control.stop_reason(self.run) or 'request'}"
            for work in self._working.values():
                control.request_stop(work.run, "the sweep was asked to stop")
        return self._stopping

    def _said(self, values: dict[str, float]) -> str:
        return ", ".join(f"{each.name} {values.get(each.name, math.nan):.4g}" for each in self.source.objectives)

    def _tell(self, what: str, trial: Trial) -> None:
        self.on_event(Event("trial", trial.name, {"what": what, "trial": trial}))


def front_of(ledger: Ledger, objectives: tuple[Objective, ...]) -> list[int]:
    """Return the numbers of the finished trials that no other dominates, the first objective's best first.

    A trial that a scheduler ended early takes part: its best checkpoint is as good as any.
    """
    done = [trial for trial in ledger.trials.values() if trial.state in ("finished", "stopped")]
    return pareto_front({trial.number: scores_of(trial.values, objectives) for trial in done})


def build_scheduler(
    job: JobSpec, sweep: SweepSection, objectives: tuple[Objective, ...]
) -> tuple[Scheduler, Objective | None]:
    """Return the scheduler and what it judges by (None: it judges nothing)."""
    use = sweep.scheduler
    scheduler: Scheduler = plugins.build("schedulers", use.use, use.options)
    if not getattr(plugins.load("schedulers", use.use), "uses_metric", True):
        return scheduler, None
    metric, mode = use.options.get("metric"), use.options.get("mode")
    known = {each.name: each for each in objectives}
    if metric is None:
        measured = [each for each in objectives if each.name.startswith("val/")]
        return scheduler, (measured or list(objectives))[0]
    if metric in known and mode in (None, known[metric].direction):
        return scheduler, known[metric]
    return scheduler, Objective(metric, mode or "min")
