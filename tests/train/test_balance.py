"""Routers are balanced over the global batch, whatever the layout, and say where tokens went."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.testing.ranks import run_ranks

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


def figures(folder: Path, ranks: int, steps: int = 4, **model: object) -> dict[str, dict[int, float]]:
    job = {**tiny_job(steps=steps, precision="fp64", eval_every_steps=steps), **MOE, "parallel": {"replicate": ranks}}
    job["model"] = {**MOE["model"], **model}
    got = run_ranks(fit_once, ranks, job, str(folder), False, None, 1)[0]
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
