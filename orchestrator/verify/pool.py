"""Writes many traces with few starts: jobs of the same number of ranks share processes, which are the dear part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from orchestrator.spec.job import JobSpec

Write = Callable[[int, int, dict[str, Any], int, str], bool]
"""(rank, world size, job as plain values, steps, folder): trains and writes the trace; see `trace.write_trace`."""

_TIMEOUT_S = 600.0
_AT_ONCE = 16  # process groups are kept until the processes end
_DONE = "done"
_POLL_S = 0.05


@dataclass(frozen=True)
class Task:
    """A trace to write into `folder`."""

    job: JobSpec
    world_size: int
    folder: Path


def write_all(tasks: Sequence[Task], num_steps: int, write: Write) -> Iterator[tuple[Task, str]]:
    """Yield each task once it is done, with what went wrong ("" if nothing), fewest ranks first.

    A task that fails takes its processes with it; those that come after it get new ones.
    """
    for _, group in groupby(sorted(tasks, key=lambda task: task.world_size), key=lambda task: task.world_size):
        left = list(group)
        while left:
            done, error = 0, ""
            for error in _batch(left[:_AT_ONCE], num_steps, write):
                yield left[done], error
                done += 1
            left = left[done:]


def _batch(tasks: list[Task], num_steps: int, write: Write) -> Iterator[str]:
    """Yield "" per finished task; after the first that fails, its error, and end."""
    from orchestrator.testing.ranks import run_ranks

    for task in tasks:
        task.folder.mkdir(parents=True, exist_ok=True)
    jobs = [(task.job.model_dump(mode="json"), str(task.folder)) for task in tasks]
    with ThreadPoolExecutor(1) as thread:
        ranks = thread.submit(
            run_ranks, write_each, tasks[0].world_size, write, jobs, num_steps, timeout_s=_TIMEOUT_S * len(tasks)
        )
        for task in tasks:
            if not _finished(ranks, task.folder / _DONE):
                yield str(ranks.exception() or "the ranks ended without a trace")
                return
            yield ""


def _finished(ranks: Future[list[Any]], mark: Path) -> bool:
    """Wait until the mark is there, or the ranks have ended without it."""
    from concurrent.futures import wait

    while not mark.exists():
        if ranks.done():
            return mark.exists()
        wait([ranks], timeout=_POLL_S)
    return True


def write_each(
    rank: int, world_size: int, write: Write, jobs: list[tuple[dict[str, Any], str]], num_steps: int
) -> bool:
    """Write the trace of every job as one rank. Collective."""
    import warnings

    # Said of an embedding cut over tensor ranks; nothing writes into its result in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for job, folder in jobs:
        write(rank, world_size, job, num_steps, folder)
        if rank == 0:
            (Path(folder) / _DONE).touch()
    return True


def last_line(error: str) -> str:
    """Return what a traceback of ranks says in the end: `PlanError: ...`, without its module."""
    said = [line for line in error.splitlines() if line and not line.startswith((" ", "\t", "rank ", "Traceback"))]
    text = said[0] if said else error.strip()
    kind, colon, message = text.partition(": ")
    return f"{kind.rpartition('.')[2]}{colon}{message}"
