"""The law of layout independence: any layout gives the losses, gradients, norms and weights of one process."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from orchestrator.testing.ranks import run_ranks

from .parity import difference, trace

STEPS = 3
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-5}
MODELS = {
    "mlp": {
        "model": {"use": "mlp", "inputs": 64, "hidden": [16], "outputs": 10},
        "data": {"use": "digits", "flat": True},
    },
    "cnn": {"model": {"use": "cnn", "channels": [4, 8]}, "data": {"use": "digits"}},
}
LAYOUTS = [
    (2, 1, 1),
    (1, 2, 1),
    (2, 1, 2),
    (1, 2, 2),
    (4, 1, 1),
    (1, 4, 1),
    (2, 2, 1),
    (2, 2, 3),
]


def job(
    model: str, precision: str, replicate: int = 1, shard: int = 1, accumulate: int = 1, **optim: Any
) -> dict[str, Any]:
    return {
        "name": "parity",
        **MODELS[model],
        "optim": {"use": "adamw", "lr": 1e-2, "clip_norm": 0.5, **optim},
        "train": {"steps": STEPS, "batch_size": 48, "accumulate": accumulate, "precision": precision, "seed": 3},
        "parallel": {"replicate": replicate, "shard": shard},
        "cluster": {"gpus_per_worker": 0},
    }


@cache
def reference(model: str, precision: str, optimizer: str = "adamw") -> dict[str, Any]:
    return run_ranks(trace, 1, job(model, precision, use=optimizer), STEPS)[0]


def assert_same(got: dict[str, Any], want: dict[str, Any], tolerance: float) -> None:
    for key in ("loss", "norm", "clipped_norm"):
        assert got[key] == pytest.approx(want[key], rel=tolerance), key
    for group in ("gradients", "weights"):
        assert got[group].keys() == want[group].keys()
        for name, tensor in want[group].items():
            assert difference(got[group][name], tensor) <= tolerance, f"{group} of {name}"
    assert got["val"] == pytest.approx(want["val"], rel=max(tolerance, 1e-6))


@pytest.mark.parametrize(("replicate", "shard", "accumulate"), LAYOUTS)
@pytest.mark.parametrize("precision", ["fp64", "fp32"])
@pytest.mark.parametrize("model", list(MODELS))
def test_a_layout_trains_the_same_model_as_one_process(
    model: str, precision: str, replicate: int, shard: int, accumulate: int
) -> None:
    if model == "cnn" and (replicate, shard, accumulate) not in LAYOUTS[:4] + LAYOUTS[-1:]:
        pytest.skip("the MLP covers this layout; the CNN takes a sample")
    ranks = run_ranks(trace, replicate * shard, job(model, precision, replicate, shard, accumulate), STEPS)
    for got in ranks:
        assert_same(got, reference(model, precision), TOLERANCE[precision])


@pytest.mark.parametrize(("optimizer", "replicate", "shard"), [("sgd", 2, 1), ("sgd", 1, 2), ("adafactor", 2, 1)])
def test_every_optimiser_is_independent_of_the_layout(optimizer: str, replicate: int, shard: int) -> None:
    got = run_ranks(trace, 2, job("mlp", "fp64", replicate, shard, use=optimizer), STEPS)[0]
    assert_same(got, reference("mlp", "fp64", optimizer), TOLERANCE["fp64"])


def test_the_measure_can_fail() -> None:
    want = reference("mlp", "fp64")
    broken = {**want, "weights": {name: tensor * 1.0001 for name, tensor in want["weights"].items()}}
    with pytest.raises(AssertionError, match="weights"):
        assert_same(broken, want, TOLERANCE["fp64"])
