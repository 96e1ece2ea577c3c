"""Command to first training step: `orchestrator run` with two workers against `minimal_ray.py`, interleaved medians.

`python -m tests.benchmarks.first_step [PAIRS]` prints both medians and their ratio (bar 1.0, goal 0.8).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from orchestrator.train.callbacks import Callback, Moment

JOB = """
name: start
model: {use: cnn}
data: {use: digits}
optim: {use: adamw, lr: 2e-3}
train: {steps: 20, batch_size: 64, callbacks: [{use: "tests.benchmarks.first_step:Mark", path: "%s"}]}
parallel: {replicate: 2}
cluster: {storage: "%s"}
"""


class Mark(Callback):
    """Writes the wall time after the first step."""

    def __init__(self, path: str) -> None:
        self._path = path

    def on_step_end(self, moment: Moment, step: int) -> None:
        """Write once, on rank 0."""
        if step == 1 and moment.rank == 0:
            Path(self._path).write_text(repr(time.time()), encoding="utf-8")


def ours(folder: Path) -> list[str]:
    """Return the command of a run of ours."""
    (folder / "job.yaml").write_text(JOB % (folder / "mark", folder / "runs"), encoding="utf-8")
    return [sys.executable, "-m", "orchestrator", "run", str(folder / "job.yaml")]


def minimal(folder: Path) -> list[str]:
    """Return the command of the minimal script."""
    script = Path(__file__).with_name("minimal_ray.py")
    return [sys.executable, str(script), str(folder / "mark"), str(folder / "ray")]


def measure(command: list[str], mark: Path) -> tuple[float, float]:
    """Return seconds from the command to the first step and to its end."""
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode != 0:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return float(mark.read_text(encoding="utf-8")) - began, ended - began


def run(pairs: int = 3) -> list[tuple[str, str]]:
    """Return (what, figure) rows from `pairs` of both, in turn."""
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "minimal": []}
    for _ in range(pairs):
        for name, command in (("ours", ours), ("minimal", minimal)):
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(measure(command(Path(folder)), Path(folder) / "mark"))
    first = {name: median(each[0] for each in values) for name, values in found.items()}
    ratio = first["ours"] / first["minimal"]
    rows = [(f"{name}: command to first step", f"{seconds:.2f} s") for name, seconds in first.items()]
    return [*rows, ("ours / minimal (bar 1.0, goal 0.8)", f"{ratio:.2f}")]


if __name__ == "__main__":
    for what, figure in run(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        print(f"{what:<40} {figure}")
