"""What went wrong in an attempt: each rank leaves a file, the driver picks the root cause and says what to do.

The first real exception counts; what other ranks raise because a peer vanished is a consequence.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from orchestrator.errors import (
    CheckpointError,
    ClusterError,
    JobFileError,
    NotAbleError,
    OrchestratorError,
    PlanError,
    TrainError,
)
from orchestrator.runs.paths import RunDir
from orchestrator.runs.record import write_json

KINDS = ("job", "user", "train", "oom", "storage", "placement", "hang", "preemption", "infra")
"""Who must act: the job's author (job, user, train, oom), the machine's owner (storage), nobody yet (the rest)."""

_PEER = ("connection closed by peer", "connection reset by peer", "timed out waiting", "broken pipe", "socket closed")
_FULL = ("no space left", "enforce fail", "disk quota", "read-only file system")
OOM_ADVICE = (
    "spread the state by `parallel.shard` or set `train.activation_checkpoint: full`, which `--resume` takes, "
    "or start a new run with a smaller `train.batch_size`, a larger `train.accumulate`, or `train.precision: bf16`"
)


@dataclass(frozen=True)
class Failure:
    """One failure. `rank` -1: no rank could say. `kind` is one of `KINDS`; `at_s` is the wall time."""

    kind: str
    type: str
    message: str
    hint: str = ""
    rank: int = -1
    step: int = -1
    traceback: str = ""
    at_s: float = 0.0
    exit_code: int = 1

    @property
    def signature(self) -> tuple[str, int]:
        """Two failures with the same one are the same failure again."""
        return self.type, self.step

    def describe(self) -> str:
        """Return one line: where, what."""
        where = f"rank {self.rank}, " if self.rank >= 0 else ""
        step = f"step {self.step}" if self.step > 0 else "before the first step"
        return f"{where}{step}: {self.type}: {self.message}"


def classify(error: BaseException) -> str:
    """Return the kind of an exception that a rank raised."""
    text = f"{type(error).__name__} {error}".lower()
    if isinstance(error, JobFileError | PlanError | NotAbleError):
        return "job"
    if isinstance(error, ClusterError):
        return "placement"
    if isinstance(error, MemoryError) or "outofmemory" in text or "out of memory" in text:
        return "oom"
    if isinstance(error, CheckpointError) or any(word in text for word in _FULL):
        return "storage"
    if isinstance(error, TrainError):
        # A user's callback is blamed by a TrainError around what it raised, and that is what counts.
        return classify(error.__cause__) if error.__cause__ is not None else "train"
    if isinstance(error, ConnectionError) or any(word in text for word in _PEER) or "distbackenderror" in text:
        return "infra"
    return "user"


def failure_of(error: BaseException, *, rank: int, step: int) -> Failure:
    """Describe an exception that a rank raised."""
    kind = classify(error)
    known = isinstance(error, OrchestratorError)
    hint = error.hint if isinstance(error, OrchestratorError) else ""
    message = (error.message if isinstance(error, OrchestratorError) else str(error)) or repr(error)
    if kind == "oom":
        hint = OOM_ADVICE
    return Failure(
        kind=kind,
        type=type(error).__name__,
        message=message,
        hint=hint,
        rank=rank,
        step=step,
        traceback="" if known else "".join(traceback.format_exception(error)),
        at_s=time.time(),
        exit_code=error.exit_code if isinstance(error, OrchestratorError) else 1,
    )


def failure_path(run: RunDir, attempt: int, rank: int) -> Path:
    """Return where a rank says what went wrong."""
    return run.failures / f"a{attempt}-rank{rank}.json"


def write_failure(run: RunDir, attempt: int, failure: Failure) -> None:
    """Leave a failure for the driver (rank -1: the driver's own)."""
    run.failures.mkdir(parents=True, exist_ok=True)
    write_json(failure_path(run, attempt, failure.rank), asdict(failure))


def read_failures(run: RunDir, attempt: int) -> list[Failure]:
    """Return what the ranks of an attempt left, by time. Files that are not whole are left out."""
    found: list[Failure] = []
    names = {item.name for item in fields(Failure)}
    for path in run.failures.glob(f"a{attempt}-rank*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        found.append(Failure(**{key: value for key, value in content.items() if key in names}))
    return sorted(found, key=lambda failure: failure.at_s)


def root_cause(failures: Iterable[Failure], ended: Failure | None) -> Failure:
    """Return the failure to show: the first that is not a consequence, else how the processes ended, else the first."""
    known = sorted(failures, key=lambda failure: failure.at_s)
    for failure in known:
        if failure.kind != "infra":
            return failure
    if ended is not None:
        step = max([ended.step, *(failure.step for failure in known)])
        return replace(ended, step=step)
    if known:
        return known[0]
    return Failure("infra", "WorkerLost", "the workers ended without saying why")


def hung_stacks(run: RunDir, attempt: int) -> list[Path]:
    """Return the stack dumps of ranks of this attempt whose own timer ended them."""
    found: list[Path] = []
    for path in sorted(run.logs.glob(f"stacks-a{attempt}-rank*.txt")):
        if "Timeout (" in path.read_text(encoding="utf-8", errors="replace")[:4096]:
            found.append(path)
    return found


def kernel_oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory so far (0 where it does not say)."""
    for path in (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0
