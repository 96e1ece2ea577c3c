"""How a failure is said: one root error, one kind for each party who must act, and `Problem`, a finding with a place.

Every error says what, where, the value and what to do. All of them pickle, so they cross process boundaries whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One finding about a job: where it stands, what is wrong, what would be right.

    `path` is the dotted key as used for overrides (`optim.lr`). `line` and `column` count from 1; 0 means unknown.
    `source` is the quoted line; `file` may be `override #2` when the value came from the command line.
    """

    path: str
    message: str
    hint: str = ""
    code: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON-ready values."""
        return asdict(self)


class OrchestratorError(Exception):
    """Root of every error this package raises on purpose. `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint, self.problems)

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


def _rebuild(kind: type[OrchestratorError], message: str, hint: str, problems: tuple[Problem, ...]) -> Exception:
    return kind(message, hint=hint, problems=problems)


class JobFileError(OrchestratorError):
    """The job file is not well-formed: its author mends it."""

    exit_code = 2


class PlanError(OrchestratorError):
    """The job is well-formed but does not fit the model, the data or the machine: its author changes the job."""

    exit_code = 2


class ClusterError(OrchestratorError):
    """Processes could not be placed, started or kept alive: the cluster or its operator must act."""


class NotAbleError(ClusterError):
    """The environment cannot do what was asked (missing package, no such device, no resources in time)."""

    exit_code = 4


class TrainError(OrchestratorError):
    """Training itself failed: a non-finite loss that stays, a user callback that raised, out of memory."""


class CheckpointError(OrchestratorError):
    """A checkpoint could not be written, or none that verifies could be found."""


class TrackingError(OrchestratorError):
    """The tracking server is wrong or unreachable at a first start."""


class ExportError(OrchestratorError):
    """An exported file does not give what the trained model gives."""
