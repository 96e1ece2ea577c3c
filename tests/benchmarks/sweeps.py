"""Sweeps: no-op trials against the ideal, trials per minute against Tune with a TorchTrainer each, ASHA against random.

`python -m tests.benchmarks sweeps`. Bars: at most 1.15 x the ideal, at least 5 x the plain way, at most 40 % of the
steps. Each ratio is taken within one run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from orchestrator.cluster.events import Event
from orchestrator.spec.load import load_spec
from orchestrator.sweep.result import SweepResult
from orchestrator.sweep.run import run_sweep
from orchestrator.train.callbacks import Callback, Moment

NOOPS, NOOP_S = 200, 1.0
PLAIN_TRIALS, OUR_TRIALS = 6, 24
SEEDS = 5


class Until(Callback):
    """Makes the training of a trial last so many seconds: a trial that does nothing, at a known length."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began = 0.0

    def on_start(self, moment: Moment, step: int) -> None:
        """Note the time."""
        self._began = time.monotonic()

    def on_step_end(self, moment: Moment, step: int) -> None:
        """Wait for the rest."""
        time.sleep(max(0.0, self._seconds - (time.monotonic() - self._began)))


def job(folder: Path, sweep: dict[str, Any], **train: Any) -> dict[str, Any]:
    """Return a sweep over tiny models on the digits."""
    return {
        "name": "bench",
        "model": {"use": "mlp", "inputs": 64, "hidden": [16], "outputs": 10},
        "data": {"use": "digits", "flat": True},
        "optim": {"use": "adamw", "lr": 0.01},
        "train": {"batch_size": 64, **train},
        "cluster": {"storage": str(folder), "backend": "gloo", "gpus_per_worker": 0},
        "track": {"system_s": None},
        "sweep": {"export": "none", "objectives": {"val/accuracy": "max"}, **sweep},
    }


def search(data: dict[str, Any], on_event: Callable[[Event], None] = lambda event: None) -> SweepResult:
    """Run the sweep."""
    return run_sweep(load_spec(data), data, on_event=on_event, command="bench")


class Clock:
    """When trials began and ended, by the driver's clock."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "trial" and event.data["what"] == "ended":
            self.ends.append(time.monotonic())


def noops(folder: Path, count: int = NOOPS) -> tuple[float, float]:
    """Return seconds of `count` one-second trials, and of the ideal; both from the first end in every slot on."""
    callbacks = [{"use": "tests.benchmarks.sweeps:Until", "seconds": NOOP_S}]
    sweep = {"space": {"optim.lr": {"min": 0.001, "max": 0.1}}, "trials": count}
    clock = Clock()
    search(job(folder, sweep, steps=1, callbacks=callbacks), clock)
    slots = 2
    return clock.ends[-1] - clock.ends[slots - 1], (count - slots) * NOOP_S / slots


def ours(folder: Path) -> float:
    """Return trials per minute, start of the cluster included."""
    began = time.monotonic()
    search(job(folder, {"space": {"optim.lr": {"min": 0.001, "max": 0.1}}, "trials": OUR_TRIALS}, epochs=3))
    return 60 * OUR_TRIALS / (time.monotonic() - began)


def plain(folder: Path) -> float:
    """Return trials per minute of the plain way, start of the cluster included."""
    began = time.monotonic()
    words = [sys.executable, str(Path(__file__).with_name("plain_tune.py")), str(folder), str(PLAIN_TRIALS)]
    subprocess.run(words, check=True, capture_output=True)
    return 60 * PLAIN_TRIALS / (time.monotonic() - began)


def halving(seed: int) -> tuple[float, float]:
    """Return ASHA's steps by random search's over the same 27 points, and how much accuracy it lost on the best.

    Trials one after another in this process. Training is deterministic, so a trial that ASHA ends had, up to there, the
    curve that it has in random search: each is trained once.
    """
    from orchestrator.parallel.process import Rank
    from orchestrator.sweep.check import build_space
    from orchestrator.sweep.objectives import objectives_of
    from orchestrator.sweep.point import apply_point
    from orchestrator.sweep.schedulers import Asha, Rungs
    from orchestrator.sweep.search import Random, SearchTask
    from orchestrator.train.engine import build_engine
    from orchestrator.train.loop import fit
    from orchestrator.train.ports import Ports

    space = {"optim.lr": {"min": 1e-4, "max": 0.3, "log": True}, "model.hidden": [[4], [16], [64]]}
    data = job(Path("unused"), {"space": space, "trials": 27, "seed": seed}, epochs=9)
    swept = load_spec(data)
    searcher = Random(SearchTask(build_space(swept), objectives_of(swept), seed))
    asha = Asha([Rungs(grace=1, reduction=3)])
    whole = spent = best = kept = 0.0
    for number in range(27):
        curve: list[tuple[int, float]] = []

        def judge(step: int, metrics: Mapping[str, float], curve: list[tuple[int, float]] = curve) -> bool:
            curve.append((step, metrics["val/accuracy"]))
            return False

        fit(build_engine(load_spec(apply_point(data, searcher.ask())), Rank()), Ports(judge=judge))
        whole, best = whole + curve[-1][0], max(best, max(score for _, score in curve))
        for evaluation, (step, score) in enumerate(curve, 1):
            kept = max(kept, score)
            if asha.should_stop(number, evaluation, score) or step == curve[-1][0]:
                spent += step
                break
    return spent / whole, best - kept


def run() -> list[tuple[str, str]]:
    """Measure and return the rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        took, ideal = noops(folder / "noops")
        mine, theirs = ours(folder / "ours"), plain(folder / "plain")
    pairs = [halving(seed) for seed in range(SEEDS)]
    each = ", ".join(f"{share:.2f}" for share, _ in pairs)
    lost = ", ".join(f"{loss:.4f}" for _, loss in pairs)
    return [
        (f"{NOOPS} trials of {NOOP_S:g} s, against the ideal (bar 1.15)", f"{took / ideal:.3f}"),
        ("trials per minute, ours", f"{mine:.1f}"),
        ("trials per minute, Tune + TorchTrainer", f"{theirs:.1f}"),
        ("ratio (bar 5)", f"{mine / theirs:.1f}"),
        ("ASHA's steps by random search's (bar 0.40)", f"{fmean(share for share, _ in pairs):.2f} ({each})"),
        ("accuracy lost on the best of the same points", lost),
    ]
