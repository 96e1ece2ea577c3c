"""The loop: it resumes bit for bit, stops when asked, keeps the best, and moves between layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.testing.ranks import RankError, run_ranks

from .fitting import fit_once, tiny_job
from .parity import difference

LAYOUTS = {"one": (1, 1), "replicate": (2, 1), "shard": (1, 2)}


def with_layout(layout: str, **train: Any) -> dict[str, Any]:
    replicate, shard = LAYOUTS[layout]
    return {**tiny_job(**train), "parallel": {"replicate": replicate, "shard": shard}}


def run(
    layout: str, folder: Path, *, resume: bool = False, stop_after: int | None = None, attempt: int = 1, **train: Any
) -> dict[str, Any]:
    replicate, shard = LAYOUTS[layout]
    job = with_layout(layout, **train)
    return run_ranks(fit_once, replicate * shard, job, str(folder), resume, stop_after, attempt)[0]


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_stopped_run_goes_on_bit_for_bit(layout: str, tmp_path: Path) -> None:
    whole = run(layout, tmp_path / "whole")
    first = run(layout, tmp_path / "cut", stop_after=7)
    second = run(layout, tmp_path / "cut", resume=True, attempt=2)
    assert first["status"] == "stopped"
    assert second["status"] == "finished"
    assert second["step"] == whole["step"] == 24
    for name in ("train/loss", "train/grad_norm", "train/lr", "val/loss", "val/accuracy"):
        together = {**first["recorded"].get(name, {}), **second["recorded"][name]}
        assert together == whole["recorded"][name], name
    for name, weight in whole["weights"].items():
        assert torch.equal(second["weights"][name], weight), name
    assert second["best_step"] == whole["best_step"]


def test_seconds_of_training_are_those_of_all_attempts(tmp_path: Path) -> None:
    first = run("one", tmp_path, stop_after=20)
    second = run("one", tmp_path, resume=True, attempt=2)
    assert 0 < first["saved_s"] < second["train_s"]
    third = run("one", tmp_path, resume=True, attempt=3)  # nothing is left to do
    assert second["saved_s"] <= third["train_s"]
    assert third["step_s"] == second["step_s"] > 0


def test_a_training_resumed_where_it_is_to_end_takes_no_step_and_gives_what_it_gave(tmp_path: Path) -> None:
    first = run("one", tmp_path, stop_after=8)
    second = run_ranks(fit_once, 1, with_layout("one"), str(tmp_path), True, None, 2, 8)[0]
    assert (first["status"], second["status"]) == ("stopped", "finished")
    for name in ("step", "best", "newest", "best_step", "best_metrics", "step_s"):
        assert second[name] == first[name] is not None, name
    assert "train/loss" not in second["recorded"]


def test_a_training_out_of_patience_takes_no_step_more_when_it_was_killed_then(tmp_path: Path) -> None:
    monitor = {"metric": "val/accuracy", "mode": "min", "patience": 2}
    first = run("one", tmp_path, monitor=monitor, steps=400)
    second = run("one", tmp_path, monitor=monitor, steps=400, resume=True, attempt=2)
    for name in ("status", "step", "best", "newest", "best_step", "best_metrics"):
        assert second[name] == first[name] is not None, name
    assert first["status"] == "early_stopped"
    assert "train/loss" not in second["recorded"]


def test_a_run_resumed_under_another_layout_gives_the_same_curve(tmp_path: Path) -> None:
    plain = {"model": {"use": "mlp", "inputs": 64, "hidden": [16], "outputs": 10}}
    results = []
    for layouts in (["one", "one"], ["one", "shard"], ["shard", "replicate"]):
        folder = tmp_path / "-".join(layouts)
        for attempt, layout in enumerate(layouts, start=1):
            replicate, shard = LAYOUTS[layout]
            job = {**with_layout(layout, precision="fp64"), **plain}
            stop = 7 if attempt == 1 else None
            got = run_ranks(fit_once, replicate * shard, job, str(folder), attempt > 1, stop, attempt)[0]
        results.append(got)
    for other in results[1:]:
        assert other["recorded"]["train/loss"] == pytest.approx(results[0]["recorded"]["train/loss"], rel=1e-9)
        for name, weight in results[0]["weights"].items():
            assert difference(other["weights"][name], weight) <= 1e-9


TEXT = {
    "model": {
        "use": "transformer",
        "seq_len": 8,
        "dim": 16,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "tied_embeddings": True,
    },
    "data": {"use": "text", "corpus": "python", "seq_len": 8, "max_bytes": 50_000},
}


def test_a_run_moves_from_one_process_to_a_pipeline_to_tensor_ranks(tmp_path: Path) -> None:
    layouts: list[dict[str, int]] = [{}, {"pipeline": 2}, {"tensor": 2}]
    base = {**tiny_job(precision="fp64", eval_every_steps=24), **TEXT}
    whole = run_ranks(fit_once, 1, {**base, "parallel": {"replicate": 1}}, str(tmp_path / "a"), False, None, 1)[0]
    curve: dict[int, float] = {}
    for attempt, axes in enumerate(layouts, start=1):
        job = {**base, "parallel": {"replicate": 1, **axes}}
        stop = {1: 7, 2: 14}.get(attempt)
        ranks = max(axes.values(), default=1)
        got = run_ranks(fit_once, ranks, job, str(tmp_path / "b"), attempt > 1, stop, attempt)[0]
        curve.update(got["recorded"]["train/loss"])
    assert curve == pytest.approx(whole["recorded"]["train/loss"], rel=1e-9)
    assert got["recorded"]["val/loss"] == pytest.approx(whole["recorded"]["val/loss"], rel=1e-9)


def test_evaluation_under_a_pipeline_gives_the_same_figures(tmp_path: Path) -> None:
    results = []
    for axes in ({}, {"pipeline": 2}):
        job = {**tiny_job(steps=4, precision="fp64", eval_every_steps=2), **TEXT, "parallel": {"replicate": 1, **axes}}
        results.append(run_ranks(fit_once, len(axes) + 1, job, str(tmp_path / str(len(axes))), False, None, 1)[0])
    for name in ("val/loss", "val/accuracy"):
        assert results[1]["recorded"][name] == pytest.approx(results[0]["recorded"][name], rel=1e-9)


def test_the_best_checkpoint_is_named_and_kept(tmp_path: Path) -> None:
    got = run("one", tmp_path, steps=40)
    accuracies = got["recorded"]["val/loss"]
    assert got["best_step"] == min(accuracies, key=accuracies.__getitem__)
    assert (tmp_path / got["best"] / "manifest.json").is_file()
    assert got["best"].startswith(f"step-{got['best_step']:08d}")


def test_training_stops_early_when_patience_runs_out(tmp_path: Path) -> None:
    got = run("one", tmp_path, monitor={"metric": "val/accuracy", "mode": "min", "patience": 2}, steps=400)
    assert got["status"] == "early_stopped"
    assert got["step"] < 400


def test_a_gradient_that_stays_non_finite_fails_the_run_and_spares_the_checkpoint(tmp_path: Path) -> None:
    job = tiny_job()
    job["optim"] = {"use": "sgd", "lr": 1e30, "momentum": 0.0}
    with pytest.raises(RankError, match=r"(?s)gradient norm was.*steps in a row.*lower optim\.lr"):
        run_ranks(fit_once, 1, job, str(tmp_path), False, None, 1)


def test_a_checkpoint_of_another_job_is_refused(tmp_path: Path) -> None:
    run("one", tmp_path, stop_after=7)
    with pytest.raises(RankError, match="another model, data, optimiser or training section"):
        run("one", tmp_path, resume=True, attempt=2, seed=2)
