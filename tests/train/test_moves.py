"""Checkpoints move between layouts: a run that changes its layout at every stop is the run that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoint.load import load_consolidated
from orchestrator.checkpoint.verify import open_checkpoint, save_folders
from orchestrator.plan.layout import Layout
from orchestrator.testing.ranks import run_ranks
from tests.tiers import sample_of

from .fitting import fit_once, tiny_job

GATE = 1e-9
STEPS_EACH = 2
TEXT = {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000}
WIDE = {"seq_len": 8, "dim": 16, "heads": 4, "kv_heads": 4, "hidden": 16, "vocab": 256}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {
        "model": {"use": "transformer", **WIDE, "layers": 2, "repeat": 2, "tied_embeddings": True},
        "data": TEXT,
    },
    "moe": {"model": {"use": "moe", **WIDE, "layers": 4, "experts": 4, "balance_bias": 0.01}, "data": TEXT},
    "cnn": {
        "optim": {"use": "sgd", "lr": 0.05, "momentum": 0.9, "clip_norm": 1.0},
        "model": {"use": "cnn", "channels": [8, 8, 8], "norm": "group", "hidden": 16},
        "data": {"use": "digits"},
    },
}
ONE: dict[str, Any] = {}
DEGREES = ("replicate", "shard", "tensor", "pipeline", "context", "expert")
# Each row is one run: it stops after every two steps and goes on under the next layout.
CHAINS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "transformer: tensor, stages and shards at once, then the other axes": (
        "transformer",
        [
            {"tensor": 2, "pipeline": 2, "shard": 2},
            {"context": 2, "replicate": 2},
            ONE,
            {"pipeline": 2, "schedule": "interleaved_1f1b"},
            {"shard": 3, "context": 2, "context_attention": "ring"},
            {"tensor": 4, "sequence": False},
            {"replicate": 2, "shard": 2},
            ONE,
        ],
    ),
    "moe: experts apart, in stages, sharded, alone": (
        "moe",
        [
            {"replicate": 1, "shard": 4, "expert": 4},
            {"pipeline": 2, "schedule": "zbv_zero_bubble"},
            {"replicate": 2, "expert": 2},
            ONE,
            {"tensor": 2, "shard": 2, "expert": 2},
            {"shard": 3},
        ],
    ),
    "cnn: channels over ranks, stages, shards": (
        "cnn",
        [{"tensor": 4}, {"pipeline": 2, "replicate": 2}, {"shard": 4}, ONE, {"tensor": 2, "pipeline": 2}],
    ),
}
IN_DEFAULT_TIER = "cnn: channels over ranks, stages, shards"


def job_of(model: str, num_steps: int, **parallel: Any) -> dict[str, Any]:
    base = tiny_job(steps=num_steps, batch_size=24, precision="fp64", eval_every_steps=num_steps)
    base["checkpoint"] = {"every_steps": STEPS_EACH, "keep": 2}
    return {**base, **MODELS[model], "parallel": {"replicate": 1, **parallel}}


def ranks_of(parallel: dict[str, Any]) -> int:
    return Layout(**{name: degree for name, degree in parallel.items() if name in DEGREES}).world_size


def train(folder: Path, job: dict[str, Any], ranks: int, attempt: int, stop_after: int | None) -> dict[str, Any]:
    """Go on from what is in the folder; return what rank 0 recorded, by metric and step."""
    got = run_ranks(fit_once, ranks, job, str(folder), attempt > 1, stop_after, attempt)[0]
    recorded: dict[str, Any] = got["recorded"]
    return recorded


def newest_weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the full weights of the checkpoint of that step, as an export or a registered model gets them."""
    (path,) = [path for path in save_folders(folder) if path.name.startswith(f"step-{step:08d}-")]
    return load_consolidated(open_checkpoint(path))[0]


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    """The floor is for a bias before a norm: its gradient is zero but for rounding, and so is the bias."""
    return float((got - want).norm() / want.norm().clamp_min(1e-4))


@pytest.mark.parametrize(
    "name", [IN_DEFAULT_TIER, *sample_of([name for name in CHAINS if name != IN_DEFAULT_TIER], 1, seed=1)]
)
def test_a_run_that_changes_its_layout_at_every_stop_is_the_run_never_stopped(name: str, tmp_path: Path) -> None:
    model, layouts = CHAINS[name]
    steps = STEPS_EACH * len(layouts)
    want = train(tmp_path / "one", job_of(model, steps), 1, attempt=1, stop_after=None)
    moved: dict[str, dict[int, float]] = {}
    for number, parallel in enumerate(layouts, start=1):
        stop = STEPS_EACH * number
        part = train(tmp_path / "moved", job_of(model, steps, **parallel), ranks_of(parallel), number, stop_after=stop)
        for metric, values in part.items():
            moved.setdefault(metric, {}).update(values)
        weights = newest_weights(tmp_path / "moved", stop)
        assert {each.dtype for each in weights.values()} == {torch.float64}, parallel
    assert sorted(moved["train/loss"]) == list(range(1, steps + 1))
    for metric in ("train/loss", "train/grad_norm", "val/loss"):
        assert moved[metric] == pytest.approx(want[metric], rel=GATE), metric
    whole = newest_weights(tmp_path / "one", steps)
    assert weights.keys() == whole.keys()
    worst = max((difference(weights[key], whole[key]), key) for key in whole)
    assert worst[0] <= GATE, worst


def test_a_chain_that_loses_the_optimisers_state_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of("cnn", 4)
    want = train(tmp_path / "one", job, 1, attempt=1, stop_after=None)
    train(tmp_path / "moved", job, 1, attempt=1, stop_after=2)
    got = run_ranks(fit_without_optimiser, 1, job, str(tmp_path / "moved"))[0]
    assert got["recorded"]["train/loss"][4] != pytest.approx(want["train/loss"][4], rel=GATE)


def fit_without_optimiser(rank: int, world_size: int, job: dict[str, Any], folder: str) -> dict[str, Any]:
    """The weights go on, the moments begin anew."""
    from orchestrator.train import saver, state

    def forget(engine: Any, found: dict[str, dict[str, torch.Tensor]]) -> None:
        for values in found.values():
            for value in values.values():
                value.zero_()
        state.put_optimizer_state(engine, found)

    setattr(saver, "put_optimizer_state", forget)  # noqa: B010 - the checker knows no patching
    return fit_once(rank, world_size, job, folder, True, None, 2)
