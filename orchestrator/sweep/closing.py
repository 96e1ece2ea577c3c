"""`Closer`: what is done when a training or a trial ends: ledger, searcher, tracking, checkpoints, in that order."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.cluster.events import Event
from orchestrator.runs.paths import RunDir
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.ledger import Ledger
from orchestrator.sweep.objectives import Objective, aggregate, pareto_front, scores_of
from orchestrator.sweep.schedulers import Scheduler, close_trial
from orchestrator.sweep.source import Source
from orchestrator.sweep.stages import tell_stages
from orchestrator.sweep.trial import Trial
from orchestrator.sweep.trial_run import TrialRun, drop_checkpoints, end_folder, trial_folder


@dataclass(frozen=True)
class Closer:
    """Closes trainings and trials of one sweep."""

    run: RunDir
    sweep: SweepSection
    ledger: Ledger
    source: Source
    scheduler: Scheduler
    on_event: Callable[[Event], None]

    def close(self, work: TrialRun, state: str, reason: str, values: dict[str, float] | None = None) -> TrialRun | None:
        """Close one training; when it was the last of its trial, the trial. Return the next repeat, if there is one."""
        trial, values = work.trial, values or {}
        self.leave(work)
        told = {f"objective/{each.name}": values[each.name] for each in self.source.objectives if each.name in values}
        line = f"{state}: {reason}" if reason else f"{state}: {self._said(values)}"
        work.close(state, line, told, {"trial.state": state, **_stage_tags(work)})
        if state == "interrupted":
            self.ledger.end(trial, state, reason=reason)
            self.tell("interrupted", trial)
            return None
        tell_stages(work.run, work.feasible.job, trial.trained_by.get(work.repeat, ""))
        if state == "finished":
            self.ledger.repeat(trial, work.repeat, values)
            if work.repeat + 1 < self.sweep.repeats:
                again = work.repeat + 1
                return TrialRun(trial, again, work.feasible, trial_folder(self.run, trial, again))
        self.finish(trial, state, reason, values)
        return None

    def leave(self, work: TrialRun) -> None:
        """Note what the attempt took that is over now, however it ended."""
        seconds = work.leave()
        if seconds is not None:
            self.ledger.leave(work.trial, work.repeat, seconds)

    def shut_out(self, trial: Trial) -> None:
        """Close the folders of a trial that was begun and is infeasible now: other constraints, another cluster."""
        for repeat in trial.attempts:
            folder = trial_folder(self.run, trial, repeat)
            end_folder(folder, trial.state, f"{trial.state}: {trial.reason}", tags={"trial.state": trial.state})
        if trial.attempts:
            close_trial(self.scheduler, trial.number)

    def finish(self, trial: Trial, state: str, reason: str, values: dict[str, float] | None = None) -> None:
        """Close a trial whose trainings are closed."""
        if state == "finished":
            columns = [trial.repeats[index] for index in sorted(trial.repeats)]
            values = aggregate(columns, self.sweep.aggregate, self.source.objectives)
        if trial.attempts and state != "infeasible":
            close_trial(self.scheduler, trial.number)
        self.ledger.end(trial, state, values=values, reason=reason)
        self.source.tell(trial)
        self._tidy()
        self.tell("ended", trial)

    def tell(self, what: str, trial: Trial) -> None:
        """Let the terminal know."""
        self.on_event(Event("trial", trial.name, {"what": what, "trial": trial}))

    def _tidy(self) -> None:
        """Delete the checkpoints of ended trials that something dominates and nobody is to begin from."""
        if self.sweep.keep == "all":
            return
        kept = set(front_of(self.ledger, self.source.objectives)) | self.source.needed()
        for trial in self.ledger.trials.values():
            if trial.is_over and trial.number not in kept and trial.state != "infeasible":
                for repeat in range(self.sweep.repeats):
                    drop_checkpoints(trial_folder(self.run, trial, repeat))

    def _said(self, values: dict[str, float]) -> str:
        return ", ".join(f"{each.name} {values.get(each.name, math.nan):.4g}" for each in self.source.objectives)


def _stage_tags(work: TrialRun) -> dict[str, str]:
    """Return tags that say how a trial's model was compressed and whose training it took."""
    steps = " -> ".join(step.use for step in work.feasible.job.compress.steps)
    of = work.trial.trained_by.get(work.repeat, "")
    return ({"trial.compressed_by": steps} if steps else {}) | ({"trial.trained_by": of} if of else {})


def front_of(ledger: Ledger, objectives: tuple[Objective, ...]) -> list[int]:
    """Return the numbers of the finished trials that no other dominates, the first objective's best first.

    A trial that a scheduler ended early takes part: its best checkpoint is as good as any.
    """
    done = [trial for trial in ledger.trials.values() if trial.state in ("finished", "stopped")]
    return pareto_front({trial.number: scores_of(trial.values, objectives) for trial in done})
