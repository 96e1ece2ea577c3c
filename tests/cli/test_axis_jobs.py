"""The ready jobs with an axis of their own, each through Ray with `orchestrator run`: trained, exported, evaluated."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import jobs

FOLDER = Path(jobs.__path__[0])
# Job, the axes it is about, and how many ranks they make.
AXES = {
    "transformer_8_ranks": ("pipeline 2 x shard 2 x tensor 2", 8),
    "moe_experts": ("experts over 2", 2),
    "cnn_pipeline": ("pipeline 2", 2),
    "cnn_tensor": ("tensor 2", 2),
    "tied_pipeline": ("pipeline 2", 2),
}


def _slow(name: str) -> tuple[pytest.MarkDecorator, ...]:
    """One of them with the slow tests, the others by hand."""
    return (pytest.mark.slow,) if name == "moe_experts" else (pytest.mark.slow, pytest.mark.soak)


@pytest.mark.ray
@pytest.mark.parametrize("name", [pytest.param(name, marks=_slow(name)) for name in AXES])
def test_a_job_runs_on_ray_from_its_file_to_an_evaluated_model(name: str, tmp_path: Path) -> None:
    axes, ranks = AXES[name]
    short = ["train.steps=3", "train.epochs=null", "train.eval_every_steps=3", "checkpoint.every_steps=3"]
    elsewhere = [f"cluster.storage={tmp_path / 'runs'}", "export=[{use: safetensors}]", "track.every_steps=1"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", str(FOLDER / f"{name}.yaml"), *short, *elsewhere, "--json"],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["state"], result["step"]) == ("finished", 3)
    assert "test/loss" in result["metrics"]
    assert f"{ranks} ranks = " in done.stderr
    assert axes in done.stderr
