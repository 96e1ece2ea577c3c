"""`SweepLoop`: places trials, answers their evaluations, takes note of their ends, until nothing is left to do.

What is decided elsewhere: points by the source, early ends by the scheduler, room by the pool. All that happens is in
the ledger before anybody is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.cluster.events import Event
from orchestrator.cluster.pool import Pool
from orchestrator.plan.plan import Resources
from orchestrator.runs import control
from orchestrator.runs.paths import RunDir
from orchestrator.spec.job import JobSpec
from orchestrator.spec.sweep import SweepSection
from orchestrator.supernet.page import supernet_seconds
from orchestrator.sweep.after import Trained
from orchestrator.sweep.budget import budget_spent, seconds_spent
from orchestrator.sweep.closing import Closer
from orchestrator.sweep.generations import begin_from_parent
from orchestrator.sweep.hear import Hearing
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.resume import trial_digest
from orchestrator.sweep.schedule import what_is_there, what_it_takes
from orchestrator.sweep.schedulers import Scheduler
from orchestrator.sweep.settle import last_sign_s, settle
from orchestrator.sweep.shared import Shared
from orchestrator.sweep.source import Source
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.trial_run import TrialRun, trial_folder, trial_job
from orchestrator.sweep.under_way import UnderWay

_POLL_S = 0.1
_MOST_HELD = 4  # trials that wait for the same training: what is asked later is asked knowing more


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
        self.under_way = UnderWay(Shared(self.run, self.sweep))
        self.hearing = Hearing(
            self.pool, self.closer, self.under_way, self.scheduler, self.judged_by, self.job.cluster.max_failures,
            self._stop_asked, self.on_event,
        )  # fmt: skip
        self._smallest: Resources | None = None
        self._stopping = self._searching = False
        self._supernet_s = 0.0
        self._most: tuple[float, float] = (0.0, 0.0)  # CPUs and GPUs that the cluster had at any time
        self._waits_since: float | None = None

    def execute(self) -> None:
        """Run to the end. Whatever is raised, no trial's process is left (the pool is closed by its owner)."""
        if hasattr(self.source.searcher, "prepare"):
            workshop = self.source.workshop(
                self.run, self.job, self.pool, self.on_event, self.tick, self._seconds_spent
            )  # fmt: skip
            self.source.searcher.prepare(workshop)
        self._supernet_s = supernet_seconds(self.run)
        for trial in list(self.ledger.trials.values()):
            if not trial.is_over:
                self._begin_again(trial)
        while self._has_more():
            for event in self.pool.poll(0.0 if self._searching else _POLL_S):
                self.hearing.handle(event)
            self.hearing.watch()
            self.tick()
        self.close_open("the sweep was asked to stop")

    def close_open(self, reason: str) -> None:
        """Close what is still open as interrupted: what works, what waits, and what an earlier driver left."""
        for work in self.under_way.drain():
            if work.trial.state == "running":
                self.closer.close(work, "interrupted", reason)
        settle(self.run, self.ledger, reason)

    def _has_more(self) -> bool:
        """Place what can be placed; say whether anything is under way or to come."""
        self._place()
        waits, queue = self.under_way.after, self.under_way.queue
        if self.under_way.working or waits.alone:
            return True
        if self._stop_asked():
            return False
        if waits.beside:
            if not self._may_come_back():
                self._give_up(waits.beside.popleft())
            return True
        if queue:
            if not self._may_come_back():
                self._refuse(queue.popleft())
            return True
        return self._searching

    def _may_come_back(self) -> bool:
        """Say whether nodes are gone that were there, and `cluster.wait_s` is not over since work ended for that."""
        now, wait_s = time.monotonic(), self.job.cluster.wait_s
        if self.pool.cpus >= self._most[0] and self.pool.gpus >= self._most[1]:
            return False
        if self._waits_since is None:
            self._waits_since = now
            left = what_is_there(self.pool)
            said = f"nodes are gone, and what is left, {left}, is too small; waiting for them up to {wait_s:g} s"
            self.on_event(Event("note", said))
        return now - self._waits_since < wait_s

    def _seconds_spent(self) -> str:
        return seconds_spent(self.sweep, self.ledger, self.elapsed_s, supernet_seconds(self.run))

    @property
    def elapsed_s(self) -> float:
        """Seconds of all starts of the sweep together."""
        return self.spent_before_s + time.monotonic() - self.began

    # ---- placing

    def _place(self) -> None:
        after, queue = self.under_way.after, self.under_way.queue
        self._searching = False
        self._most = max(self._most[0], self.pool.cpus), max(self._most[1], self.pool.gpus)
        while not self._stop_asked() and self._has_room():
            if after.beside:
                if not self.pool.can_start(after.beside[0].work.feasible.plan.resources):
                    return
                self._measure(after.beside.popleft())
                continue
            if after.alone or len(self.under_way.shared.held) >= _MOST_HELD:
                break  # timed alone: nothing new begins until those under way have ended
            work = queue[0] if queue else self._fresh()
            if work is None:
                return
            if not queue:
                queue.append(work)
            if not self._start(work):
                return
            queue.popleft()
        if self._stop_asked():
            for each in after.drain():
                self.hearing.close(each, "interrupted", "the sweep was asked to stop")
        if after.alone and not self.under_way.working:
            self._measure(after.alone.popleft())

    def _has_room(self) -> bool:
        """Ask for a point only when it may start: what is asked later is asked knowing more."""
        if self.sweep.parallel_trials != "auto" and len(self.under_way.working) >= self.sweep.parallel_trials:
            return False
        return self._smallest is None or self.pool.has_room(self._smallest)

    def _fresh(self) -> TrialRun | None:
        self.ended = budget_spent(self.sweep, self.ledger, self.elapsed_s, self._supernet_s)
        if self.ended:
            return None
        known = len(self.ledger.trials)
        found = self.source.next()
        for trial in list(self.ledger.trials.values())[known:]:
            if trial.state == "infeasible":
                self.closer.tell("infeasible", trial)
        if found is None:
            self.ended, self._searching = self.source.ended, self.source.is_searching
            return None
        return TrialRun(found[0], 0, found[1], trial_folder(self.run, found[0], 0))

    def _begin_again(self, trial: Trial) -> None:
        if trial.under_way is not None:  # the driver was killed
            index, began_s = trial.under_way
            self.ledger.leave(trial, index, max(0.0, last_sign_s(trial_folder(self.run, trial, index)) - began_s))
        feasible = self.source.judge(trial)
        if feasible is None:
            self.closer.shut_out(trial)
            self.closer.tell("infeasible", trial)
            return
        repeat = next((index for index in range(self.sweep.repeats) if index not in trial.repeats), None)
        if repeat is None:
            self.closer.finish(trial, "finished", "")
            return
        self.under_way.queue.append(TrialRun(trial, repeat, feasible, trial_folder(self.run, trial, repeat)))

    def _lacks(self, work: TrialRun) -> str:
        """Nothing works, and yet there is no room, and there never will be: say what is too little."""
        self._smallest = None  # it may have been this one, and others may need less
        return f"needs {what_it_takes(work.feasible.plan.resources)}; the cluster has {what_is_there(self.pool)}"

    def _give_up(self, done: Trained) -> None:
        """Close a trained trial that nobody can compress."""
        self.hearing.close(done.work, "failed", f"it was trained, but compressing it {self._lacks(done.work)}")

    def _refuse(self, work: TrialRun) -> None:
        """Close a trial that nobody can train."""
        reason = self._lacks(work)
        self.closer.finish(work.trial, "infeasible", reason)
        self.closer.shut_out(work.trial)

    def _start(self, work: TrialRun) -> bool:
        need = work.feasible.plan.resources
        layout, shared = work.feasible.plan.layout, self.under_way.shared
        if self._smallest is None or need.total_cpus < self._smallest.total_cpus:
            self._smallest = need
        key = "" if work.trial.stopped_at else shared.key(work)  # another's whole training is not what it ended with
        training = shared.find(key)
        if training is None and not self.pool.can_start(need, layout):
            return False
        if training is None and not shared.claim(key, work):
            return True
        trial, slot = work.trial, self.under_way.take_slot()
        begin_from_parent(self.run, self.ledger, trial)
        job = trial_digest(trial_job(work.feasible.job, work.repeat))
        self.ledger.begin(trial, work.repeat, workers=need.num_workers, job=job)
        share = work.open(self.run)
        trial.total_steps, trial.began = work.last_step, time.monotonic()
        if training is None:
            self.under_way.working[slot], self._waits_since = work, None
            self.pool.start(slot, share, need, layout)
        self.closer.tell("begun", trial)
        if training is not None:
            shared.adopt(training, work)
            if training.trial != trial.name:  # its own: it was interrupted after its training
                self.ledger.reuse(trial, work.repeat, training.trial)
            self.closer.leave(work)
            self.hearing.judge(work, training.result)
        return True

    def _measure(self, done: Trained) -> None:
        slot = self.under_way.take_slot()
        self.under_way.working[slot], self._waits_since = done.work, None
        tasks = self.under_way.after.begin(slot, done)
        done.work.began = done.work.trial.began = time.monotonic()
        self.pool.measure(slot, str(done.work.run.path), done.work.feasible.plan.resources, tasks)

    def _stop_asked(self) -> bool:
        if not self._stopping and control.stop_requested(self.run):
            self._stopping = True
            self.ended = f"stopped by {control.stop_reason(self.run) or 'request'}"
            for work in self.under_way.working.values():
                control.request_stop(work.run, "the sweep was asked to stop")
        return self._stopping
