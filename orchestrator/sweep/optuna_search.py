"""Optuna's samplers as searchers: tpe, gp, nsga2. Optuna is the extra `sweep`; it is imported when one is built.

The study lives in memory only: after a restart it is filled again from the ledger, so it needs no storage of its own
and may as well be filled with the results of an earlier space or searcher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orchestrator.errors import NotAbleError
from orchestrator.sweep.point import Point, plain_copy, point_hash
from orchestrator.sweep.search import Outcome, SearchTask
from orchestrator.sweep.space import Param

_FAILED = ("infeasible", "oom", "diverged")


class OptunaSearcher:
    """Asks an Optuna study. Choices are offered by number, since theirs may be lists or sections."""

    def __init__(self, task: SearchTask, sampler: Any) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = optuna
        self._task = task
        directions = ["maximize" if each.direction == "max" else "minimize" for each in task.objectives]
        self._study: Any = optuna.create_study(directions=directions, sampler=sampler)
        self._open: dict[str, Any] = {}
        self._told: dict[str, tuple[Any, Any]] = {}

    def ask(self) -> Point:
        """Return the sampler's next point."""
        trial = self._study.ask()
        point: dict[str, Any] = {}
        for param in self._task.space.params:
            if self._task.space.is_active(param, point):
                point[param.path] = self._suggest(trial, param)
        digest = point_hash(point)
        if digest in self._told:  # asked again: nobody trains it twice, and a trial left open would count as a bad one
            state, values = self._told[digest]
            self._study.tell(trial, values, state=state)
        elif digest in self._open:
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._open[digest] = trial
        return point

    def tell(self, point: Point, outcome: Outcome) -> None:
        """Give the study a result; one from outside its present space is left out."""
        digest = point_hash(point)
        trial = self._open.pop(digest, None)
        state, values = self._told[digest] = self._judged(outcome)
        if trial is not None:
            self._study.tell(trial, values, state=state)
        elif self._task.space.holds(point):
            self._study.add_trial(self._known(point, state, values))

    def _suggest(self, trial: Any, param: Param) -> Any:
        if param.values is not None:
            return param.item(trial.suggest_categorical(param.path, list(range(len(param.values)))))
        if param.whole:
            value = trial.suggest_int(
                param.path, int(param.low), int(param.high), step=int(param.step or 1), log=param.log
            )
            return int(value)
        if param.step is not None:
            return param.item(trial.suggest_int(param.path, 0, (param.count or 1) - 1))
        return float(trial.suggest_float(param.path, param.low, param.high, log=param.log))

    def _known(self, point: Point, state: Any, values: Any) -> Any:
        chosen: dict[str, Any] = {}
        distributions: dict[str, Any] = {}
        for param in self._task.space.params:
            if param.path in point:
                chosen[param.path], distributions[param.path] = self._as_stored(param, point[param.path])
        return self._optuna.trial.create_trial(
            state=state, values=values, params=chosen, distributions=distributions
        )  # fmt: skip

    def _as_stored(self, param: Param, value: Any) -> tuple[Any, Any]:
        kinds = self._optuna.distributions
        if param.values is not None:
            known = [plain_copy(each) for each in param.values]
            return known.index(plain_copy(value)), kinds.CategoricalDistribution(list(range(len(known))))
        if param.whole:
            step = int(param.step or 1)
            return int(value), kinds.IntDistribution(int(param.low), int(param.high), log=param.log, step=step)
        if param.step is not None:
            return round((value - param.low) / param.step), kinds.IntDistribution(0, (param.count or 1) - 1)
        return float(value), kinds.FloatDistribution(param.low, param.high, log=param.log)

    def _judged(self, outcome: Outcome) -> tuple[Any, list[float] | None]:
        """Return Optuna's state and values. A point that cannot be trained ranks behind all that can."""
        states = self._optuna.trial.TrialState
        values = [outcome.values.get(each.name) for each in self._task.objectives]
        if outcome.state in ("finished", "stopped") and all(value is not None for value in values):
            return states.COMPLETE, [float(value) for value in values if value is not None]
        if outcome.state in _FAILED and len(values) == 1:
            return states.PRUNED, None
        return states.FAIL, None


class Tpe:
    """Optuna's tree-structured Parzen estimator: the usual choice; one objective or several."""

    @dataclass(frozen=True)
    class Config:
        """`startup`: points drawn at random first; `multivariate`: parameters modelled together."""

        startup: int = 10
        multivariate: bool = True

    @classmethod
    def build(cls, config: Any, task: SearchTask) -> OptunaSearcher:
        """Return the searcher. Raises NotAbleError without Optuna."""
        samplers = _samplers()
        sampler = samplers.TPESampler(
            seed=_seed(task),
            n_startup_trials=config.startup,
            multivariate=config.multivariate,
            group=config.multivariate and any(param.when for param in task.space.params),
            constant_liar=True,
        )
        return OptunaSearcher(task, sampler)


class Gp:
    """Optuna's Gaussian process: for few, costly trials; one objective or several."""

    @dataclass(frozen=True)
    class Config:
        """`startup`: points drawn at random first."""

        startup: int = 10

    @classmethod
    def build(cls, config: Any, task: SearchTask) -> OptunaSearcher:
        """Return the searcher. Raises NotAbleError without Optuna."""
        return OptunaSearcher(task, _samplers().GPSampler(seed=_seed(task), n_startup_trials=config.startup))


class Nsga2:
    """Optuna's NSGA-II: a genetic search for several objectives and many trials."""

    @dataclass(frozen=True)
    class Config:
        """`population`: points of one generation."""

        population: int = 20

        def __post_init__(self) -> None:
            if self.population < 2:
                raise ValueError(f"population must be at least 2, not {self.population}")

    @classmethod
    def build(cls, config: Any, task: SearchTask) -> OptunaSearcher:
        """Return the searcher. Raises NotAbleError without Optuna."""
        return OptunaSearcher(task, _samplers().NSGAIISampler(seed=_seed(task), population_size=config.population))


def _samplers() -> Any:
    import warnings

    try:
        import optuna
    except ImportError as error:
        raise NotAbleError(
            "sweep.search: tpe, gp and nsga2 need Optuna, which is not installed",
            hint="pip install 'orchestrator[sweep]', or use random, grid or sobol",
        ) from error
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna.samplers


def _seed(task: SearchTask) -> int:
    """Another seed after a restart: the same one would draw the points of the first start again."""
    return (task.seed + 7919 * task.asked) % 2**32
