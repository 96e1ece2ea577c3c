"""Layouts of a sweep: seconds a step predicted from one measured trial, beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec.load import load_spec
from orchestrator.sweep.check import build_space
from orchestrator.sweep.layouts import LayoutRow, layout_rows
from orchestrator.sweep.trial import Trial
from orchestrator.tracking.sweep_figures import layouts_figure
from tests.sweep.jobs import search, tiny_sweep

LAYOUTS = [{}, {"replicate": 2}, {"pipeline": 2, "microbatches": 4, "schedule": "gpipe"}]


def rows_of(space: dict[str, Any], trials: list[tuple[dict[str, Any], float]]) -> list[LayoutRow]:
    data = tiny_sweep(Path("unused"), {"space": space, "trials": 3})
    done = [
        Trial(number, point, "", state="finished", values={"time/step_s": step_s} if step_s else {})
        for number, (point, step_s) in enumerate(trials)
    ]
    return layout_rows(data, build_space(load_spec(data)), done)


def test_the_prediction_shares_out_the_work_and_counts_the_bubble() -> None:
    trials = [({"parallel": layout}, step_s) for layout, step_s in zip(LAYOUTS, (0.8, 0.5, 0.6), strict=True)]
    found = {row.trial: row for row in rows_of({"parallel": LAYOUTS}, trials)}
    assert {name: row.reference for name, row in found.items()} == dict.fromkeys(("t000", "t001", "t002"), "t000")
    assert found["t000"].predicted_s == found["t000"].measured_s == 0.8
    assert found["t001"].predicted_s == pytest.approx(0.4)
    assert found["t002"].predicted_s == pytest.approx(0.4 / (1 - 1 / 5)), "two stages wait for 1 of 5 moments"
    assert found["t001"].describe() == "2 ranks = replicate 2: 500 ms a step measured, 400 predicted (1.25 x)"
    assert found["t001"].memory_bytes is not None
    assert "gpipe" in found["t002"].layout
    assert [row.trial for row in rows_of({"parallel": LAYOUTS}, trials)] == ["t001", "t002", "t000"], (
        "the fastest first"
    )


def test_trials_that_differ_in_more_than_the_layout_are_not_compared() -> None:
    space = {"parallel.replicate": [1, 2], "train.batch_size": [16, 32]}
    point = {"parallel.replicate": 1, "train.batch_size": 16}
    other = {"parallel.replicate": 2, "train.batch_size": 32}
    found = rows_of(space, [(point, 0.2), (other, 0.3), ({**point, "parallel.replicate": 2}, 0.1)])
    assert {row.trial: row.reference for row in found} == {"t000": "t000", "t002": "t000", "t001": "t001"}


def test_nothing_is_predicted_where_nothing_was_measured_or_no_layout_was_searched() -> None:
    assert rows_of({"parallel.replicate": [1, 2]}, [({"parallel.replicate": 2}, 0.0)]) == []
    assert rows_of({"optim.lr": [0.1, 0.2]}, [({"optim.lr": 0.1}, 0.3)]) == []


def test_the_figure_has_a_bar_and_a_prediction_for_each() -> None:
    rows = [{"trial": f"t{n}", "layout": "1 rank", "measured_s": 0.1 * n, "predicted_s": 0.1} for n in (1, 2)]
    (axis,) = layouts_figure(rows).axes
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([200, 100])
    assert axis.collections[0].get_offsets()[:, 0].tolist() == pytest.approx([100, 100])


@pytest.mark.ray
@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_sweep_over_layouts_shows_what_it_measured_beside_what_was_predicted(tmp_path: Path) -> None:
    space = {"parallel": [{"replicate": 1}, {"replicate": 2}]}
    sweep = {"space": space, "trials": 2, "search": {"use": "grid"}, "objectives": {"time/step_s": "min"}}
    result, _ = search(tiny_sweep(tmp_path, {**sweep, "parallel_trials": 1}))
    page = json.loads((result.path / "sweep" / "summary.json").read_text())
    assert {row["layout"] for row in page["layouts"]} == {"1 rank", "2 ranks = replicate 2"}
    assert all(row["measured_s"] > 0 and row["reference"] == "t000" for row in page["layouts"])
    assert (result.path / "artifacts" / "figures" / "layouts.png").is_file()
    assert page["best"] == min(page["layouts"], key=lambda row: row["measured_s"])["trial"]
