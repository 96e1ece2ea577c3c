"""What every rank process does around `run_rank`, under Ray and as a local child: its log and its last words."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.attempt import Errand
from orchestrator.cluster.failure import failure_of, write_failure
from orchestrator.cluster.seats import Seat, own_seat, require_node, write_seat
from orchestrator.runs.heartbeat import read_heartbeats
from orchestrator.runs.parent import die_with_parent
from orchestrator.runs.paths import RunDir

if TYPE_CHECKING:
    from orchestrator.train.ports import StepReport

USUAL = Errand()


def run_guarded(
    folder: str,
    *,
    rank: int,
    world_size: int,
    local_rank: int,
    attempt: int,
    token: int,
    resume: bool,
    report: Callable[[StepReport], None] | None = None,
    seat: Seat | None = None,
    wanted_node: str = "",
    errand: Errand = USUAL,
) -> Any:
    """Do a rank's `errand` (by default: train as one of a run); its first step waits until the driver allows it.

    `seat` says where this process runs (absent: on this machine), `wanted_node` where it was meant to. What the rank
    raises is left in the run's folder for the driver, then raised again. Output of any kind goes to
    `logs/rank-<r>.log`.
    """
    run = RunDir(Path(folder))
    die_with_parent()
    redirect_output(run.logs / f"rank-{rank}.log")
    try:
        seat = seat or own_seat(rank, local_rank)
        require_node(seat, wanted_node)
        write_seat(run, attempt, seat)
        handed = {"seal": errand.seal} if errand.seal else {}
        return pkgutil.resolve_name(errand.entry)(
            run,
            rank=rank,
            world_size=world_size,
            local_rank=local_rank,
            attempt=attempt,
            token=token,
            resume=resume,
            wait_for_go=True,
            report=report or (lambda report: None),
            **handed,
        )
    except BaseException as error:
        # Whatever ends a rank must be told: the launcher's own wrapping loses rank, step and hint.
        with suppress(OSError):
            write_failure(run, attempt, failure_of(error, rank=rank, step=_last_step(run, rank)))
        raise


def redirect_output(path: Path) -> None:
    """Send everything this process prints, C libraries included, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def _last_step(run: RunDir, rank: int) -> int:
    return next((beat.step for beat in read_heartbeats(run) if beat.rank == rank), -1)
