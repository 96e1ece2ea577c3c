"""Learning-rate schedules: a factor of the base rate as a pure function of (step, total steps).

Being a function of the step, a schedule has no state to lose. All warm up linearly over `warmup_steps`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar, Protocol

from orchestrator import plugins
from orchestrator.spec.base import Use


class Schedule(Protocol):
    """What the engine asks of a schedule."""

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor of the base rate for the step numbered `step` (from 0)."""


def build_schedule(use: Use) -> Schedule:
    """Return the schedule that a job names."""
    schedule: Schedule = plugins.build("schedules", use.use, use.options)
    return schedule


@dataclass(frozen=True)
class _Warmup:
    """`warmup_steps`: steps over which the rate rises from 0. `final`: factor at the last step."""

    Config: ClassVar[type]
    warmup_steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            raise ValueError("warmup_steps must not be negative")
        if not 0 <= self.final <= 1:
            raise ValueError("final must be in [0, 1]")

    def rise(self, step: int) -> float | None:
        """Return the factor while warming up, None after."""
        return (step + 1) / (self.warmup_steps + 1) if step < self.warmup_steps else None

    def share(self, step: int, total_steps: int) -> float:
        """Return how much of the time after warm-up is over, in [0, 1]."""
        return min(1.0, (step - self.warmup_steps) / max(1, total_steps - 1 - self.warmup_steps))


@dataclass(frozen=True)
class Constant:
    """The base rate throughout, after warm-up."""

    Config: ClassVar[type]
    warmup_steps: int = 0

    @staticmethod
    def build(config: Constant) -> Constant:
        """Return the schedule."""
        return config

    def factor(self, step: int, total_steps: int) -> float:
        """Return 1 after warm-up."""
        rise = _Warmup(self.warmup_steps).rise(step)
        return 1.0 if rise is None else rise


@dataclass(frozen=True)
class Cosine(_Warmup):
    """Half a cosine wave from 1 down to `final` (Loshchilov and Hutter, 2017)."""

    @staticmethod
    def build(config: Cosine) -> Cosine:
        """Return the schedule."""
        return config

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor."""
        rise = self.rise(step)
        if rise is not None:
            return rise
        return self.final + (1 - self.final) * 0.5 * (1 + cos(pi * self.share(step, total_steps)))


@dataclass(frozen=True)
class Linear(_Warmup):
    """A straight line from 1 down to `final`."""

    @staticmethod
    def build(config: Linear) -> Linear:
        """Return the schedule."""
        return config

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor."""
        rise = self.rise(step)
        return 1 - (1 - self.final) * self.share(step, total_steps) if rise is None else rise


@dataclass(frozen=True)
class WarmupStableDecay(_Warmup):
    """Warm-up, the base rate, then a straight line down over the last `decay` share of all steps (WSD)."""

    decay: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.decay <= 1:
            raise ValueError("decay must be in (0, 1]")

    @staticmethod
    def build(config: WarmupStableDecay) -> WarmupStableDecay:
        """Return the schedule."""
        return config

    def factor(self, step: int, total_steps: int) -> float:
        """Return the factor."""
        rise = self.rise(step)
        if rise is not None:
            return rise
        falling = max(1.0, self.decay * total_steps)
        left = total_steps - 1 - step
        return 1.0 if left >= falling else self.final + (1 - self.final) * left / falling


# A schedule is its own Config: all it has is its keys.
Constant.Config = Constant
Cosine.Config = Cosine
Linear.Config = Linear
WarmupStableDecay.Config = WarmupStableDecay
