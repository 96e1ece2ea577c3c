"""One attempt to train, seen by its executor: started, polled, killed. Implemented by `local` and `fit`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.cluster.failure import Failure
from orchestrator.runs.paths import RunDir


@dataclass(frozen=True)
class Errand:
    """What every rank does: the function `entry` (`package.module:name`), given the `seal` of what it was handed."""

    entry: str = "orchestrator.train.entry:run_rank"
    seal: str = ""


@dataclass(frozen=True)
class Order:
    """What an attempt is to do: `resume` from the newest checkpoint, commit under `token`."""

    run: RunDir
    attempt: int
    token: int
    resume: bool
    errand: Errand = field(default_factory=Errand)


@dataclass(frozen=True)
class Ended:
    """How the processes ended: `failure` is None when all ended well."""

    failure: Failure | None = None


class Attempt(Protocol):
    """The processes of one attempt."""

    def start(self) -> None:
        """Start them; returns at once."""

    def poll(self) -> Ended | None:
        """Return how they ended, None while they run."""

    def kill(self) -> None:
        """End them now; `poll` says so soon after."""
