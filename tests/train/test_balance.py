"""Routers are balanced over the global batch, whatever the layout, and say where tokens went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.testing.ranks import run_ranks
from orchestrator.train.balance import is_drawn

from .fitting import fit_once, tiny_job

MOE = {
    "model": {
        "use": "moe",
        "seq_len": 8,
        "dim": 16,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "experts": 4,
        "top_k": 1,
        "balance_bias": 0.05,
        "dense_layers": 1,
    },
    "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000},
}


def trained(folder: Path, ranks: int, steps: int = 4, axis: str = "replicate", **model: object) -> dict[str, Any]:
    parallel = {"replicate": 1, axis: ranks}
    job = {**tiny_job(steps=steps, precision="fp64", eval_every_steps=steps), **MOE, "parallel": parallel}
    job["model"] = {**MOE["model"], **model}
    got: dict[str, Any] = run_ranks(fit_once, ranks, job, str(folder), False, None, 1)[0]
    return got


def figures(folder: Path, ranks: int, steps: int = 4, **options: Any) -> dict[str, dict[int, float]]:
    got = trained(folder, ranks, steps, **options)
    return {name: values for name, values in got["recorded"].items() if name.startswith("moe/")}


def test_load_drops_and_entropy_are_those_of_the_global_batch(tmp_path: Path) -> None:
    one, two = figures(tmp_path / "1", 1), figures(tmp_path / "2", 2)
    assert set(one) == {"moe/block2/drop_rate", "moe/block2/router_entropy", "moe/block2/max_load"}
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-6), name


def test_the_bias_evens_out_the_load(tmp_path: Path) -> None:
    load = figures(tmp_path, 1, steps=40)["moe/block2/max_load"]
    assert load[1] > 1.2
    assert min(load[step] for step in range(20, 41)) < load[1]


def test_every_stage_of_a_pipeline_tells_its_experts_and_their_loads(tmp_path: Path) -> None:
    alone = trained(tmp_path / "1", 1, dense_layers=0)
    parted = trained(tmp_path / "2", 2, axis="pipeline", dense_layers=0)
    names = {f"moe/block{number}/{what}" for number in (1, 2) for what in ("drop_rate", "router_entropy", "max_load")}
    for name in names:
        assert parted["recorded"][name] == pytest.approx(alone["recorded"][name], rel=1e-6), name
    assert [each["step"] for each in parted["others"]] == [1, 2, 3, 4]
    for one, other in zip(alone["others"], parted["others"], strict=True):
        assert other["loads"].keys() == {"block1", "block2"}
        for layer, loads in one["loads"].items():
            assert other["loads"][layer] == pytest.approx(loads)
            assert sum(loads) == pytest.approx(4)
            assert max(loads) == pytest.approx(alone["recorded"][f"moe/{layer}/max_load"][one["step"]])


def test_a_long_run_draws_some_hundred_of_its_steps_and_a_resumed_one_the_same() -> None:
    assert [step for step in range(2, 21, 2) if is_drawn(step, 2, 20)] == list(range(2, 21, 2))
    drawn = [step for step in range(10, 100_001, 10) if is_drawn(step, 10, 100_000)]
    assert 100 <= len(drawn) <= 102
    assert (drawn[0], drawn[-1]) == (10, 100_000)
