"""What a dead worker costs: seconds from its kill to the next step, steps repeated, seconds spent waiting for saves.

`python -m tests.benchmarks recovery` starts `orchestrator run` with two workers, kills one of them (SIGKILL) at a
random step and lets the run end by itself. Seconds are wall time on a shared machine; the time that the same runs took
to start stands beside.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from orchestrator.runs.heartbeat import read_heartbeats
from orchestrator.runs.paths import RunDir
from orchestrator.train.callbacks import Callback, Moment

ROUNDS = 7
STEPS = 1500
EVERY = 50
JOB = """
name: recovery
model: {use: cnn}
data: {use: digits}
optim: {use: adamw, lr: 2e-3}
train: {steps: %d, batch_size: 64, callbacks: [{use: "tests.benchmarks.recovery:Marks", path: "%s"}]}
parallel: {replicate: 2}
checkpoint: {every_steps: %d}
cluster: {storage: "%s"}
"""


class Marks(Callback):
    """Appends step and wall time after every step of rank 0."""

    def __init__(self, path: str) -> None:
        self._path = path

    def on_step_end(self, moment: Moment, step: int) -> None:
        """Write one line, on rank 0."""
        if moment.rank == 0:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(f"{step} {time.time()!r}\n")


@dataclass(frozen=True)
class Recovery:
    """One round: seconds, steps, and the seconds that training waited for each of its saves."""

    start_s: float
    next_step_s: float
    repeated: int
    blocked_s: list[float]
    step_s: float


def measure(folder: Path, kill_at: int) -> Recovery:
    """Run the job, kill one worker once step `kill_at` is reached."""
    marks, run = folder / "marks", RunDir(folder / "runs" / "recovery-1")
    (folder / "job.yaml").write_text(JOB % (STEPS, marks, EVERY, folder / "runs"), encoding="utf-8")
    began = time.time()
    with open(folder / "out.txt", "wb") as out:
        command = [sys.executable, "-m", "orchestrator", "run", str(folder / "job.yaml")]
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        while max((beat.step for beat in read_heartbeats(run)), default=-1) < kill_at:
            if process.poll() is not None:
                raise SystemExit((folder / "out.txt").read_text())
            time.sleep(0.002)
        os.kill(max(read_heartbeats(run), key=lambda beat: beat.rank).pid, signal.SIGKILL)
        killed = time.time()
        if process.wait() != 0:
            raise SystemExit((folder / "out.txt").read_text())
    steps = [(int(step), float(at)) for step, at in (line.split() for line in marks.read_text().splitlines())]
    before, after = [each for each in steps if each[1] <= killed], [each for each in steps if each[1] > killed]
    # Rank 0 may still finish the step that it was in; recovery begins where the count goes back.
    again = next(n for n, (step, _) in enumerate(after) if step <= (before + after[:n])[-1][0])
    last = (before + after[:again])[-1][0]
    gaps = [b[1] - a[1] for a, b in pairwise(steps)]
    return Recovery(
        start_s=steps[0][1] - began,
        next_step_s=after[again][1] - killed,
        repeated=last - after[again][0] + 1,
        blocked_s=_blocked(run),
        step_s=median(gaps),
    )


def run() -> list[tuple[str, str]]:
    """Measure and return the rows of the table."""
    chance, found = random.Random(0), []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), chance.randrange(100, STEPS - 300)))
    blocked = [each for one in found for each in one.blocked_s]
    step = median(one.step_s for one in found)
    share = sum(blocked) / len(blocked) / (EVERY * step)
    return [
        (f"kill of a worker to the next step, median of {ROUNDS}", _range([one.next_step_s for one in found], "s")),
        ("command to the first step, the same runs", _range([one.start_s for one in found], "s")),
        (f"steps repeated (a save every {EVERY})", _range([float(one.repeated) for one in found], "steps")),
        (f"training waits for a save, median of {len(blocked)}", _range([1000 * each for each in blocked], "ms")),
        ("share of training spent waiting for saves", f"{100 * share:.2f} % (a step takes {1000 * step:.2f} ms)"),
    ]


def _blocked(run: RunDir) -> list[float]:
    records = [json.loads(line) for path in run.spool.glob("rank0-a*.jsonl") for line in path.read_text().splitlines()]
    values = [record.get("values", {}) for record in records]
    return [each["checkpoint/blocked_s"] for each in values if "checkpoint/blocked_s" in each]


def _range(values: list[float], unit: str) -> str:
    return f"{median(values):.2f} {unit} ({min(values):.2f} to {max(values):.2f})"
