"""Population based training against random search with the same steps, on the job that is ready for it.

`python -m tests.benchmarks population`. Both train as many members for the job's whole length, from the same points (a
population's first generation is what random search draws from the same seed); the figure is the best validation loss.
A third contender is random search with a cosine schedule, which somebody had to know of beforehand.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from orchestrator.spec.load import load_spec
from orchestrator.sweep.run import run_sweep

JOB = Path(__file__).parents[2] / "jobs" / "population_digits.yaml"
SEEDS = 5


def best_loss(data: dict[str, Any], folder: Path, seed: int, search: dict[str, Any], **optim: Any) -> float:
    """Return the least validation loss that any trial of the sweep came to."""
    job = copy.deepcopy(data)
    job["optim"] |= optim
    job["train"]["seed"] = seed
    job["sweep"] |= {"seed": seed, "search": search, "trials": search.pop("trials"), "export": "none"}
    job["cluster"] = {"storage": str(folder), "backend": "gloo", "gpus_per_worker": 0}
    found = run_sweep(load_spec(job), job, on_event=lambda event: None, command="bench")
    best = found.summary.best
    if best is None:
        raise RuntimeError(f"no trial has a result: {found.verdict}")
    return float(best.values["val/loss"])


def run() -> list[tuple[str, str]]:
    """Measure and return the rows of the table."""
    data = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    population = data["sweep"]["search"]["population"]
    generations = data["train"]["epochs"] // data["sweep"]["search"]["interval"]
    losses: dict[str, list[float]] = {"population": [], "random": [], "random, cosine": []}
    for seed in range(SEEDS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            pbt = data["sweep"]["search"] | {"trials": population * generations}
            losses["population"].append(best_loss(data, folder / "pbt", seed, pbt))
            plain = {"use": "random", "trials": population}
            losses["random"].append(best_loss(data, folder / "random", seed, dict(plain)))
            cosine = {"schedule": {"use": "cosine"}}
            losses["random, cosine"].append(best_loss(data, folder / "cosine", seed, dict(plain), **cosine))
    return [
        (f"{name}: best val/loss, mean of {SEEDS} seeds", f"{fmean(each):.4f} ({', '.join(f'{x:.4f}' for x in each)})")
        for name, each in losses.items()
    ]
