"""What the engine asks of the world around it. Handed in from above; in a test, the defaults do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from orchestrator.runs.paths import RunDir


class Recorder(Protocol):
    """Durable record of what happened, for tracking and for the progress line. Only rank 0 has a real one."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record named values at an optimiser step. Never raises, never waits for a server."""

    def record(self, kind: str, **payload: Any) -> None:
        """Record something else that the tracking sender knows by its kind. Never raises."""

    def close(self) -> None:
        """Make everything durable."""


class NullRecorder:
    """Records nothing (ranks other than 0, and tests)."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def record(self, kind: str, **payload: Any) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class StepReport:
    """What the launcher above hears at checkpoints and, `final`, at the end; equal on every rank.

    `train_s` is the time spent in steps of this attempt as the ranks agreed on it: what all must decide alike may be
    decided by it, never by a rank's own clock.
    """

    step: int
    metrics: Mapping[str, float]
    checkpoint: str | None = None
    final: bool = False
    train_s: float = 0.0


@dataclass(frozen=True)
class Ports:
    """The engine's outside world on one rank.

    `run` is None when nothing is to be written (then nothing is saved). `attempt` counts restarts from 1; `token` is
    the fencing token of the lease under which this attempt may commit checkpoints.
    """

    run: RunDir | None = None
    attempt: int = 1
    token: int = 0
    resume: bool = False
    until: int | None = None
    """Train no further than this step and save there; None: to the plan's last. Schedules go by the plan's length."""
    recorder: Recorder = field(default_factory=NullRecorder)
    report: Callable[[StepReport], None] = lambda report: None
    should_stop: Callable[[], bool] = lambda: False
    """Asked on rank 0 only, between steps; True: finish the step, save, leave."""
    judge: Callable[[int, Mapping[str, float]], bool] | None = None
    """Told every evaluation (step, metrics) on rank 0, may wait; True: save, leave. Given to all ranks or to none."""
    beat: Callable[[int, str], None] = lambda step, section: None
    """Heartbeat (step, section) with section one of start, step, eval, checkpoint, outside."""


@dataclass(frozen=True)
class FitResult:
    """How training ended. `status` is finished (got to the last step it was to take), stopped or early_stopped.

    `train_s` is the time of all attempts, each up to the checkpoint that the next one went on from.
    """

    status: str
    step: int
    total_steps: int
    epoch: float
    metrics: Mapping[str, float]
    best_step: int | None = None
    best_metrics: Mapping[str, float] = field(default_factory=dict)
    best_checkpoint: str | None = None
    last_checkpoint: str | None = None
    skipped_steps: int = 0
    train_s: float = 0.0
    step_s: float = 0.0
    """Mean seconds of a step in this attempt, without the first (it compiles and allocates) where there are others."""
    checkpoint_blocked_s: float = 0.0
