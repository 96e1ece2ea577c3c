"""Your own code at fixed moments of a run: subclass `Callback`, name it under `train.callbacks`.

Every rank calls every method. An exception ends the run with your traceback; it is never swallowed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator import plugins
from orchestrator.errors import OrchestratorError, TrainError
from orchestrator.plan.plan import Plan
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Moment:
    """What a callback sees. `module` holds this rank's parameters (plain names); do not change its structure."""

    job: JobSpec
    plan: Plan
    rank: int
    module: nn.Module
    optimizer: Optimizer


class Callback:
    """Override what you need; every default does nothing."""

    def on_start(self, moment: Moment, step: int) -> None:
        """Before the first step of this attempt; `step` steps are done already (0, or more after a resume)."""

    def on_step_end(self, moment: Moment, step: int) -> None:
        """After each optimiser step; `step` counts from 1."""

    def on_evaluate(self, moment: Moment, step: int, metrics: Mapping[str, float]) -> None:
        """After each evaluation, with metrics over the whole validation split."""

    def on_end(self, moment: Moment, step: int) -> None:
        """After the last step, however training ended, unless it failed."""


class Callbacks:
    """The callbacks of a job, called in the order of the job file."""

    def __init__(self, job: JobSpec) -> None:
        self._all: list[tuple[str, Callback]] = [
            (use.use, plugins.build("callbacks", use.use, use.options)) for use in job.train.callbacks
        ]

    def start(self, moment: Moment, step: int) -> None:
        """Call `on_start` of all."""
        for name, callback in self._all:
            with _blame(name):
                callback.on_start(moment, step)

    def step_end(self, moment: Moment, step: int) -> None:
        """Call `on_step_end` of all."""
        for name, callback in self._all:
            with _blame(name):
                callback.on_step_end(moment, step)

    def evaluate(self, moment: Moment, step: int, metrics: Mapping[str, float]) -> None:
        """Call `on_evaluate` of all."""
        for name, callback in self._all:
            with _blame(name):
                callback.on_evaluate(moment, step, metrics)

    def end(self, moment: Moment, step: int) -> None:
        """Call `on_end` of all."""
        for name, callback in self._all:
            with _blame(name):
                callback.on_end(moment, step)


@contextmanager
def _blame(name: str) -> Iterator[None]:
    try:
        yield
    except OrchestratorError:
        raise
    except Exception as error:  # user code may raise anything; the error names whose code it was
        raise TrainError(
            f"callback {name} raised {type(error).__name__}: {error}", hint="mend it, then --resume"
        ) from error
