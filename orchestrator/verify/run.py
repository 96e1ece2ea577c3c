"""`verify_job`: runs a job's layout (or every layout that fits) and one process side by side, and compares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.errors import PlanError, TrainError
from orchestrator.spec.job import JobSpec
from orchestrator.verify.compare import Comparison, compare
from orchestrator.verify.facts import TOLERANCE, Facts, inexact, look_at
from orchestrator.verify.layouts import (
    Candidate,
    factorisations,
    fitting,
    in_precision,
    on_cpus,
    on_one_process,
    own_layout,
    ways,
)
from orchestrator.verify.pool import Task, Write, last_line, write_all
from orchestrator.verify.trace import write_trace

OnResult = Callable[[Comparison], None]
OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """All comparisons of one call, and what was left out of them by design."""

    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether every layout agrees with one process."""
        return all(comparison.agrees for comparison in self.comparisons)


def verify_job(
    job: JobSpec,
    *,
    num_steps: int = 3,
    max_ranks: int | None = None,
    on_result: OnResult = lambda comparison: None,
    on_progress: OnProgress = lambda text: None,
    write: Write = write_trace,
) -> Report:
    """Compare the job's own layout with one process; with `max_ranks`, every layout of at most so many ranks.

    Each layout is run in float64 and in the job's own precision, on CPU processes with gloo; `write` is what every rank
    does. Raises PlanError when the job's layout does not fit, or when there is nothing to compare.
    """
    job = on_cpus(job)
    candidates = [own_layout(job)] if max_ranks is None else _all(job, max_ranks, on_progress)
    return verify_candidates(
        job,
        candidates,
        list(dict.fromkeys(["fp64", job.train.precision])),
        num_steps=num_steps,
        on_result=on_result,
        on_progress=on_progress,
        write=write,
    )


def verify_candidates(
    job: JobSpec,
    candidates: Sequence[Candidate],
    precisions: list[str],
    *,
    num_steps: int,
    on_result: OnResult = lambda comparison: None,
    on_progress: OnProgress = lambda text: None,
    write: Write = write_trace,
) -> Report:
    """Compare these layouts of a job with one process, in each precision.

    Raises TrainError when one process cannot run the job; a model that cannot run in float64 is held to the others.
    """
    facts = look_at(job)
    with TemporaryDirectory(prefix="verify-") as folder:
        references = _References(job, facts, Path(folder) / "one")
        on_progress("one process")
        wanted = {(precision, references.pieces_of(each)) for precision in precisions for each in candidates}
        missing = references.write(sorted(wanted), num_steps, write)
        precisions = [precision for precision in precisions if precision not in missing]
        comparisons = []
        for found in _compared(candidates, precisions, references, num_steps, write, Path(folder) / "ranks"):
            comparisons.append(found)
            on_result(found)
    cannot = [f"the model cannot run in {name}: {why}" for name, why in missing.items()]
    return Report(tuple(comparisons), (*cannot, *inexact(job, facts, precisions)))


def _all(job: JobSpec, max_ranks: int, on_progress: OnProgress) -> list[Candidate]:
    found = list(fitting(job, max_ranks))
    total = sum(len(ways(layout)) for layout in factorisations(max_ranks))
    on_progress(f"{len(found)} of {total} layouts of 2 to {max_ranks} ranks fit this job")
    if not found:
        raise PlanError(
            f"no layout of 2 to {max_ranks} ranks fits this job: there is nothing to compare",
            hint="make train.batch_size a multiple of 2, 4 or 8",
        )
    return found


class _References:
    """Traces of one process, by precision and, where it matters, by the number of forward passes."""

    def __init__(self, job: JobSpec, facts: Facts, folder: Path) -> None:
        self.facts = facts
        self._job = job
        self._folder = folder

    def pieces_of(self, candidate: Candidate) -> int:
        """Return how many forward passes the one process takes per step to be comparable."""
        return candidate.pieces if self.facts.partition_matters else self._job.train.accumulate

    def folder_of(self, precision: str, pieces: int) -> Path:
        """Return where a trace is, or is to be."""
        return self._folder / f"{precision}-{pieces}"

    def write(self, wanted: list[tuple[str, int]], num_steps: int, write: Write) -> dict[str, str]:
        """Write the traces; return the precision the model cannot run in, with the reason. Raises TrainError."""
        tasks = [
            Task(on_one_process(in_precision(self._job, each), pieces), 1, self.folder_of(each, pieces))
            for each, pieces in wanted
        ]
        missing: dict[str, str] = {}
        for task, error in write_all(tasks, num_steps, write):
            if not error:
                continue
            if task.job.train.precision != "fp64" or self._job.train.precision == "fp64":
                raise TrainError(f"one process cannot run the job: {last_line(error)}", hint="run it with -v for more")
            missing["fp64"] = last_line(error)
        return missing


def _compared(
    candidates: Sequence[Candidate],
    precisions: list[str],
    references: _References,
    num_steps: int,
    write: Write,
    folder: Path,
) -> Iterator[Comparison]:
    cases: dict[Path, Candidate] = {}
    tasks: list[Task] = []
    for number, candidate in enumerate(candidates):
        for precision in precisions:
            place = folder / f"{number}-{precision}"
            cases[place] = candidate
            tasks.append(Task(in_precision(candidate.job, precision), candidate.world_size, place))
    for task, error in write_all(tasks, num_steps, write):
        each, precision = cases[task.folder], task.job.train.precision
        if error:
            yield Comparison(each.label, precision, (), None, error=last_line(error))
            continue
        allowed = references.facts.tolerances(each.job, precision, each.layout)
        want = references.folder_of(precision, references.pieces_of(each))
        yield compare(each.label, precision, task.folder, want, TOLERANCE[precision], allowed)
