"""Kills a whole `orchestrator run` from outside at a random moment, and says what came of it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from orchestrator.checkpoint.disk import MANIFEST
from orchestrator.runs.heartbeat import read_heartbeats
from orchestrator.runs.paths import RunDir

ROOT = Path(__file__).parents[2]
STEPS = 120
KINDS = ("worker", "driver", "everything", "mid_save")
_DEADLINE_S = 240.0

JOB = """
name: killed
model: {{use: mlp, inputs: 64, hidden: [32], outputs: 10, dropout: 0.1}}
data: {{use: digits, flat: true}}
optim: {{use: adamw, lr: 0.01, clip_norm: 1.0, schedule: {{use: cosine, warmup_steps: 5}}}}
train:
  steps: {steps}
  batch_size: 32
  eval_every_steps: 20
  callbacks: [{{use: "tests.cluster.faults:Slow", seconds: 0.03}}]
parallel: {{replicate: {ranks}}}
cluster: {{storage: "{storage}", cpus_per_worker: 0.5, gpus_per_worker: 0, step_timeout_s: 10}}
checkpoint: {{every_steps: 10}}
track: {{every_steps: 1, system_s: null}}
"""


@dataclass(frozen=True)
class Kill:
    """One row of the matrix."""

    kind: str
    ranks: int
    seed: int


def table(count: int) -> list[Kill]:
    """Return the first `count` rows: all kinds in turn, on one and on two ranks, each with a seed of its own."""
    return [Kill(KINDS[n % len(KINDS)], 1 + (n // len(KINDS)) % 2, n) for n in range(count)]


def run_undisturbed(folder: Path, ranks: int) -> RunDir:
    """Train the job to its end."""
    job = _write_job(folder, ranks)
    code = _start(job, folder).wait(_DEADLINE_S)
    assert code == 0, (folder / "out.txt").read_text()
    return RunDir(folder / "runs" / "killed-1")


def run_killed(folder: Path, kill: Kill) -> RunDir:
    """Start the job, kill as the row says, resume by hand where the driver is gone; return the run at its end."""
    chance = random.Random(kill.seed)
    job = _write_job(folder, kill.ranks)
    process = _start(job, folder)
    run = RunDir(folder / "runs" / "killed-1")
    at_step = chance.randrange(12, STEPS - 20)
    _wait(lambda: _step(run) >= at_step, process, folder)
    if kill.kind == "mid_save":
        _wait(lambda: _is_saving(run) or _step(run) >= STEPS - 2, process, folder)
    if kill.kind in ("worker", "mid_save"):
        os.kill(chance.choice(read_heartbeats(run)).pid, signal.SIGKILL)
        code = process.wait(_DEADLINE_S)
    else:
        _kill_driver(process, with_children=kill.kind == "everything")
        code = _start(job, folder, "--resume").wait(_DEADLINE_S)
    assert code == 0, (folder / "out.txt").read_text()
    return run


def losses(run: RunDir) -> dict[int, float]:
    """Return the loss of every step over all attempts. A step that was repeated must have given the same bits."""
    found: dict[int, float] = {}
    for path in sorted(run.spool.glob("rank0-a*.jsonl")):
        for line in path.read_text().splitlines():
            with suppress(ValueError):
                record = json.loads(line)
                if "train/loss" in record.get("values", {}):
                    loss = record["values"]["train/loss"]
                    assert found.setdefault(record["step"], loss) == loss, f"step {record['step']} gave another loss"
    return found


def _write_job(folder: Path, ranks: int) -> Path:
    path = folder / "job.yaml"
    path.write_text(JOB.format(steps=STEPS, ranks=ranks, storage=folder / "runs"))
    return path


def _start(job: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    with open(folder / "out.txt", "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "run", str(job), *more],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _kill_driver(process: subprocess.Popen[bytes], *, with_children: bool) -> None:
    doomed = [psutil.Process(process.pid)]
    if with_children:
        doomed += doomed[0].children(recursive=True)
    for one in doomed:
        with suppress(psutil.Error):
            one.kill()
    process.wait(10)
    psutil.wait_procs(doomed, timeout=10)


def _step(run: RunDir) -> int:
    return max((beat.step for beat in read_heartbeats(run)), default=-1)


def _is_saving(run: RunDir) -> bool:
    with suppress(OSError):
        return any(not (path / MANIFEST).exists() for path in run.checkpoints.iterdir())
    return False


def _wait(until: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not until():
        assert process.poll() is None, (folder / "out.txt").read_text()
        assert time.monotonic() < deadline, "the run did not get there in time"
        time.sleep(0.002)
