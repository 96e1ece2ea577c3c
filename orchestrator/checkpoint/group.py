"""`Group`: how ranks agree during a save or a load. Whatever one rank raises, all ranks raise; nobody is left waiting.

It talks over a gloo group of its own, so that a writer thread never shares a process group with training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException  # derives from BaseException: catch it by name

from orchestrator.checkpoint.disk import FULL
from orchestrator.errors import CheckpointError

T = TypeVar("T")
_MAX_TEXT = 400


class DiskFullError(CheckpointError):
    """A save did not fit; the store makes room and tries once more."""


@dataclass(frozen=True)
class _Failure:
    """What one rank tells the others about its error."""

    message: str
    hint: str
    full: bool
    heard: bool = False
    """Only heard of from another rank, through DCP."""


class Group:
    """All ranks of a run, or one process alone. Calls on it are collective and come from one thread at a time."""

    def __init__(self, process_group: dist.ProcessGroup | None) -> None:
        self.process_group = process_group
        self.rank = dist.get_rank(process_group) if process_group is not None else 0
        self.world_size = dist.get_world_size(process_group) if process_group is not None else 1

    @classmethod
    def create(cls, *, timeout_s: float = 1800.0) -> Group:
        """Make a new gloo group over all ranks (collective); a group of one where no process group exists."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(None)
        return cls(dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s)))

    @classmethod
    def default(cls) -> Group:
        """Return the default process group, or a group of one."""
        return cls(dist.group.WORLD if dist.is_available() and dist.is_initialized() else None)

    def close(self) -> None:
        """Leave the group. Only for groups from `create`."""
        if self.process_group is not None and dist.is_initialized():
            dist.destroy_process_group(self.process_group)
        self.process_group = None

    def agree(self, doing: str, step: Callable[[], T]) -> list[T]:
        """Run `step` on every rank and return every rank's result, by rank.

        Raises CheckpointError on all ranks when any rank failed, DiskFullError when the reason was a full volume. Its
        words begin with `doing`, for example "writing step 5".
        """
        outcome: T | _Failure
        try:
            outcome = step()
        except (Exception, CheckpointException) as error:  # of any kind: the other ranks wait for this one's answer
            outcome = _describe(error, doing, self.rank, self.world_size)
        results: list[T | _Failure] = [outcome]
        if self.process_group is not None:
            results = [outcome] * self.world_size
            try:
                dist.all_gather_object(results, outcome, group=self.process_group)
            except RuntimeError as error:
                raise CheckpointError(f"a rank was lost while {doing}: {error}") from error
        failures = [one for one in results if isinstance(one, _Failure)]
        if failures:
            kind = DiskFullError if any(one.full for one in failures) else CheckpointError
            told = min(failures, key=lambda one: one.heard)  # who met the error knows most about it
            raise kind(told.message, hint=told.hint)
        return [one for one in results if not isinstance(one, _Failure)]


def _describe(error: BaseException, doing: str, rank: int, world_size: int) -> _Failure:
    """Put an error into words. DCP's own carries one cause per failed rank; ours are complete sentences already."""
    causes: dict[int, BaseException] = {rank: error}
    if isinstance(error, CheckpointException):
        causes = {failed: cause for failed, (cause, _) in error.failures.items()}
    failed, cause = next(iter(causes.items()))
    full = any(is_full(one) for one in causes.values())
    heard = cause is not error
    if isinstance(cause, CheckpointError):
        place = f"rank {failed}: " if world_size > 1 else ""
        return _Failure(place + cause.message, cause.hint, full, heard)
    place = f" on rank {failed}" if world_size > 1 else ""
    lines = str(cause).splitlines() or [""]
    return _Failure(f"{doing} failed{place}: {type(cause).__name__}: {lines[0][:_MAX_TEXT]}", "", full, heard)


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a volume or a quota is full."""
    return isinstance(error, DiskFullError) or (isinstance(error, OSError) and error.errno in FULL)
