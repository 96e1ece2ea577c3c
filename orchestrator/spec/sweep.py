"""`SweepSection`: which values of a job are searched, for what, how, and how long. Part of `JobSpec`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from orchestrator.spec.base import Section, Use
from orchestrator.spec.expression import checked

REFUSED = {
    "searchers": {
        "ax": "Ax has moved the names that Ray's wrapper of it imports",
        "bayesopt": "bayesian-optimization has removed what Ray's wrapper of it uses; gp does the same",
        "hebo": "HEBO asks for versions of numpy and scipy that torch and Ray no longer work with",
        "zoopt": "ZOOpt refuses ranges over a logarithm",
        "bohb": "hpbandster is no longer maintained; tpe with asha does much the same",
        "hyperopt": "tpe is the same method, maintained",
    },
    "schedulers": {
        "pb2": "it needs a Gaussian process of its own; its relative pbt is offered, as a searcher",
    },
}
"""What people may ask for by name and is not offered, and why."""

ELSEWHERE = {
    ("schedulers", "pbt"): (
        "pbt is a searcher here, since it says from whose checkpoint and with which values a trial begins",
        "write it under sweep.search: `search: {use: pbt, population: 8}`, and leave the scheduler out",
    ),
}
"""What people know under another section: what it is here, and where to write it."""

Condition = Annotated[str, AfterValidator(checked)]


class SweepParam(Section):
    """What one parameter may be: `values`, or a range from `min` to `max`."""

    values: tuple[Any, ...] | None = Field(default=None, min_length=1)
    """Choices. A list in place of the mapping says the same."""
    min: int | float | None = None
    """Least value. With `max`, both written as whole numbers: only whole numbers are tried (write 1.0 for any)."""
    max: int | float | None = None
    """Largest value."""
    log: bool = False
    """Draw evenly over the logarithm: for values that span powers of ten."""
    step: int | float | None = Field(default=None, gt=0)
    """Only min, min + step, min + 2 step, ..."""
    when: Condition | None = None
    """The parameter is there only when this holds of the trial's job, for example `model.use == 'cnn'`."""

    @model_validator(mode="after")
    def _one_kind(self) -> SweepParam:
        if self.values is not None:
            others = [key for key in ("min", "max", "step") if getattr(self, key) is not None]
            if others or self.log:
                raise ValueError(f"values are choices, and {(others or ['log'])[0]} belongs to a range: give one")
            return self
        if self.min is None or self.max is None:
            raise ValueError("give `values`, or both `min` and `max`")
        if self.min >= self.max:
            raise ValueError(f"min {self.min} is not below max {self.max}")
        if self.log and self.min <= 0:
            raise ValueError(f"min is {self.min}, and a log range has to begin above 0: write for example 1e-5")
        if self.log and self.step is not None:
            raise ValueError("step does not go with log: list the `values` instead")
        return self


class SweepCost(Section):
    """Money, in whatever currency the price is in. It is worker seconds by their price: what idles is not counted."""

    worker_hour: PositiveFloat
    """Price of one worker (a process with its CPUs and GPUs) for an hour."""
    limit: PositiveFloat | None = None
    """No trial begins once all trials together have cost this much. Absent: the cost is told, nothing more."""

    def of(self, worker_s: float) -> float:
        """Return what so many worker seconds cost."""
        return worker_s / 3600 * self.worker_hour


class SweepSection(Section):
    """A search over this job: `orchestrator sweep JOB`. `orchestrator run JOB` trains the job as it stands."""

    space: dict[str, SweepParam | tuple[Any, ...]] = Field(min_length=1)
    """Parameters by dotted path into the job (`optim.lr`): a list of choices, or `{min, max, log, step, when}`."""
    constraints: tuple[Condition, ...] = ()
    """Expressions over the trial's job that must hold, for example `model.dim % model.heads == 0`; `plan.num_params`,
    `plan.flops_per_sample`, `plan.world_size`, `plan.total_steps` and `plan.memory_bytes` may stand in them."""
    objectives: dict[str, Literal["min", "max"]] = Field(default_factory=dict)
    """Metrics of the best checkpoint (`val/accuracy`), or `model/params`, `model/flops`, `time/step_s`,
    `time/train_s`, `time/latency_ms`; of the compressed file `compress/val/accuracy`, `compress/size_bytes`,
    `compress/size_ratio`, `compress/latency_ms`; and their direction. Several: a Pareto front. Absent: what
    `train.monitor` names."""
    search: Use = Use(use="random")
    """Where points come from: random, grid, sobol, tpe, gp, nsga2, pbt (population based training), supernet (one net's
    parts), or your own."""
    scheduler: Use = Use(use="fifo")
    """Which trials end early: fifo (none), asha, hyperband, median, or your own."""
    trials: PositiveInt | None = None
    """Points to train, infeasible ones not counted. Absent: until a budget is spent or there are no more points."""
    time_s: PositiveFloat | None = None
    """No trial begins later than this many seconds after the start (of all attempts together)."""
    worker_s: PositiveFloat | None = None
    """No trial begins once all trials together have used this many seconds of workers (processes x seconds)."""
    cost: SweepCost | None = None
    """What a worker costs, and what the sweep may."""
    parallel_trials: PositiveInt | Literal["auto"] = "auto"
    """Trials at a time; auto: as many as fit."""
    repeats: PositiveInt = 1
    """Trainings of every point, with seeds `train.seed`, `train.seed` + 1, ..."""
    aggregate: Literal["mean", "median", "worst"] = "mean"
    """What the repeats of a point count as."""
    start: tuple[dict[str, Any], ...] = ()
    """Known-good points, tried first: values by path; parameters left out keep the job's value where it is allowed."""
    seed: NonNegativeInt = 0
    """The search is a function of this."""
    export: Literal["front", "best", "none"] = "front"
    """Which trials' models are exported, verified and evaluated on the test split at the end."""
    keep: Literal["front", "all"] = "front"
    """Whose checkpoints are kept: of trials on the front so far, or of all."""
