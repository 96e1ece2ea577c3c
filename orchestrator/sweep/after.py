"""What is done with a trial's model after training: compressed beside other trials, then timed while nothing else runs.

The loop asks which tasks there are and in which queue a trial waits for them; workers carry them out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.cluster.trial_stage import COMPRESS, LATENCY, TIME
from orchestrator.spec.job import JobSpec
from orchestrator.sweep.objectives import Objective
from orchestrator.sweep.trial_run import TrialRun


@dataclass
class Trained:
    """A training that has ended, and the tasks that are still to come."""

    work: TrialRun
    state: str
    reason: str
    values: dict[str, float]
    tasks: list[str]


@dataclass
class After:
    """Trials after their training: `beside` wait for any room, `alone` for a machine without other trials."""

    beside: deque[Trained] = field(default_factory=deque)
    alone: deque[Trained] = field(default_factory=deque)
    under_way: dict[int, tuple[Trained, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, done: Trained) -> bool:
        """Put a trial in its queue; False when nothing is left to do with it."""
        if done.tasks:
            (self.beside if done.tasks[0] == COMPRESS else self.alone).append(done)
        return bool(done.tasks)

    def begin(self, slot: int, done: Trained) -> tuple[str, ...]:
        """Note that a worker has it; return the tasks to do now."""
        now = (COMPRESS,) if done.tasks[0] == COMPRESS else tuple(done.tasks)
        self.under_way[slot] = (done, now)
        return now

    def end(self, slot: int) -> Trained | None:
        """Note that a worker is done with it; None when this slot was a training."""
        found = self.under_way.pop(slot, None)
        if found is None:
            return None
        done, now = found
        done.tasks = done.tasks[len(now) :]
        return done

    def drain(self) -> list[TrialRun]:
        """Empty both queues; return the trials that waited."""
        waiting = [done.work for done in (*self.beside, *self.alone)]
        self.beside.clear()
        self.alone.clear()
        return waiting


def tasks_after(job: JobSpec, objectives: Iterable[Objective]) -> list[str]:
    """Return what is to be done with the trained model of this job, in order."""
    names, steps = {each.name for each in objectives}, bool(job.compress.steps)
    return [
        *([COMPRESS] if steps else []),
        *([TIME] if steps and "compress/latency_ms" in names else []),
        *([LATENCY] if "time/latency_ms" in names else []),
    ]


def missing_values(values: dict[str, float], objectives: Iterable[Objective]) -> str:
    """Return the names of objectives that have no finite value, with commas; "" when all have."""
    return ", ".join(each.name for each in objectives if not math.isfinite(values.get(each.name, math.nan)))
