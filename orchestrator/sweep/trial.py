"""`Trial`: one point of a sweep and what became of it, folded from the lines that the ledger has of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.checkpoint.fork import Fork
from orchestrator.sweep.birth import Birth
from orchestrator.sweep.point import Point

ENDED = ("finished", "stopped", "infeasible", "oom", "diverged", "failed")
"""States a trial stays in; `waiting`, `running` and `interrupted` ones are begun (again) on resume."""


@dataclass
class Trial:
    """One point of the sweep and what became of it. `values` are those of its best checkpoint, repeats put together.

    `trained_by` says for repeats that were not trained whose training they took, `attempts` how often each repeat was
    begun, `digests` what its job was (`spec.digest`). `evaluations` is the number of the newest evaluation, counted
    over repeats; `stopped_at` the one at which the scheduler ended the trial (0: none). `curve` holds (step, metrics)
    of each. `settings` are values of its job beside the point's, `predicted` what the searcher expected,
    `ranked_by` from which supernet it did. `seconds` and `worker_s` (times the workers that each had) are sums over
    attempts that are over; `under_way` is the repeat and time of one that is not, `began` its start in this process. A
    member of a population has a `birth`, and a `fork` once it has its parent's checkpoint.
    """

    number: int
    point: Point
    digest: str
    origin: str = "search"
    settings: Mapping[str, Any] = field(default_factory=dict)
    predicted: Mapping[str, float] = field(default_factory=dict)
    ranked_by: str = ""
    state: str = "waiting"
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)
    repeats: dict[int, dict[str, float]] = field(default_factory=dict)
    trained_by: dict[int, str] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    workers: int = 1
    seconds: float = 0.0
    worker_s: float = 0.0
    under_way: tuple[int, float] | None = None
    step: int = 0
    total_steps: int = 0
    evaluations: int = 0
    stopped_at: int = 0
    stopped_step: int = 0
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    began: float = 0.0
    birth: Birth | None = None
    fork: Fork | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended for good."""
        return self.state in ENDED

    @property
    def name(self) -> str:
        """Name of its folder: `t007`."""
        return f"t{self.number:03d}"

    @property
    def values_by_path(self) -> Point:
        """What its job has in place of the swept job's values: the point, and the searcher's settings for it."""
        return {**self.point, **self.settings}

    def worker_s_by(self, now_s: float) -> float:
        """Return worker seconds of all attempts, of the one under way up to now (on the monotonic clock)."""
        return self.worker_s + (max(0.0, now_s - self.began) * self.workers if self.began else 0.0)

    def apply(self, record: Mapping[str, Any]) -> None:
        """Take in one line of the ledger. Raises KeyError, TypeError, ValueError when it is not well-formed."""
        match record["event"]:
            case "begun":
                self._begin(int(record["repeat"]), record)
            case "evaluated":
                self._evaluate(record)
            case "left":
                self._leave(float(record["seconds"]))
            case "forked":
                self.fork = Fork(str(record["checkpoint"]), str(record["sha256"]))
            case "repeat":
                self.repeats[int(record["index"])] = dict(record["values"])
            case "reused":
                self.trained_by[int(record["index"])] = str(record["of"])
            case "ended":
                self._end(record)

    def _begin(self, repeat: int, record: Mapping[str, Any]) -> None:
        self.state, self.workers = "running", int(record["workers"])
        self.attempts[repeat] = self.attempts.get(repeat, 0) + 1
        self.digests[repeat], self.under_way = str(record["job"]), (repeat, float(record["time_s"]))

    def _leave(self, seconds: float) -> None:
        self.seconds, self.under_way = self.seconds + seconds, None
        self.worker_s += seconds * self.workers

    def _evaluate(self, record: Mapping[str, Any]) -> None:
        self.evaluations, self.step = int(record["number"]), int(record["step"])
        self.curve.append((self.step, dict(record["metrics"])))
        if record["stop"]:
            self.stopped_at, self.stopped_step = self.evaluations, self.step

    def _end(self, record: Mapping[str, Any]) -> None:
        self.state, self.reason, self.values = record["state"], record["reason"], dict(record["values"])
        self.step, self.total_steps = int(record["step"]), int(record["total_steps"])
