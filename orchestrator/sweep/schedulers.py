"""Schedulers: which trials end early, decided at each evaluation from the scores so far. Pure; the driver carries out.

A score is the scheduler's metric turned so that more is better. Evaluations of a trial are numbered from 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Literal, Protocol

from orchestrator import plugins
from orchestrator.spec.sweep import SweepSection
from orchestrator.sweep.objectives import Objective


class Scheduler(Protocol):
    """What a plug-in of the group `schedulers` builds: `build(config)` returns one."""

    def should_stop(self, trial: int, evaluation: int, score: float) -> bool:
        """Take note of a score and say whether the trial ends here."""

    def close(self, trial: int) -> None:
        """Take note that a trial has ended. May be left out."""


class Fifo:
    """Every trial runs to its end."""

    uses_metric = False

    @dataclass(frozen=True)
    class Config:
        """Takes no keys."""

    @classmethod
    def build(cls, config: Any) -> Fifo:
        """Return the scheduler."""
        return cls()

    def should_stop(self, trial: int, evaluation: int, score: float) -> bool:
        """Say no."""
        return False

    def close(self, trial: int) -> None:
        """Do nothing."""


@dataclass
class Rungs:
    """One bracket of successive halving without waiting (Li et al., ASHA, 2018): scores by rung."""

    grace: int
    reduction: int
    scores: dict[int, list[float]] = field(default_factory=dict)

    def should_stop(self, evaluation: int, score: float) -> bool:
        """At a rung (grace, grace x reduction, ...): stop unless among the best 1/reduction that reached it so far."""
        if not self.is_rung(evaluation):
            return False
        if not math.isfinite(score):
            return True
        here = self.scores.setdefault(evaluation, [])
        here.append(score)
        kept = max(1, len(here) // self.reduction)
        return score < sorted(here, reverse=True)[kept - 1]

    def is_rung(self, evaluation: int) -> bool:
        """Say whether an evaluation is one of the rungs."""
        rung = self.grace
        while rung < evaluation:
            rung *= self.reduction
        return rung == evaluation


@dataclass(frozen=True)
class _HalvingConfig:
    """`metric` and `mode` say what is compared (absent: the one objective that evaluations report);
    `grace` is the first rung, in evaluations; from rung to rung it is `reduction` times longer and one in `reduction`
    goes on."""

    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    grace: int = 1
    reduction: int = 3

    def __post_init__(self) -> None:
        if self.grace < 1:
            raise ValueError(f"grace must be at least 1 evaluation, not {self.grace}")
        if self.reduction < 2:
            raise ValueError(f"reduction must be at least 2, not {self.reduction}")


class Asha:
    """Asynchronous successive halving: at each rung only the best share of the trials goes on; nobody waits."""

    Config = _HalvingConfig
    uses_metric = True

    @classmethod
    def build(cls, config: Any) -> Asha:
        """Return the scheduler."""
        return cls([Rungs(config.grace, config.reduction)])

    def __init__(self, brackets: Sequence[Rungs]) -> None:
        self._brackets = brackets

    def should_stop(self, trial: int, evaluation: int, score: float) -> bool:
        """Ask the trial's bracket."""
        return self._brackets[trial % len(self._brackets)].should_stop(evaluation, score)

    def close(self, trial: int) -> None:
        """Do nothing: scores of ended trials stay."""


@dataclass(frozen=True)
class _HyperbandConfig(_HalvingConfig):
    """Keys of asha, and `brackets`: trials are dealt to so many, each with `reduction` times the grace of the last."""

    brackets: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.brackets < 1:
            raise ValueError(f"brackets must be at least 1, not {self.brackets}")


class Hyperband(Asha):
    """Asynchronous HyperBand: several ASHA brackets side by side, from eager to patient."""

    Config = _HyperbandConfig

    @classmethod
    def build(cls, config: Any) -> Hyperband:
        """Return the scheduler."""
        return cls([Rungs(config.grace * config.reduction**n, config.reduction) for n in range(config.brackets)])


@dataclass(frozen=True)
class _MedianConfig:
    """`metric`, `mode` as for asha; no trial ends before `grace` evaluations, nor before `min_trials` others got as
    far."""

    metric: str | None = None
    mode: Literal["min", "max"] | None = None
    grace: int = 2
    min_trials: int = 3

    def __post_init__(self) -> None:
        if self.grace < 1 or self.min_trials < 1:
            raise ValueError("grace and min_trials must be at least 1")


class Median:
    """Median stopping (Golovin et al., Vizier, 2017): best score so far below the median of the others' averages."""

    Config = _MedianConfig
    uses_metric = True

    @classmethod
    def build(cls, config: Any) -> Median:
        """Return the scheduler."""
        return cls(config.grace, config.min_trials)

    def __init__(self, grace: int, min_trials: int) -> None:
        self._grace, self._min_trials = grace, min_trials
        self._scores: dict[int, list[float]] = {}

    def should_stop(self, trial: int, evaluation: int, score: float) -> bool:
        """Compare with the averages that other trials had at this evaluation."""
        mine = self._scores.setdefault(trial, [])
        mine.append(score)
        others = [
            fmean(each[:evaluation]) for key, each in self._scores.items() if key != trial and _got(each, evaluation)
        ]
        if evaluation < self._grace or len(others) < self._min_trials:
            return False
        return max(mine) < median(others)

    def close(self, trial: int) -> None:
        """Do nothing: averages of ended trials stay."""


def _got(scores: Sequence[float], evaluation: int) -> bool:
    return len(scores) >= evaluation and all(math.isfinite(each) for each in scores[:evaluation])


def build_scheduler(sweep: SweepSection, objectives: tuple[Objective, ...]) -> tuple[Scheduler, Objective | None]:
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


def close_trial(scheduler: Scheduler, trial: int) -> None:
    """Tell a scheduler that a trial has ended, if it wants to know."""
    close = getattr(scheduler, "close", None)
    if close is not None:
        close(trial)


def replay(
    scheduler: Scheduler, judged_by: Objective | None, history: Sequence[tuple[int, int, Mapping[str, float]]]
) -> None:
    """Tell a new scheduler all that was said before (`Ledger.history`), so that it decides as if it had been there.

    Its answers are not asked for: what an earlier start decided stands.
    """
    for trial, evaluation, metrics in history:
        if not evaluation:
            close_trial(scheduler, trial)
        elif judged_by is not None:
            scheduler.should_stop(trial, evaluation, judged_by.score(metrics.get(judged_by.name, math.nan)))
